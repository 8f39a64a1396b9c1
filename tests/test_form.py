"""Rules whose step or sweeps return what they should not: no executor runs them, and each says the same."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from snn_rules.kernels import Compiled, Eager, executor
from snn_rules.ops import exp, heaviside, spike, where
from snn_rules.rule import LearningRule, MalformedRule, Values, sweep

X, G = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)), torch.ones(6, 40)


def rule_of(ahead: Callable[[Any, Any], Any], backward: Callable[[Any, Any], Any] | None = None) -> LearningRule:
    @dataclass(frozen=True)
    class Tested(LearningRule):
        name: ClassVar[str] = "tested"

        def step(self, m: Any, x: Any) -> Any:
            return ahead(m, x)

        if backward:

            @sweep(reverse=True, later=0.0)
            def back(self, c: Any, m: Any) -> Any:
                return backward(c, m)

    return Tested()


def fine(m: Any, x: Any) -> Any:
    return heaviside(m.v + x), {"v": x}, {}


SHOULD = r"it should return the spike, a dict of the state, a dict of what the sweeps read: return s, \{'v': v\}, \{\}"
PUTS = r"it should return a dict of what it puts out at the step, a dict of what it carries: return \{'dx': dx\}, \{\}"
TAKEN = "a name that sweeps have for something else; give it another"
MALFORMED: dict[str, tuple[LearningRule, str]] = {
    "two values": (rule_of(lambda m, x: (heaviside(x), {"v": x})), rf"its step returns \(\w+, dict\); {SHOULD}"),
    "nothing": (rule_of(lambda m, x: None), rf"its step returns \(NoneType\); {SHOULD}"),
    "nothing saved": (rule_of(lambda m, x: (heaviside(x), {"v": x}, None)), rf"its step returns \(\w+, dict, NoneType\); {SHOULD}"),
    "a tuple saved": (rule_of(lambda m, x: (heaviside(x), {"v": x}, (x,))), rf"its step returns \(\w+, dict, tuple\); {SHOULD}"),
    "another state": (rule_of(lambda m, x: (heaviside(x), {"u": x}, {})), r"its step returns \['u'\], but its state is \['v'\]"),
    "s saved": (rule_of(lambda m, x: (heaviside(x), {"v": x}, {"s": x}), lambda c, m: ({"dx": m.s}, {"later": 0.0})), f"its step saves 's', {TAKEN}"),
    "scale saved": (rule_of(lambda m, x: (heaviside(x), {"v": x}, {"scale": x})), f"its step saves 'scale', {TAKEN}"),
    "one dict": (rule_of(fine, lambda c, m: {"dx": m.g}), rf"its sweep 'back' returns \(dict\); {PUTS}"),
    "nothing swept": (rule_of(fine, lambda c, m: None), rf"its sweep 'back' returns \(NoneType\); {PUTS}"),
    "not carried on": (rule_of(fine, lambda c, m: ({"dx": m.g}, {})), r"its sweep 'back' carries \['later'\], but returns \[\]"),
    "dX": (rule_of(fine, lambda c, m: ({"dX": m.g}, {"later": m.g})), r"its last sweep 'back' puts out \['dX'\]; it should put out 'dx' and"),
    "more than dx": (rule_of(fine, lambda c, m: ({"dx": m.g, "of": m.g}, {"later": m.g})), r"puts out \['dx', 'of'\]; it should put out 'dx' and"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_rule_is_refused_alike(name: str) -> None:
    rule, says = MALFORMED[name]

    def by_torch() -> None:
        tape = Eager().forward(rule, X, {})[2]
        if rule.sweeps:
            Eager().backward(rule, tape, G)

    for run in (by_torch, lambda: executor(rule, X)):  # which warns of nothing slow
        with pytest.raises(MalformedRule, match=rf"^rule 'tested': .*{says}") as refusal:
            run()
        assert "\n" not in str(refusal.value)


def test_a_carry_with_a_name_that_is_taken() -> None:
    @dataclass(frozen=True)
    class Taken(LearningRule):
        name: ClassVar[str] = "taken"

        def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
            return fine(m, x)

        @sweep(reverse=True, scale=0.0)
        def back(self, c: Any, m: Any) -> tuple[Values, Values]:
            return {"dx": m.g}, {"scale": m.g}

    for run in (lambda: Eager().backward(Taken(), Eager().forward(Taken(), X, {})[2], G), lambda: executor(Taken(), X)):
        with pytest.raises(MalformedRule, match="rule 'taken': its sweep 'back' carries 'scale', a name that `between` has; give it another"):
            run()


def test_a_rule_without_a_step() -> None:
    @dataclass(frozen=True)
    class Empty(LearningRule):
        name: ClassVar[str] = "empty"

    for run in (lambda: Eager().forward(Empty(), X, {}), lambda: executor(Empty(), X)):
        with pytest.raises(MalformedRule, match=r"rule 'empty' has no step; write step\(self, m, x\)"):
            run()


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (lambda m, x: (heaviside(x + m.u), {"v": x}, {}), r"its step reads \['u'\], but its state is \['v'\]"),
        (lambda m, x: (heaviside(x), {"v": where(x > 0.0, math.nan, x)}, {}), "a step or sweep uses nan, of which everything after it is made"),
        (lambda m, x: (heaviside(x), {"v": where(x > 0.0, 1.0, 0.0)}, {}), "two plain numbers have no dtype; use heaviside"),
    ],
    ids=["another state", "nan", "two numbers"],
)  # fmt: skip
def test_a_text_that_can_mean_nothing_is_not_called_slow(step: Callable[[Any, Any], Any], says: str) -> None:
    with pytest.raises(MalformedRule, match=says):
        executor(rule_of(step), X)


PLAIN: dict[str, LearningRule] = {
    "a condition as the spike": rule_of(lambda m, x: (x > 0.5, {"v": m.v + x}, {}), lambda c, m: ({"dx": m.g * m.s + m.x}, {"later": m.g})),
    "numbers": rule_of(lambda m, x: (1.0, {"v": 0.5}, {"z": 2}), lambda c, m: ({"dx": 3.0}, {"later": 0})),
    "a number saved": rule_of(lambda m, x: (heaviside(x), {"v": x}, {"z": 2.0}), lambda c, m: ({"dx": m.g * m.z + c.later}, {"later": 0.5 * m.x})),
    "a condition in a state": rule_of(lambda m, x: (heaviside(x - m.v), {"v": x > 0.0}, {}), lambda c, m: ({"dx": m.g + m.v}, {"later": 1.0})),
    "a number as the slope": rule_of(lambda m, x: (spike(x + 0.5 * m.v, 0.25), {"v": x * exp(-m.v * m.v)}, {})),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_numbers_and_conditions_are_what_kernels_make_of_them(name: str, dtype: torch.dtype) -> None:
    rule, x, g = PLAIN[name], X.to(dtype, copy=True).requires_grad_(), torch.linspace(-1, 1, 240, dtype=dtype).view(6, 40)
    spikes, state, tape, _ = Eager().forward(rule, x, {})
    dx = Eager().backward(rule, tape, g)[0] if rule.sweeps else torch.autograd.grad(spikes, x, g)[0]
    by_kernels = Compiled()
    found, found_state, found_tape, _ = by_kernels.forward(rule, x.detach(), {})
    torch.testing.assert_close((found, found_state["v"]), (spikes, state["v"]))
    torch.testing.assert_close(by_kernels.backward(rule, found_tape, g)[0], dx)
    assert found.any()
