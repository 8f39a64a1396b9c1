"""`snn-rules new NAME`: a whole distribution with one rule, from the files in `template/`, which passes its kit as created."""

from __future__ import annotations

import datetime
import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from . import __version__
from .registry import rules
from .rule import RuleError

FILES = {  # what is written, and from which template; names are templates, too
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "test.yml",
    "$package/__init__.py": "__init__.py",
    "$package/py.typed": "py.typed",
    "$package/rule.py": "rule.py",
    "$package/reference.py": "reference.py",
    "tests/test_$name.py": "test_rule.py",
}


def render(name: str, author: str) -> dict[str, str]:
    """The files of the distribution: {path: text}."""
    values = {
        "name": name,
        "Class": "".join(part.capitalize() for part in name.split("_")),
        "package": f"snn_rules_{name}",
        "distribution": f"snn-rules-{name.replace('_', '-')}",
        "author": author,
        "version": __version__,
        "year": str(datetime.date.today().year),
    }
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(values["Class"]):
        raise RuleError(f"new: {name!r} cannot name a rule; use lower-case letters, digits and single underscores, such as my_rule")
    if len(author.splitlines()) > 1:
        raise RuleError(f"new: --author {author!r} should stand on one line")
    templates = files("snn_rules") / "template"
    return {
        Template(path).substitute(values): Template((templates / f"{source}.txt").read_text(encoding="utf-8")).substitute(values)
        for path, source in FILES.items()
    }


def new(name: str, author: str, folder: Path | None = None) -> Path:
    """Write the distribution into `folder` (default: one of its name, here), and return that."""
    texts = render(name, author)
    if name in rules():
        owner = rules()[name].distribution
        raise RuleError(f"new: there is a rule {name!r} already, of {owner}; two distributions cannot share a name: choose another")
    folder = folder or Path(f"snn-rules-{name.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RuleError(f"new: {str(folder)!r} is there already and not empty; pass another --out")
    try:
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as cause:
        raise RuleError(f"new: cannot write into {str(folder)!r} ({cause}); pass another --out") from cause
    return folder
