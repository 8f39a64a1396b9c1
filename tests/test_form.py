"""Rules whose step or sweeps return what they should not: no executor runs them, and each says the same."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import snn_rules
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


def three(between: Any) -> LearningRule:
    @dataclass(frozen=True)
    class Three(LearningRule):
        name: ClassVar[str] = "three"

        def step(self, m: Any, x: Any) -> Any:
            u = 0.5 * m.v + x
            s = heaviside(u - 1.0)
            return s, {"v": u * (1.0 - s)}, {"u": u}

        @sweep(reverse=False, fired=0.0)
        def first(self, c: Any, m: Any) -> Any:
            return {}, {"fired": c.fired + m.s}

        @sweep(reverse=False, pulled=0.0)
        def second(self, c: Any, m: Any) -> Any:
            return {}, {"pulled": c.pulled + m.g}

        def between(self, sums: Any) -> Any:
            return between(sums)

        @sweep(reverse=True, dv=0.0)
        def back(self, c: Any, m: Any) -> Any:
            du = m.g / (1.0 + (m.u - 1.0) ** 2) + 0.5 * (1.0 - m.s) * c.dv + 0.1 * m.pulled
            return {"dx": du}, {"dv": du}

    return Three()


def by(runner: Any, rule: LearningRule) -> torch.Tensor:
    return runner.backward(rule, runner.forward(rule, 2 * X, {})[2], G)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("in_torch", [False, True])
def test_three_sweeps_are_scaled_once(in_torch: bool) -> None:
    plain, scaled = three(lambda sums: {}), three(lambda sums: {"scale": torch.as_tensor(3.0) if in_torch else 3.0})
    for runner in (Eager(), Compiled()):
        torch.testing.assert_close(by(runner, scaled), 3 * by(runner, plain))
    torch.testing.assert_close(by(Compiled(), plain), by(Eager(), plain))


@pytest.mark.parametrize("in_torch", [False, True])
@pytest.mark.parametrize("name", ["v", "u", "g", "s", "x"])
def test_between_makes_no_name_that_is_taken(name: str, in_torch: bool) -> None:
    rule = three(lambda sums: {name: torch.relu(sums.fired) if in_torch else 2.0 * sums.fired})
    for runner in (Eager(), Compiled()):
        with pytest.raises(MalformedRule, match=f"^rule 'three': its between makes '{name}', which sweeps have already; give it another name$"):
            by(runner, rule)


@pytest.mark.parametrize(
    ("between", "says"),
    [
        (lambda sums: None, r"its between returns \(NoneType\); it should return a dict of values of each neuron: return {}"),
        (lambda sums: {"scale": torch.relu(sums.fire)}, "its between reads 'fire'; it is given T, .*fired"),
    ],
    ids=["nothing", "a typo"],
)
def test_a_between_that_cannot_be(between: Any, says: str) -> None:
    for runner in (Eager(), Compiled()):
        with pytest.raises(MalformedRule, match=f"^rule 'three': {says}"):
            by(runner, three(between))


def test_a_sweep_before_the_last_puts_out_no_name_that_is_taken() -> None:
    rule = type(three(lambda sums: {}))
    wrong = dataclass(frozen=True)(type("Wrong", (rule,), {"sweeps": (sweep(reverse=False)(lambda self, c, m: ({"g": m.s}, {})), rule.sweeps[2])}))
    for run in (lambda: by(Eager(), wrong()), lambda: executor(wrong(), X)):
        with pytest.raises(MalformedRule, match=r"^rule 'three': its sweep '<lambda>' puts out 'g', which sweeps have; give it another name$"):
            run()


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (rule_of(lambda m, x: (heaviside(x - m.u), {"v": x}, {})), "its step reads 'u'; it is given v"),
        (rule_of(fine, lambda c, m: ({"dx": m.gg}, {"later": 0.0})), "its sweep 'back' reads 'gg'; it is given v, g, x, s"),
        (rule_of(fine, lambda c, m: ({"dx": c.late}, {"later": 0.0})), "its sweep 'back' reads 'late'; it is given later"),
    ],
    ids=["step", "sweep", "carry"],
)
def test_a_name_that_nothing_has_made_is_said_on_torch_too(rule: LearningRule, says: str) -> None:
    with pytest.raises(MalformedRule, match=f"^rule 'tested': {says}$"):
        Eager().backward(rule, Eager().forward(rule, X, {})[2], G)


def adding(m: Any, x: Any) -> Any:
    x += m.v
    return heaviside(x), {"v": x}, {}


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (adding, r"its step: a step or sweep has \+= or its like, which changes torch's tensors where they lie; write a = a \+ b"),
        (
            lambda m, x: (heaviside(x * ((x > 0.2) + (x > 0.6))), {"v": x}, {}),
            r"has a condition in '\+', which torch refuses or takes for 'or'; write c",
        ),
        (
            lambda m, x: (heaviside(x), {"v": 1.0 - (x > 0.5)}, {}),
            r"has a condition in '-', which torch refuses or takes for 'or'; write c \* 1.0 in",
        ),
    ],
    ids=["+=", "two conditions", "a condition taken off"],
)
def test_what_torch_and_kernels_read_in_two_ways_is_refused(step: Any, says: str) -> None:
    with pytest.raises(MalformedRule, match=f"^rule 'tested': .*{says}"):
        executor(rule_of(step), X)


def test_factors_of_a_recurrent_layer_come_in_pairs() -> None:
    rule = dataclass(frozen=True)(
        type("One", (type(three(lambda sums: {})),), {"couple": lambda self, weight, dx, before, sums: 1.0 / (1.0 + sums.fired)})
    )()
    for forced in ("eager", ""):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("snn_rules.kernels.FORCED", forced)
            out = snn_rules.RecurrentNode(4, rule)(torch.rand(5, 3, 4, requires_grad=True))
            with pytest.raises(MalformedRule, match=r"^rule 'three': its couple returns \(Tensor\); it should return two tensors \[N, F\], "):
                out.sum().backward()
