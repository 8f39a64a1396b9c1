"""How rules are found, loaded, refused and registered. Stub distributions stand in for strangers' plugins."""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import snn_rules
from snn_rules import API, LearningRule, RuleError, hookimpl, parameter
from snn_rules.registry import Registry

BUNDLED = {"stdbp": "snn-rules-stdbp", "strsbp": "snn-rules-strsbp", "tssl": "snn-rules-tssl"}
GOOD = """
from dataclasses import dataclass
from snn_rules import LearningRule, hookimpl, parameter

@dataclass(frozen=True)
class Rule(LearningRule):
    tau_m: float = parameter(5.0, "steps", "membrane time constant", low=1.0)
    name = "NAME"

@hookimpl
def learning_rule():
    return Rule
"""

Install = Callable[..., Path]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The bundled rules as a new process finds them, for get_rule, too; other plugins of this environment are left out."""
    monkeypatch.delenv("SNN_RULES_DISABLE", raising=False)
    fresh = Registry()
    monkeypatch.setenv("SNN_RULES_DISABLE", ",".join(set(fresh.rules()) - {"surrogate", *BUNDLED}))
    monkeypatch.setattr("snn_rules.registry._registry", fresh)
    return fresh


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a distribution `stub-NAME` of one module; returns the module's path."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def stub(name: str, body: str = GOOD, *, distribution: str = "", version: str = "1.0", metadata: bool = True) -> Path:
        distribution = distribution or f"stub-{name}"
        module = distribution.replace("-", "_")
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[snn_rules]\n{name} = {module}\n")
        path = tmp_path / f"{module}.py"
        path.write_text(body.replace("NAME", name))
        return path

    yield stub
    for module in set(sys.modules) - before:
        if module.startswith("stub_"):
            del sys.modules[module]


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


def test_rules_answers_quickly_with_fifty_plugins(registry: Registry, install: Install) -> None:
    for k in range(50):
        install(f"many{k:02}")
    registry.rules()  # the first listing of the folders of sys.path is the file system's time
    began = time.perf_counter()
    assert len(registry.rules()) == 54
    assert time.perf_counter() - began < 1.0  # measured: 0.05 s
    assert not any(module.startswith("stub_") for module in sys.modules)


# ---- options and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "hint"), [("tsl", "Did you mean 'tssl'?"), ("TSSL-BP", "Did you mean 'tssl'?"), ("STDBP", "Did you mean 'stdbp'?"), ("backprop", "")]
)
def test_an_unknown_rule_is_refused_with_the_list(registry: Registry, given: str, hint: str) -> None:
    with pytest.raises(RuleError) as refusal:
        snn_rules.get_rule(given)
    assert str(refusal.value) == f"unknown rule {given!r}; installed are stdbp, strsbp, surrogate, tssl. {hint}".strip()


def test_what_is_no_rule_is_refused() -> None:
    with pytest.raises(RuleError, match=r"rule=5 should be a name, one of stdbp, .*, or a LearningRule"):
        snn_rules.get_rule(5)  # type: ignore[arg-type]


# ---- plugins that do not work --------------------------------------------------------------------------------------

HOOK = "@snn_rules.hookimpl\ndef learning_rule():\n    return "
BROKEN = {
    "import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "syntax": ("def learning_rule(", "SyntaxError: '(' was never closed"),
    "silent": ("raise AssertionError", "AssertionError: "),
    "exit": ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
    "misspelt": (GOOD.replace("def learning_rule", "def learning_rules"), "PluginValidationError: unknown hook 'learning_rules' in plugin"),
    "arguments": (GOOD.replace("learning_rule()", "learning_rule(tau)"), "PluginValidationError: Plugin 'NAME' for hook 'learning_rule'"),
    "unmarked": (GOOD.replace("@hookimpl", ""), "TypeError: the plugin has no hook learning_rule, or it returns None; mark one with"),
    "none": (f"import snn_rules\n{HOOK}None", "TypeError: the plugin has no hook learning_rule, or it returns None; mark one with"),
    "raising": (f"import snn_rules\n{HOOK}1 / 0", "ZeroDivisionError: division by zero"),
    "instance": (GOOD.replace("return Rule", "return Rule()"), "TypeError: a rule should be a subclass of LearningRule, not Rule("),
    "unrelated": (f"import snn_rules\n{HOOK}int", "TypeError: a rule should be a subclass of LearningRule, not <class 'int'>"),
    "older": (GOOD.replace("name =", "api = 0; name ="), f"TypeError: Rule is written for API 0, this is API {API}: upgrade that distribution"),
    "newer": (GOOD.replace("name =", "api = 99; name ="), f"TypeError: Rule is written for API 99, this is API {API}: upgrade snn-rules"),
    "unnamed": (GOOD.replace('name = "NAME"', ""), "TypeError: Rule has no name; give it one"),
    "renamed": (GOOD.replace("NAME", "tsslx"), "TypeError: its class Rule says name = 'tsslx', its entry point 'NAME'"),
    "plain": (GOOD.replace("@dataclass(frozen=True)", ""), "TypeError: Rule has parameters but is no dataclass; decorate it with"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_out_and_the_others_work(registry: Registry, install: Install, fault: str) -> None:
    body, reason = BROKEN[fault]
    path = install("broken", body)
    install("whole")
    for _ in range(2):  # asked again, it says the same
        with pytest.raises(RuleError) as refusal:
            snn_rules.get_rule("broken")
        assert str(refusal.value).startswith(f"rule 'broken' of stub-broken 1.0 cannot be loaded: {reason.replace('NAME', 'broken')}")
        assert str(refusal.value).endswith("; mend or uninstall that distribution")
        assert type(refusal.value.__cause__).__name__ == reason.partition(":")[0]
    info = registry.rules()["broken"]
    assert (info.loaded, info.distribution, info.version) == (False, "stub-broken", "1.0")
    assert info.error is not None
    assert info.error.startswith(reason.replace("NAME", "broken"))
    assert snn_rules.get_rule("whole").name == "whole"
    assert snn_rules.get_rule("surrogate").name == "surrogate"

    path.write_text(GOOD.replace("NAME", "broken"))
    assert snn_rules.get_rule("broken", tau_m=2).tau_m == 2.0
    assert registry.rules()["broken"] == dataclasses.replace(info, loaded=True, error=None)


def test_an_interrupt_is_not_swallowed(registry: Registry, install: Install) -> None:
    install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        snn_rules.get_rule("slow")
    assert registry.rules()["slow"].error is None


def test_two_distributions_that_claim_one_name(registry: Registry, install: Install) -> None:
    install("twice", distribution="stub-b")
    install("twice", distribution="stub-a")
    install("whole")
    reason = "rule 'twice' is claimed by stub-a and stub-b; uninstall one of them"
    assert registry.rules()["twice"].error == reason
    with pytest.raises(RuleError, match=f"^{reason}$"):
        snn_rules.get_rule("twice")
    assert not {"stub_a", "stub_b"} & sys.modules.keys()
    assert snn_rules.get_rule("whole").name == "whole"


def test_a_distribution_that_is_seen_twice_is_one(registry: Registry, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("again")
    stale = tmp_path / "stale" / "Stub.Again-0.9.dist-info"
    stale.mkdir(parents=True)
    (stale / "METADATA").write_text("Metadata-Version: 2.1\nName: Stub.Again\nVersion: 0.9\n")
    (stale / "entry_points.txt").write_text("[snn_rules]\nagain = stub_again\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(stale.parent)])
    assert registry.rules()["again"].error is None
    assert registry.rules()["again"].version == "1.0"
    assert snn_rules.get_rule("again").name == "again"


def test_a_stranger_does_not_take_the_baseline(registry: Registry, install: Install) -> None:
    install("surrogate")
    reason = "rule 'surrogate' belongs to snn-rules, but stub-surrogate claims it too; uninstall it"
    assert registry.rules()["surrogate"].error == reason
    with pytest.raises(RuleError, match=f"^{reason}$"):
        snn_rules.get_rule("surrogate")


def test_a_half_removed_distribution_stops_nothing(registry: Registry, install: Install) -> None:
    install("leftover", metadata=False).unlink()
    assert registry.rules()["leftover"].distribution == "a distribution without a name"
    with pytest.raises(RuleError, match=r"rule 'leftover' of a distribution without a name .*No module named 'stub_leftover'"):
        snn_rules.get_rule("leftover")


def test_a_mended_helper_module_is_read_again(registry: Registry, install: Install, tmp_path: Path) -> None:
    package = tmp_path / "stub_pack"
    install("pack").rename(tmp_path / "rule.py")
    package.mkdir()
    (tmp_path / "rule.py").rename(package / "rule.py")
    (package / "__init__.py").write_text("from .helper import value\nfrom .rule import learning_rule\n")
    (package / "helper.py").write_text("")
    with pytest.raises(RuleError, match="cannot import name 'value'"):
        snn_rules.get_rule("pack")
    (package / "helper.py").write_text("value = 1\n")
    assert snn_rules.get_rule("pack").name == "pack"


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
