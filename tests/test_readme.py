"""The README and the pages of docs/ hold true: their code runs, their commands are understood, their links lead somewhere."""

import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from snn_rules.cli import app
from snn_rules.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")
ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
COMMANDS = sorted({line.partition("#")[0].strip() for text in PAGES.values() for line in re.findall(r"^    (snn-rules .*)$", text, re.MULTILINE)})
SMALL = ["--dataset", "digits", "--network", "6-10", "--limit-train", "20", "--batch-size", "20", "--epochs", "1", "--T", "4"]  # the last one wins
LENS = ["--dataset", "digits", "--network", "6-10", "--samples", "20", "--T", "4"]


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_the_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"^    snn-rules (train .* --out .*)$", PAGES[page], re.MULTILINE):  # what the code may load
        assert CliRunner().invoke(app, [*shlex.split(command), *SMALL]).exit_code == 0
    for name, value in {"_registry": (own := Registry()), "rules": own.rules, "register": own.register}.items():
        monkeypatch.setattr(f"snn_rules.registry.{name}", value)  # what a page registers ends with it
    torch.manual_seed(0)
    space: dict[str, object] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        exec(compile(block, page, "exec"), space)


def test_pages_have_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"list", "info", "train", "compare", "lens", "doctor", "check", "new", "bench"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    small = {
        "train": SMALL,
        "compare": [*SMALL, "--seeds", "0"],
        "lens": LENS,
        "check": ["--only", "is_a_value"],
        "bench": ["--tables", "starts", "--rules", "tssl"],
    }.get(words[0], [])
    result = CliRunner().invoke(app, [*words, *small])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert re.match(r"https?://", target) or (folder / target).exists(), target


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target for text in PAGES.values() for target in re.findall(r"^    make (\w+)|`make (\w+)`", text, re.MULTILINE) for target in target if target
    }
    assert named and named <= targets and os.access(ROOT / ".ci" / "run", os.X_OK)
