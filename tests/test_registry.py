"""How rules are found, loaded and registered. Stub distributions (conftest.py) stand in for strangers' plugins."""

import dataclasses
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import snn_rules
from snn_rules import API, LearningRule, RuleError, hookimpl, parameter
from snn_rules.registry import Registry

BUNDLED = {"stdbp": "snn-rules-stdbp", "strsbp": "snn-rules-strsbp", "tssl": "snn-rules-tssl"}
Install = Callable[..., Path]


# ---- what is imported ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["dir(snn_rules)", "snn_rules.rules()", "snn_rules.RuleError, snn_rules.parameter, snn_rules.hookimpl"])
def test_what_needs_no_torch_imports_neither_torch_nor_a_plugin(code: str) -> None:
    code = f"import sys, snn_rules; {code}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    loaded = set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    assert "snn_rules" in loaded
    assert not {"torch", "spikingjelly", "numpy", "matplotlib", *(module for module in loaded if module.startswith("snn_rules_"))} & loaded


def test_the_bundled_rules_are_found_with_their_distributions(registry: Registry) -> None:
    found = registry.rules()
    assert {name: info.distribution for name, info in found.items()} == {"surrogate": "snn-rules", **BUNDLED}
    assert all(info.name == name and info.version and not info.loaded and info.error is None for name, info in found.items())


def test_get_rule_imports_that_plugin_and_no_other(registry: Registry, install: Install) -> None:
    install("one")
    install("two")
    assert snn_rules.get_rule("one", tau_m=7).tau_m == 7.0
    assert "stub_one" in sys.modules
    assert "stub_two" not in sys.modules
    assert [info.name for info in registry.rules().values() if info.loaded] == ["one"]


def test_a_plugin_may_load_another_rule_while_it_is_imported(registry: Registry, install: Install) -> None:
    install("base")
    derived = "from dataclasses import dataclass\nimport snn_rules\n@dataclass(frozen=True)\n"
    derived += "class Rule(type(snn_rules.get_rule('base'))):\n    name = 'NAME'\n"
    install("derived", derived + "@snn_rules.hookimpl\ndef learning_rule():\n    return Rule\n")
    assert snn_rules.get_rule("derived", tau_m=3).tau_m == 3.0
    assert {"base", "derived"} <= registry.classes.keys()


def test_list_answers_at_once_with_fifty_plugins(install: Install, tmp_path: Path) -> None:
    """Without torch, SpikingJelly or a plugin, and in 0.3 s of a whole process where one that imports typer, rich and pluggy takes 0.09 s:
    the bound is their ratio, since a busy machine stretches processor time, too. The best of each counts."""
    for k in range(50):
        install(f"many{k:02}")
    code = (
        "import sys; from snn_rules.cli import app\ntry: app(['list'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'spikingjelly', *(m for m in sys.modules if m.startswith('stub_'))} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))}
    peer, seconds = "import pluggy, rich.console, rich.table, typer", dict[str, list[float]]()
    while len(seconds.get(code, [])) < 12 and not (seconds and min(seconds[code]) < 3.3 * min(seconds[peer])):
        for text in (peer, code):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            listed = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True, env=environment).stdout
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.setdefault(text, []).append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "many49" in listed and "tssl" in listed
    assert min(seconds[code]) < 3.3 * min(seconds[peer]), seconds


def test_the_package_adds_little_to_the_import_of_torch_and_spikingjelly() -> None:
    code = (
        "import time; began = time.process_time()\n"
        "import torch, spikingjelly.activation_based.neuron, spikingjelly.activation_based.layer; stock = time.process_time() - began\n"
        "began = time.process_time(); import snn_rules; first = time.process_time() - began\n"
        "snn_rules.RuleNode, snn_rules.convert, snn_rules.rules(); print(stock, first, time.process_time() - began)"
    )
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True).stdout
    stock, first, all_names = map(float, said.split())  # a busy machine stretches all alike
    assert first < 0.02 * stock and all_names < 0.15 * stock, said


# ---- options and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "meant"), [("tsl", "tssl"), ("TSSL-BP", "tssl"), ("STDBP", "stdbp"), ("backprop", None)])
def test_an_unknown_rule_is_refused_with_the_list(registry: Registry, given: str, meant: str | None) -> None:
    with pytest.raises(RuleError) as refusal:
        snn_rules.get_rule(given)
    hint = f" (did you mean {meant!r}?)" if meant else ""
    assert str(refusal.value) == f"unknown rule {given!r}{hint}; installed are stdbp, strsbp, surrogate, tssl"


def test_what_is_no_rule_is_refused() -> None:
    with pytest.raises(RuleError, match=r"rule=5 should be a name, one of stdbp, .*, or a LearningRule"):
        snn_rules.get_rule(5)  # type: ignore[arg-type]


def test_disabled_rules_are_left_out(registry: Registry, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("broken", "import no_such_module")
    monkeypatch.setenv("SNN_RULES_DISABLE", "broken, tssl,")
    assert set(registry.rules()) == {"surrogate", "stdbp", "strsbp"}
    for name in ("broken", "tssl"):
        with pytest.raises(RuleError, match=f"rule {name!r} is left out by SNN_RULES_DISABLE='broken, tssl,'"):
            snn_rules.get_rule(name)
    assert snn_rules.get_rule("surrogate").name == "surrogate"
    monkeypatch.delenv("SNN_RULES_DISABLE")
    assert "broken" in registry.rules()


# ---- registration by hand ------------------------------------------------------------------------------------------


def made(called: str, default: float = 5.0) -> type[LearningRule]:
    @dataclasses.dataclass(frozen=True)
    class Mine(LearningRule):
        tau_m: float = parameter(default, "steps", "membrane time constant", low=1.0)
        name = called

    return Mine


def test_a_rule_registered_by_hand_works_like_an_installed_one(registry: Registry) -> None:
    cls = made("mine")
    assert registry.register(cls) is cls  # so it decorates
    info = registry.rules()["mine"]
    assert (info.loaded, info.error) == (True, None)
    assert info.distribution == f"registered by {__name__}"
    assert type(snn_rules.get_rule("mine", tau=3)) is cls


def test_registering_again_replaces_and_a_bad_class_does_not(registry: Registry) -> None:
    registry.register(made("mine"))
    better = registry.register(made("mine", 9.0))
    assert snn_rules.get_rule("mine").tau_m == 9.0

    worse = made("mine")
    worse.api = 99
    with pytest.raises(RuleError, match=r"cannot be registered: .* is written for API 99"):
        registry.register(worse)
    assert registry.rule_class("mine") is better


@pytest.mark.parametrize("name", ["surrogate", "tssl"])
def test_an_installed_name_is_not_for_registering(registry: Registry, name: str) -> None:
    with pytest.raises(RuleError, match=f"rule {name!r} is already installed; choose another name for .*Mine"):
        registry.register(made(name))
    assert not registry.classes


@pytest.mark.parametrize("wrong", [int, LearningRule, "tssl", None])
def test_what_is_no_rule_cannot_be_registered(registry: Registry, wrong: type[LearningRule]) -> None:
    before = registry.rules()
    with pytest.raises(RuleError, match="cannot be registered: "):
        registry.register(wrong)
    assert registry.rules() == before
    registry.register(made("mine"))  # nothing stayed behind that would spoil the next one
    assert snn_rules.get_rule("mine").tau_m == 5.0


def test_the_hook_marker_and_the_api_number_are_public() -> None:
    assert hookimpl.project_name == "snn_rules"
    assert LearningRule.api == API == 1
