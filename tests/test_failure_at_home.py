"""Failure stays at home: whatever a stranger's plugin does, that rule alone is out, and the message says whose it is and what to do."""

import builtins
import dataclasses
import importlib
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import neuron

import snn_rules
from snn_rules import API, RuleError
from snn_rules import neuron as ours
from snn_rules.registry import Registry

Install = Callable[..., Path]

# ---- plugins that do not work --------------------------------------------------------------------------------------

HOOK = "@snn_rules.hookimpl\ndef learning_rule():\n    return "
BROKEN = {
    "import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "syntax": ("def learning_rule(", "SyntaxError: '(' was never closed"),
    "silent": ("raise AssertionError", "AssertionError"),
    "long": (r"raise ImportError('two\nlines,\n  indented')", "ImportError: two lines, indented"),
    "exit": ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
    "misspelt": (("def learning_rule", "def learning_rules"), "PluginValidationError: unknown hook 'learning_rules' in plugin"),
    "arguments": (("learning_rule()", "learning_rule(tau)"), "PluginValidationError: Plugin 'NAME' for hook 'learning_rule'"),
    "unmarked": (("@hookimpl", ""), "TypeError: the plugin has no hook learning_rule, or it returns None; mark one with"),
    "none": (f"import snn_rules\n{HOOK}None", "TypeError: the plugin has no hook learning_rule, or it returns None; mark one with"),
    "raising": (f"import snn_rules\n{HOOK}1 / 0", "ZeroDivisionError: division by zero"),
    "instance": (("return Rule", "return Rule()"), "TypeError: a rule should be a subclass of LearningRule, not Rule("),
    "unrelated": (f"import snn_rules\n{HOOK}int", "TypeError: a rule should be a subclass of LearningRule, not <class 'int'>"),
    "older": (("name =", "api = 0; name ="), f"TypeError: Rule is written for API 0, this is API {API}: upgrade that distribution"),
    "newer": (("name =", "api = 99; name ="), f"TypeError: Rule is written for API 99, this is API {API}: upgrade snn-rules"),
    "unnamed": (('name = "NAME"', ""), "TypeError: Rule has no name; give it one"),
    "without v": (('name = "NAME"', 'name = "NAME"\n    state = {"u": 0.0}'), "RuleError: NAME: its state has no 'v', the potential that node.v and"),
    "renamed": (("NAME", "tsslx"), "TypeError: its class Rule says name = 'tsslx', its entry point 'NAME'"),
    "plain": (("@dataclass(frozen=True)", ""), "TypeError: Rule has parameters but is no dataclass; decorate it with"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_out_and_the_others_work(registry: Registry, install: Install, fault: str) -> None:
    body, reason = BROKEN[fault]
    path, whole = install("broken", body), install("whole")
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

    path.write_text(whole.read_text().replace("whole", "broken"))
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


# ---- plugins that do to the process what they should not -------------------------------------------------------------

IMPORTS = "from dataclasses import dataclass"  # the first line of a good plugin; what stands before it runs at import


def doing(what: str) -> tuple[str, str]:
    return IMPORTS, f"{what}\n{IMPORTS}"


def test_a_plugin_that_prints_at_import(registry: Registry, install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("loud", doing("print('thank you for choosing loud')"))
    says = r"rule 'loud' of stub-loud 1\.0 prints 'thank you for choosing loud' while it is imported; that was kept off stdout: tell its authors"
    with pytest.warns(UserWarning, match=says):
        assert snn_rules.get_rule("loud").name == "loud"
    assert capsys.readouterr().out == ""
    with warnings.catch_warnings(action="error"):  # said once
        snn_rules.get_rule("loud")


def test_a_plugin_that_is_slow_to_import(registry: Registry, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("slow", doing("import time; time.sleep(0.1)"))
    install("quick")
    monkeypatch.setattr("snn_rules.registry.SLOW", 0.05)
    registry.rules()  # imports nothing, so it does not wait
    assert "stub_slow" not in sys.modules
    says = r"rule 'slow' of stub-slow 1\.0 takes 0\.\d s to import: tell its authors, or leave it out with SNN_RULES_DISABLE=slow"
    with pytest.warns(UserWarning, match=says):
        assert snn_rules.get_rule("slow").name == "slow"
    assert registry.rules()["slow"].error is None


PATCHES = {
    "function": ("import torch; torch.nn.functional.linear = lambda *_: None", "torch.nn.functional.linear"),
    "method": ("import torch; torch.nn.Module.zero_grad = lambda self: None", "torch.nn.modules.module.Module.zero_grad"),
    "neuron": (
        "import spikingjelly.activation_based.neuron as n\nn.LIFNode.forward = lambda self, x: None",
        f"{neuron.LIFNode.__module__}.LIFNode.forward",
    ),
    "class": ("import snn_rules.neuron as n\nclass Mine(n.RuleNode): pass\nn.RuleNode = Mine", "snn_rules.neuron.RuleNode"),
    "wrapped": (
        "import functools, torch\nold = torch.nn.functional.relu\n@functools.wraps(old)\ndef new(*a): return old(*a)\ntorch.nn.functional.relu = new",
        "torch.nn.functional.relu",
    ),
    "builtin": ("import builtins; builtins.print = lambda *_: None", "builtins.print"),
    "dtype": ("import torch; torch.set_default_dtype(torch.float64)", "torch's default dtype"),
    "grad": ("import torch; torch.set_grad_enabled(False)", "torch's grad mode"),
}


def shared() -> list[object]:
    return [F.linear, F.relu, torch.nn.Module.zero_grad, neuron.LIFNode.forward, ours.RuleNode, builtins.print]


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("fails", [False, True], ids=["imports", "fails"])
def test_a_plugin_that_patches_others_is_out_and_undone(registry: Registry, install: Install, patch: str, fails: bool) -> None:
    code, what = PATCHES[patch]
    install("patcher", doing(code + ("\nraise ValueError('too late')" if fails else "")))
    before = shared()
    with pytest.raises(RuleError) as refusal:
        snn_rules.get_rule("patcher")
    reason = "ValueError: too late" if fails else f"ImportError: its import changes {what}, on which all other rules stand; that was undone"
    assert f"rule 'patcher' of stub-patcher 1.0 cannot be loaded: {reason}" in str(refusal.value)
    assert str(refusal.value).endswith("; mend or uninstall that distribution")
    assert all(now is was for now, was in zip(shared(), before, strict=True))
    assert torch.get_default_dtype() is torch.float32 and torch.is_grad_enabled()
    assert snn_rules.get_rule("tssl").name == "tssl"


def uninstall(path: Path) -> None:
    path.unlink()
    (info,) = path.parent.glob(f"{path.stem}-*.dist-info")
    shutil.rmtree(info)
    importlib.invalidate_caches()


def test_a_plugin_that_is_uninstalled_after_it_was_loaded(registry: Registry, install: Install) -> None:
    path = install("leaving")
    rule = snn_rules.get_rule("leaving")
    uninstall(path)
    info = registry.rules()["leaving"]
    assert (info.distribution, info.version, info.loaded) == ("stub-leaving", "1.0", True)
    assert info.error == "stub-leaving 1.0 was uninstalled; what is loaded works until this process ends"
    assert snn_rules.get_rule("leaving", tau_m=3.0) == rule.replace(tau_m=3.0)


def test_a_plugin_that_is_uninstalled_before_it_was_loaded(registry: Registry, install: Install) -> None:
    path = install("leaving")
    assert registry.rules()["leaving"].error is None
    uninstall(path)
    assert "leaving" not in registry.rules()
    says = "rule 'leaving' of stub-leaving was uninstalled since this process began; pip install stub-leaving brings it back"
    with pytest.raises(RuleError, match=f"^{says}$"):
        snn_rules.get_rule("leaving")
    install("leaving")
    assert snn_rules.get_rule("leaving").name == "leaving"
