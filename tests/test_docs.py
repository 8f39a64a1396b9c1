"""The pages of docs/: what is generated is fresh, every public name has its place."""

import dataclasses
import fnmatch
import re
from pathlib import Path

import pytest
from cogapp import Cog

import snn_rules

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_generated_parts_are_fresh(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert Cog().main(["cog", "--check", "-I", ".ci", *map(str, PAGES)]) == 0, f"{capsys.readouterr().out}run make docs"


def test_a_stale_part_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    stale = tmp_path / "README.md"
    stale.write_text((ROOT / "README.md").read_text().replace("| m, s |", "| m |"))
    assert Cog().main(["cog", "--check", "-I", ".ci", str(stale)]) != 0


def test_every_public_name_is_in_the_api() -> None:
    said = "\n".join(page.read_text() for page in PAGES)
    shown = set(re.findall(r"^::: snn_rules\.(?:registry\.Registry\.)?(\w+)$", said, re.MULTILINE))
    assert set(snn_rules.__all__) <= shown


@pytest.mark.parametrize("rule", ["surrogate", "tssl", "strsbp", "stdbp"])
def test_every_rule_has_a_page_with_its_parameters_and_its_code(rule: str) -> None:
    page = (ROOT / "docs" / "rules" / f"{rule}.md").read_text()
    shown = re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)
    cls = type(snn_rules.get_rule(rule))
    wanted = {"step", *(sweep.name for sweep in vars(cls).values() if isinstance(sweep, snn_rules.rule.Sweep) and sweep.name != "count")}
    assert {f"{cls.__module__}.{cls.__qualname__}.{name}" for name in wanted} <= set(shown)
    refused = {"decay_input"} if rule == "stdbp" else set()  # which has no tau_m to divide by
    assert "```math" in page and all(
        (f"| `{name}` |" in page) == (name not in refused) for name in (field.name for field in dataclasses.fields(snn_rules.get_rule(rule)))
    )


def test_every_tool_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "tools.md").read_text()
    there = [name for path in (ROOT / "tests").glob("test_*.py") for name in (path.name, *re.findall(r"^def (test_\w+)", path.read_text(), re.M))]
    named = set(re.findall(r"`(test_[\w*.]+)`", page))
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| tool", "|---"))]
    assert all("`test_" in row.rpartition(" | ")[2] for row in rows) and len(rows) > 20
    assert not {name for name in named if not fnmatch.filter(there, name)}
