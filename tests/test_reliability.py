"""docs/reliability.md: the tests that it names exist, and its numbers are theirs."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "reliability.md").read_text()


def functions_in(path: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_tests_that_exist() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`((?:tests|plugins)/[\w/]+\.py)(?:::(\w+))?`", row.split("|")[-2])
        assert named, row
        for path, name in named:
            assert (ROOT / path).is_file() and (not name or name in functions_in(path)), f"{path}::{name}"


def test_no_test_of_faults_is_left_out() -> None:
    for path in ("tests/test_faults.py", "tests/test_kill.py"):
        assert {name for name in functions_in(path) if name.startswith("test_")} <= set(re.findall(rf"{path}::(\w+)", TEXT))


def test_the_numbers_of_cases() -> None:
    source = (ROOT / "tests" / "test_faults_properties.py").read_text()
    kernels, torch = re.findall(r"else \((\d+), (\d+)\)", source)[0]
    assert f"at least {torch} cases a rule." in TEXT and f"at least {kernels} cases a rule, and {kernels} of spike" in TEXT
