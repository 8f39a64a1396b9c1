"""Hooks of mkdocs: equations become MathML, which needs no script; links out of docs/ stay in the site; nothing is fetched."""

import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # of the root, shown as pages
CODE = re.compile(r"(^```.*?^```$|^    .*?$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
AS_PAGES = {**PAGES, "README.md": "index.md"}


def on_config(config):
    fence = {"name": "math", "class": "math", "format": lambda source, *_, **__: f'<div class="math">{mathml(source, "block")}</div>'}
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def mathml(latex, display="inline"):
    made = convert(latex, display=display)
    if "\\" in made or "&amp;" in made:
        raise PluginError(f"latex2mathml does not know all of {latex!r}")
    return made


def on_files(files, config):
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    folder = (ROOT / "docs" / page.file.src_uri).parent
    base = ROOT if page.file.src_uri in PAGES.values() else folder

    def moved(match):
        text, target, anchor = match.groups(default="")
        path = Path(os.path.normpath(base / target))
        if re.match(r"[a-z]+:", target) or not path.exists() or not path.is_relative_to(ROOT):
            return match[0]  # mkdocs says what is wrong with it
        if path.is_dir():
            return text  # a folder is no page
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("docs/"):
            inside = AS_PAGES.get(name) or f"source/{name}{'.txt' * name.endswith('.md')}"
            if name not in AS_PAGES and files.get_file_from_path(inside) is None:
                files.append(File.generated(config, inside, abs_src_path=str(path)))
            path = ROOT / "docs" / inside
        return f"[{text}]({os.path.relpath(path, folder)}{anchor})"

    parts = re.split(CODE, markdown)
    for n in range(0, len(parts), 2):  # every other part is code, which stays
        linked = re.sub(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)", moved, parts[n])
        parts[n] = re.sub(r"\$([^$\n]+)\$", lambda match: f"<span>{mathml(match[1])}</span>", linked)
    return "".join(parts)


def on_page_content(html, page, config, files):
    """The code beside a rule's equations is open, and so are the fields of a dataclass, which explain themselves."""
    start, *sources = html.split('<details class="mkdocstrings-source">')
    shown = ["rules/" in page.url or "@dataclass" in source.partition("</details>")[0] for source in sources]
    return start + "".join(f'<details class="mkdocstrings-source"{" open" * now}>{source}' for now, source in zip(shown, sources, strict=True))


FETCHED = re.compile(r"<(?:script|img|iframe|source)[^>]* src=[\"']?(?:https?:)?//[^>]*>|<link[^>]* href=[\"']?https?://[^>]*>")


def on_post_build(config):
    for page in Path(config["site_dir"]).rglob("*.html"):
        if fetched := FETCHED.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.name} fetches from elsewhere: {fetched[0]}")
