"""The conformance kit: the baseline passes it, planted faults fail the check that is named for them, and what it says is plain."""

import dataclasses
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from snn_rules_tssl import reference as by_loops
from snn_rules_tssl.rule import TSSL
from spikingjelly.activation_based import neuron
from typer.testing import CliRunner

import snn_rules
from snn_rules.cli import app
from snn_rules.ops import exp, heaviside, spike
from snn_rules.registry import Registry
from snn_rules.rule import LearningRule, RuleError, Values, sweep
from snn_rules.surrogate import Surrogate
from snn_rules.testing import CHECKS, CheckError, check_rule, parametrize_with_checks
from snn_rules.testing.kit import EXPECTED, FAILED, PASSED, SKIPPED, run_checks


def lif_node(rule: Any, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SpikingJelly's own neuron and its surrogate gradient."""
    leaf = torch.from_numpy(x).requires_grad_()
    spikes = neuron.LIFNode(tau=rule.tau_m, decay_input=False, step_mode="m")(leaf)
    spikes.backward(torch.from_numpy(g))
    assert leaf.grad is not None
    return spikes.detach().numpy(), leaf.grad.numpy()


@parametrize_with_checks(["surrogate"], reference=lif_node)
def test_the_baseline(rule: LearningRule, check: Any) -> None:
    check(rule)


def test_every_check_has_a_name_and_a_reason_of_one_line() -> None:
    assert len(CHECKS) >= 20
    for check in CHECKS.values():
        assert check.reason.endswith(".") and "\n" not in check.reason and len(check.reason) < 150, check.name


# ---- planted faults --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Copy(TSSL):
    """A copy of a rule; the faults below are planted into its sweep or its step."""

    name: ClassVar[str] = "copy"
    sweeps: ClassVar[Any] = (TSSL.backward,)

    def between(self, sums: Any) -> Values:
        return {}


@dataclasses.dataclass(frozen=True)
class WrongSign(Copy):
    @sweep(reverse=True, **TSSL.backward.carry)
    def wrong(self, c: Any, m: Any) -> tuple[Values, Values]:
        put, carry = TSSL.backward.body(self, c, m)
        return {"dx": -put["dx"]}, carry

    sweeps = (wrong,)


@dataclasses.dataclass(frozen=True)
class MissingFactor(Copy):
    @sweep(reverse=True, **TSSL.backward.carry)
    def wrong(self, c: Any, m: Any) -> tuple[Values, Values]:
        _, carry = TSSL.backward.body(self, c, m)
        return {"dx": carry["b"]}, carry  # without 1 / tau_s

    sweeps = (wrong,)


@dataclasses.dataclass(frozen=True)
class OneStepLate(Copy):
    @sweep(reverse=True, **TSSL.backward.carry)
    def wrong(self, c: Any, m: Any) -> tuple[Values, Values]:
        _, carry = TSSL.backward.body(self, c, m)
        return {"dx": (1 / self.tau_s) * c.b}, carry  # what belongs to the step after

    sweeps = (wrong,)


@dataclasses.dataclass(frozen=True)
class LeakingBetweenSamples(Copy):
    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        s, state, saved = super().step(m, x)
        if isinstance(x, torch.Tensor) and x.dim() > 1:  # a traced step cannot do this: kernels see one neuron
            state["v"] = 0.9 * state["v"] + 0.1 * state["v"].roll(1, 0)
        return s, state, saved


LAST: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class LeakingThroughReset(Copy):
    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        kept = LAST.get("v", 0.0)
        s, state, saved = super().step(m, x + (kept if isinstance(x, torch.Tensor) and getattr(kept, "shape", None) == x.shape else 0.0))
        LAST["v"] = 0.5 * state["v"].detach() if isinstance(x, torch.Tensor) else 0.0
        return s, state, saved


@dataclasses.dataclass(frozen=True)
class SilentNeuronsForgotten(Copy):
    @sweep(reverse=True, **TSSL.backward.carry)
    def wrong(self, c: Any, m: Any) -> tuple[Values, Values]:
        put, carry = TSSL.backward.body(self, c, m)
        return {"dx": put["dx"] * heaviside(m.fired - 0.5)}, carry

    sweeps = (TSSL.count, wrong)


FAULTS: dict[type[Copy], set[str]] = {
    Copy: set(),
    WrongSign: {"equals_its_reference", "learns_a_toy_task"},
    MissingFactor: {"equals_its_reference"},
    OneStepLate: {"equals_its_reference"},
    LeakingBetweenSamples: {"rows_are_independent"},
    LeakingThroughReset: {"reset_restores"},
    SilentNeuronsForgotten: {"equals_its_reference", "silent_neurons_learn"},
}
LOOKS = ("reset_restores", "rows_are_independent", "silent_neurons_learn", "equals_its_reference", "learns_a_toy_task")


@pytest.mark.parametrize("planted", FAULTS, ids=lambda cls: cls.__name__)
def test_a_planted_fault_fails_its_check(planted: type[Copy], monkeypatch: pytest.MonkeyPatch) -> None:
    if planted.__name__.startswith("Leaking"):  # in a compiled kernel a step sees one neuron only; torch runs what a step may do
        monkeypatch.setattr("snn_rules.kernels.FORCED", "eager")
    if FAULTS[planted]:  # what cannot learn is not waited for
        monkeypatch.setattr("snn_rules.testing.mathematics.SECONDS", 1.0)
    LAST.clear()
    results = run_checks(planted(), reference=by_loops.spikes_and_gradient, only=LOOKS)
    failed = {result.check.name for result in results if result.outcome == FAILED}
    assert failed >= FAULTS[planted]
    assert FAULTS[planted] or not failed


@dataclasses.dataclass(frozen=True)
class SilentAtTheThreshold(Surrogate):
    """It fires above its threshold, where the reference fires at it."""

    name: ClassVar[str] = "late"

    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        return super().step(m, x - 1e-15)


def test_inputs_reach_the_threshold_exactly() -> None:
    (result,) = run_checks(SilentAtTheThreshold(), reference=lif_node, only=["equals_its_reference"])
    assert result.outcome == FAILED and result.why.startswith("spikes (T=12, torch.float64): 3 of 144 values differ, most at [0, "), result.why


@dataclasses.dataclass(frozen=True)
class OverflowsOnTorch(LearningRule):
    """Finite in kernels, whose exp ends at the largest number."""

    name: ClassVar[str] = "overflows"

    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        u = 0.5 * m.v + 1.5 / (1.0 + exp(-x))
        return spike(u - 1.0, 1.0), {"v": u}, {}


def test_extreme_inputs_are_tried_on_torch_too() -> None:
    (result,) = run_checks(OverflowsOnTorch(), only=["extreme_inputs_stay_finite"])
    assert (result.outcome, result.why) == (FAILED, "large negative input gives a gradient that is not finite on torch")


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_failures_are_one_error_and_expected_ones_none(capsys: pytest.CaptureFixture[str]) -> None:
    only = ("equals_its_reference", "is_a_value", "gradient_is_exact")
    with pytest.raises(CheckError) as error:
        check_rule(WrongSign(), reference=by_loops.spikes_and_gradient, only=only)
    assert "copy: 2 checks ran in " in str(error.value) and "1 skipped, 0 expected to fail, 1 failed" in str(error.value)
    assert "\n  equals_its_reference: dL/dx (T=12, torch.float64): " in str(error.value)
    capsys.readouterr()

    report = check_rule(WrongSign(), {"equals_its_reference": "a sign is wrong"}, by_loops.spikes_and_gradient, only)
    assert [result.outcome for result in report.results] == [PASSED, SKIPPED, EXPECTED]
    said = capsys.readouterr().out
    assert "copy: 2 checks ran in " in said and "1 skipped, 1 expected to fail, 0 failed" in said
    assert "  expected to fail: equals_its_reference: a sign is wrong" in said
    assert "  skipped: gradient_is_exact: its capabilities say exact=False" in said


def test_a_check_that_was_expected_to_fail_and_passes_is_a_failure() -> None:
    with pytest.raises(CheckError, match=r"is_a_value: it was expected to fail \(old\), and passes; take it out of expected_failed_checks"):
        check_rule("tssl", {"is_a_value": "old"}, only=["is_a_value"])


def test_misspelt_checks_are_refused() -> None:
    for how in ({"expected_failed_checks": {"is_value": ""}}, {"only": ["is_value"]}):
        with pytest.raises(RuleError, match="'is_value' is no check; there are imports_nothing_heavy, "):
            check_rule("tssl", **how)  # type: ignore[arg-type]


def test_without_a_reference_it_says_what_to_write() -> None:
    (result,) = run_checks(snn_rules.get_rule("surrogate"), only=["equals_its_reference"])
    assert result.outcome == SKIPPED and "write spikes_and_gradient(rule, x, g) in reference.py beside the rule" in result.why


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import pandas", "imports pandas; import it in the function that needs it"),
        ("print('hello')", "prints ['hello']; a program's output"),
        ("1 / 0", "fails in a new process: ['ZeroDivisionError: division by zero']"),
        ("import time\nwhile time.process_time() < 0.3: pass", " s beyond torch and SpikingJelly; do that work where it is needed"),
    ],
)
def test_a_heavy_import_is_caught(body: str, says: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("snn_rules.testing.behaviour.PROBE", PROBE)
    monkeypatch.setattr("snn_rules.testing.behaviour.SECONDS", 0.2)
    (tmp_path / "pandas.py").write_text("")
    (tmp_path / "heavy.py").write_text(body)
    from snn_rules.testing import behaviour

    module = type("Module", (), {"__spec__": object()})
    monkeypatch.setitem(sys.modules, "heavy", module)
    monkeypatch.setattr(Copy, "__module__", "heavy")
    behaviour._imports.cache_clear()
    (result,) = run_checks(Copy(), only=["imports_nothing_heavy"])
    assert result.outcome == FAILED and says in result.why, result.why
    behaviour._imports.cache_clear()


PROBE = """
import importlib, sys, time
before, began = set(sys.modules), time.process_time()
importlib.import_module(sys.argv[1])
print("\\n", time.process_time() - began, *{name.partition(".")[0] for name in set(sys.modules) - before})
"""  # without torch, which takes seconds


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snn_rules.console.out.width", 200)
    good = CliRunner().invoke(app, ["check", "stdbp", "--only", "is_a_value", "--only", "silent_neurons_learn", "--only", "gradient_is_exact"])
    assert good.exit_code == 0 and "1 skipped, 1 expected to fail, 0 failed" in good.stdout, good.output
    rows = {line.split()[0]: line for line in good.stdout.splitlines()}
    assert "passed" in rows["is_a_value"] and "expected to fail" in rows["silent_neurons_learn"] and "revive=0 is" in rows["silent_neurons_learn"]
    assert "fails silent_neurons_learn: revive=0 is" in CliRunner().invoke(app, ["info", "stdbp"]).stdout
    revived = CliRunner().invoke(app, ["check", "stdbp", "--option", "revive=1", "--only", "silent_neurons_learn"])
    assert revived.exit_code == 0 and "0 expected to fail, 0 failed" in revived.stdout, revived.output

    monkeypatch.setattr("snn_rules.registry._registry", registry := Registry())
    registry.register(WrongSign)
    monkeypatch.setattr("snn_rules.testing.mathematics.SECONDS", 0.5)
    bad = CliRunner().invoke(app, ["check", "copy", "--only", "learns_a_toy_task"])
    assert bad.exit_code == 1 and "1 failed" in bad.stdout and "90% are asked for" in bad.stdout, bad.output
    text = CliRunner().invoke(app, ["check", "copy", "--reasons"]).stdout
    assert all(name in text for name in CHECKS)
