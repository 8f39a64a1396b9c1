"""The rules of the house: small files, everything public explained, one version everywhere, documents that hold true."""

import ast
import importlib.metadata
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest

import snn_rules
from snn_rules.hookspecs import LearningRuleSpec

ROOT = Path(__file__).parents[1]
FOLDERS = ("snn_rules", "plugins", "tests", "examples", "benchmarks", ".ci")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_no_file_is_longer_than_300_lines() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := path.read_text(encoding="utf-8").count("\n")) > 300}
    assert not long


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "snn_rules")], ids=lambda path: path.stem)
def test_every_module_of_the_core_says_what_it_is(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert importlib.import_module(module).__doc__


# ---- what is public ------------------------------------------------------------------------------------------------


def test_all_is_what_resolves() -> None:
    assert snn_rules.__all__ == sorted(set(snn_rules.__all__))
    assert set(snn_rules.__all__) == set(snn_rules._PUBLIC)
    assert set(snn_rules.__all__) <= set(dir(snn_rules))
    for name, module in snn_rules._PUBLIC.items():
        assert getattr(snn_rules, name) is getattr(importlib.import_module(f"snn_rules.{module}"), name)
    with pytest.raises(AttributeError, match="module 'snn_rules' has no attribute 'no_such_name'"):
        snn_rules.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", sorted(snn_rules.__all__))
def test_every_public_name_is_documented(name: str) -> None:
    thing = getattr(snn_rules, name)
    if inspect.isclass(thing):
        own = [attribute for attribute, value in vars(thing).items() if inspect.isfunction(value) and not attribute.startswith("_")]
        mute = [attribute for attribute in own if not inspect.getdoc(getattr(thing, attribute))]
        assert "__doc__" in vars(thing)
        assert not mute, f"{name}: {', '.join(mute)}"
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__doc__
        assert not thing.__doc__.startswith(f"{name}("), "a dataclass wrote this docstring, no person did"


@pytest.mark.parametrize("hook", [name for name in vars(LearningRuleSpec) if not name.startswith("_")])
def test_every_hook_is_documented(hook: str) -> None:
    assert inspect.getdoc(getattr(LearningRuleSpec, hook))
    assert inspect.signature(getattr(LearningRuleSpec, hook)).return_annotation is not inspect.Signature.empty
    assert f"def {hook}" in read("docs/write-a-rule.md")


# ---- what is written -----------------------------------------------------------------------------------------------


def test_one_version_everywhere() -> None:
    version = snn_rules.__version__
    assert re.search(rf"^## \[{re.escape(version)}\]", read("CHANGELOG.md"), re.MULTILINE)
    assert re.search(rf"^version: {re.escape(version)}$", read("CITATION.cff"), re.MULTILINE)
    for plugin in PLUGINS:
        project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
        assert project["version"] == version, project["name"]


def test_the_papers_of_the_bundled_rules_are_cited() -> None:
    cited = read("CITATION.cff").lower()
    for plugin in PLUGINS:
        title = snn_rules.get_rule(plugin.name).cite.split(". ")[-2].rstrip(".")
        assert title.lower() in cited
        assert title.lower() in re.sub(r"\s+", " ", (plugin / "README.md").read_text().lower())


def test_the_mathematics_of_each_rule_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / ".ci")
    count = importlib.import_module("rule_lines")
    found = {name: count.lines(ROOT / folder) for name, folder in count.RULES.items()}
    assert len(found) == 5 and all(10 < lines < 80 for lines in found.values()), found


def test_what_the_core_imports_is_what_it_depends_on() -> None:
    source = (ROOT / ".ci" / "hatch_metadata.py").read_text()
    (declared,) = (
        ast.literal_eval(node.value) for node in ast.parse(source).body if isinstance(node, ast.Assign) and "DEPENDENCIES" in ast.dump(node)
    )
    imported = set()
    for path in (ROOT / "snn_rules").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    owners = importlib.metadata.packages_distributions()
    needed = {owners[name][0] for name in imported - sys.stdlib_module_names - {"snn_rules"}}
    optional = {"pytest"}  # for whoever decorates tests with parametrize_with_checks
    assert {re.split(r"[<>=]", name)[0] for name in declared} == needed - optional
