"""docs/write-a-rule.md, line by line: from an empty folder to a green kit; and what `snn-rules new` refuses."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import snn_rules
from snn_rules.cli import app
from snn_rules.scaffold import new, render

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "write-a-rule.md").read_text(encoding="utf-8")
RUN = [sys.executable, "-W", "ignore", "-c", "import sys; sys.modules['pytest'] = None; from snn_rules.cli import app; app()"]  # no pytest there


def test_the_page_shows_what_the_command_writes() -> None:
    files = render("stbp", "the authors")
    shown = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert shown[:2] == [files["snn_rules_stbp/rule.py"], files["snn_rules_stbp/reference.py"]]


def test_from_an_empty_folder_to_a_green_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's commands as they stand, but for where pip installs; timed."""
    monkeypatch.chdir(tmp_path)
    site, began = tmp_path / "site", time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)]), "COLUMNS": "200"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    said = ""
    (commands,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for command in commands.splitlines():
        words = shlex.split(command)
        if words[:2] == ["pip", "install"]:  # not into the environment that is running
            words = [*pip, "--target", str(site), *(word for word in words[2:] if word != "--editable")]
        else:
            assert words[0] == "snn-rules"
            words = [*RUN, *words[1:]]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        said = done.stdout
    print(f"from an empty folder to a green kit: {time.perf_counter() - began:.0f} s")
    assert re.search(r"stbp: \d+ checks ran in [\d.]+ s, \d skipped, 0 expected to fail, 0 failed", said), said
    assert not re.search(r"equals_its_reference\s+skipped", said)

    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "snn-rules-stbp", "-k", "is_a_value or explains or has_kernels"]
    done = subprocess.run(tests, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr


def test_new_writes_a_distribution_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new", "two_words", "--author", "Ada"])
    assert result.exit_code == 0 and "snn-rules check two_words" in result.stdout, result.output
    folder = tmp_path / "snn-rules-two-words"
    written = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert {"LICENSE", "README.md", ".github/workflows/test.yml", "snn_rules_two_words/reference.py", "tests/test_two_words.py"} <= set(written)
    assert "class TwoWords(LearningRule)" in written["snn_rules_two_words/rule.py"] and "Ada" in written["LICENSE"]
    assert 'two_words = "snn_rules_two_words.rule"' in written["pyproject.toml"] and "${{ matrix.python }}" in written[".github/workflows/test.yml"]
    assert f'dependencies = ["snn-rules>={snn_rules.__version__}"]' in written["pyproject.toml"] and written["snn_rules_two_words/py.typed"] == ""
    (snippet,) = re.findall(r"```python\n(.*?)```", written["README.md"], re.DOTALL)
    assert snippet.startswith("import snn_rules\n")
    for path, text in written.items():
        assert not re.search(r"\$(?!\{\{)", text), path
        if path.endswith(".py"):
            compile(text, path, "exec")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My-Rule", "new: 'My-Rule' cannot name a rule; use lower-case letters, digits and single underscores, such as my_rule"),
        ("none", "new: 'none' cannot name a rule"),
        ("tssl", "new: there is a rule 'tssl' already, of snn-rules-tssl; two distributions cannot share a name: choose another"),
    ],
)
def test_names_that_cannot_be(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(snn_rules.RuleError, match=re.escape(says)):
        new(name, "", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_an_author_of_two_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(snn_rules.RuleError, match=r"^new: --author 'Ada\\nand others' should stand on one line$"):
        new("mine", "Ada\nand others", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    new("mine", "", tmp_path / "mine")
    with pytest.raises(snn_rules.RuleError, match=r"mine' is there already and not empty; pass another --out"):
        new("mine", "", tmp_path / "mine")
