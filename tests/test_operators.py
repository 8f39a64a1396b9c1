"""Every operator and function that a step may use, from its text through the graph and the kernels: the values of eager torch."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import snn_rules
from snn_rules import ops
from snn_rules.kernels import Compiled, Eager, executor
from snn_rules.kernels.trace import trace
from snn_rules.ops import heaviside, spike, where
from snn_rules.rule import LearningRule, RuleError, Values, sweep
from snn_rules.testing import nvrtc, proof

Formula = Callable[[Any, Any], Any]  # of the input of the step before and that of now
TABLES: dict[str, dict[str, Formula]] = {
    "arithmetic": {
        "+": lambda v, x: v + x + (x + 1.5) + (0.25 + v),
        "-": lambda v, x: v - x - (x - 1.5) - (0.25 - v),
        "*": lambda v, x: v * x * (x * 1.5) * (0.25 * v),
        "/": lambda v, x: v / (1.0 + x * x) / 3.0 - 2.0 / (4.0 + x * v * x * v),
        "neg": lambda v, x: -v - (-x) * -(v + x),
        "nothing to do": lambda v, x: (x + 0.0) * 1.0 / 1.0 - 0.0 - 1 * v + 0,
        "nested": lambda v, x: (0.5 * (v - x) + 2.0) * (v - 3.0 * x) / (2.0 + (x - v) * (x - v)) - x,
        "infinity": lambda v, x: ops.minimum(x, math.inf) - v,
    },
    "comparisons": {
        ">=": lambda v, x: where(x >= 0.5, v, x) + where(v >= x, 0.25, x),
        ">": lambda v, x: where(x > 0.5, v, x) + where(v > x, 0.25, x),
        "<=": lambda v, x: where(x <= 0.5, v, x) + where(v <= x, 0.25, x),
        "<": lambda v, x: where(x < 0.5, v, x) + where(v < x, 0.25, x),
        "a difference with zero": lambda v, x: where(x - 0.5 >= 0.0, v, x) + where(0.5 - x > 0.0, v, x) + where(-x <= 0.0, v, x),
        "&": lambda v, x: where((x > 0.5) & (v <= x), v, x),
        "|": lambda v, x: where((x > 0.5) | (v == 1.0), v, x),
    },
    "functions": {
        "where": lambda v, x: where(x > v, where(x > 1.0, 1.0, x), where(v > 1.0, v, -1.0)),
        "where beside zero": lambda v, x: where(x > 0.0, 0.0, v) + x,
        "heaviside": lambda v, x: heaviside(x - 0.5) * v + heaviside(v) - (1.0 - heaviside(x)) * x,
        "heaviside as a condition": lambda v, x: where(heaviside(x - 0.5) > 0.0, v, x) + where(1.0 - heaviside(v) > 0.0, v, 0.5),
        "spike": lambda v, x: spike(x - 0.5, 1.0 / (1.0 + v * v)) * x - (1.0 - spike(v, x * x)) * v,
        "spike of a slope that is a number": lambda v, x: spike(x - 0.5, 0.75) * v,
        "minimum": lambda v, x: ops.minimum(v, x) + ops.minimum(x, 0.5) + ops.minimum(0.25, v),
        "maximum": lambda v, x: ops.maximum(v, x) + ops.maximum(x, 0.5) + ops.maximum(0.25, v),
        "clip": lambda v, x: ops.clip(x, -0.5, 1.0) + ops.clip(v * x, -2.0, 2.0),
    },
    "exponentials": {
        "exp": lambda v, x: ops.exp(-x * x) * v - ops.exp(0.5 * v - x),
        "exp of what is clipped": lambda v, x: ops.exp(ops.clip(x - v, -2.0, 2.0)),
        "sigmoid": lambda v, x: ops.sigmoid(x) - ops.sigmoid(4.0 * v),
        "sigmoid of numbers that are large": lambda v, x: ops.sigmoid(1000.0 * x),
    },
    "equality": {
        "==": lambda v, x: where(x == 0.5, v, x),
        "== of two": lambda v, x: where(v == x, 0.25, x),
        "== of a difference": lambda v, x: where(x - v == 0.0, 0.25, x) + where(x - 1.0 == 0.0, 0.5, v),
        "== with the number first": lambda v, x: where(operator.eq(0.5, x), v, x),
        "== of a sign": lambda v, x: where(-x == 0.0, v, x),
        "== that holds nowhere": lambda v, x: where(x == 0.3, v, x),
        "!=": lambda v, x: where(x != 0.5, v, x),
        "!= of two": lambda v, x: where(v != x, 0.25, x),
        "!= as a number": lambda v, x: (x != v) * x,
    },
    "conditions": {
        "in arithmetic": lambda v, x: x * (x > 0.5) + (v < x) / 2.0 - (v >= 0.5) * 1.0,
        "negated": lambda v, x: where(~(x > 0.5), v, x) + where(~((x > 0.0) & (v > 0.0)), 0.0, x),
        "chosen": lambda v, x: x * where(v > 0.0, x < v, 0.0),
        "chosen, both": lambda v, x: where(where(v > 0.0, x < v, x < 0.5), v, x),
        "chosen, one plain": lambda v, x: where(where(v > 0.0, x < v, True), v, x),
        "compared": lambda v, x: where((x < 0.5) >= 0.5, v, x) + where((x < 0.5) == (v < 0.5), 0.25, x),
        "compared with zero": lambda v, x: where((x < 0.5) > 0.0, v, x),
        "of a parameter": lambda v, x: where((x > v) & True, v, x) + where((x > v) | False, 0.0, v),
        "nested": lambda v, x: where((x > 0.0) & ((v > 0.0) | (x > v)) & ~(x == v), v - x, where(x <= v, -x, 0.5 * v)),
    },
    "beyond": {
        "abs": lambda v, x: abs(x) - abs(v - x),
        "square": lambda v, x: x**2 - (v + x) ** 2.0,
    },
}  # fmt: skip


def rule_of(formulas: dict[str, Formula]) -> LearningRule:
    """A rule with a state for the value of each formula, through all of which its gradient goes."""
    names = [f"r{k}" for k in range(len(formulas))]

    @dataclass(frozen=True)
    class Tested(LearningRule):
        name: ClassVar[str] = "tested"
        state: ClassVar[dict[str, float]] = {"v": 0.5, **dict.fromkeys(names, 0.0)}

        def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
            values = [formula(m.v, x) for formula in formulas.values()]
            z = x - 0.25
            for k, value in enumerate(values):
                z = z + value * (0.25 + 0.125 * k)
            return spike(z, 1.0 / (1.0 + z * z)), {"v": x, **dict(zip(names, values, strict=True))}, {}

    return Tested()


def signal(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the inputs are of few values, so that some are equal."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (9, 300), generator=draw).to(dtype) / 2
    x[:, 150:] += torch.randn(9, 150, generator=draw, dtype=dtype)
    return x, torch.randn(9, 300, generator=draw, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("table", TABLES)
def test_kernels_have_the_values_of_torch(table: str, dtype: torch.dtype) -> None:
    rule, (x, g) = rule_of(TABLES[table]), signal(dtype)
    leaf, by_kernels = x.clone().requires_grad_(), Compiled()
    spikes, states, _, _ = Eager().forward(rule, leaf, {})
    (dx,) = torch.autograd.grad(spikes, leaf, g)
    found, found_states, tape, _ = by_kernels.forward(rule, x, {})
    dx_found, _ = by_kernels.backward(rule, tape, g)
    for k, name in enumerate(TABLES[table]):
        round_off = 0.0 if table != "exponentials" else 1e-6 if dtype == torch.float32 else 1e-14
        torch.testing.assert_close(found_states[f"r{k}"], states[f"r{k}"].detach(), rtol=round_off, atol=round_off, msg=name)
        assert states[f"r{k}"].unique().numel() > 1, name
    assert torch.equal(found, spikes) and 0 < spikes.count_nonzero() < spikes.numel()
    tight = 2e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(dx_found, dx, rtol=tight, atol=tight * float(dx.abs().max()))


@pytest.mark.parametrize("table", TABLES)
def test_cuda_has_the_values_of_the_cpu(table: str) -> None:
    try:
        nvrtc.architectures()
    except (nvrtc.NoNvrtc, OSError) as cause:
        pytest.skip(str(cause))
    for name, (by_ptx, by_cpu) in proof.agreement(rule_of(TABLES[table]), shape=(9, 70)).items():
        assert torch.equal(by_ptx, by_cpu), name


FOREIGN: dict[str, tuple[Formula, str]] = {
    "a cube": (lambda v, x: x**3, "unsupported operand"),
    "a remainder": (lambda v, x: x % 2.0, "unsupported operand"),
    "or else": (lambda v, x: where((x > v) ^ (x > 0.0), v, x), "unsupported operand"),
    "a function of torch": (lambda v, x: torch.tanh(x), r"tanh\(\).* must be Tensor"),
    "a method of tensors": (lambda v, x: x.clamp(0.0, 1.0), "no attribute 'clamp'"),
    "torch's where": (lambda v, x: torch.where(x > v, x, v), r"where\(\) received an invalid combination"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_foreign_runs_on_torch_and_says_why(name: str) -> None:
    formula, why = FOREIGN[name]
    rule, x = rule_of({name: formula}), torch.rand(3, 5)
    says = rf"rule 'tested': its step cannot be made a kernel \(.*{why}.*\); it may use .* the functions of snn_rules\.ops"
    with pytest.raises(RuleError, match=says) as refusal:
        trace(rule)
    assert "\n" not in str(refusal.value)
    with pytest.warns(UserWarning, match=f"'tested' runs on torch tensors, many times slower: {says}"):
        runs_by = executor(rule, x)
    assert type(runs_by) is Eager and runs_by.forward(rule, x, {})[0].shape == x.shape


def test_a_function_of_numbers_is_foreign() -> None:
    with pytest.raises(RuleError, match=r"its step cannot be made a kernel \(must be real number, not Node\)"):
        trace(rule_of({"exp": lambda v, x: math.exp(x)}))


def test_a_number_is_no_condition() -> None:
    for formula in (lambda v, x: where(x, v, x), lambda v, x: where(x & (v > 0.0), v, x), lambda v, x: ~x):
        with pytest.raises(RuleError, match=r"gives a number to where, &, \| or ~, which take conditions; write x != 0\.0 in the place of x"):
            trace(rule_of({"": formula}))


def test_a_sweep_is_named() -> None:
    @dataclass(frozen=True)
    class Swept(LearningRule):
        name: ClassVar[str] = "swept"

        def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
            return spike(x, 1.0), {"v": m.v}, {}

        @sweep(reverse=True)
        def back(self, c: Any, m: Any) -> tuple[Values, Values]:
            return {"dx": m.g.tanh()}, {}

    with pytest.raises(RuleError, match=r"rule 'swept': its sweep 'back' cannot be made a kernel \('Node' object has no attribute 'tanh'\)"):
        trace(Swept())


def test_a_condition_is_a_spike() -> None:
    @dataclass(frozen=True)
    class Bare(LearningRule):
        name: ClassVar[str] = "bare"

        def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
            return x >= 1.0, {"v": x}, {}

    x, _ = signal(torch.float32)
    assert torch.equal(Compiled().forward(Bare(), x, {})[0], (x >= 1.0).float())


def test_a_condition_is_a_number_where_numbers_are_kept() -> None:
    """In a state, in what a sweep carries, and in what `between` makes."""

    @dataclass(frozen=True)
    class Kept(LearningRule):
        name: ClassVar[str] = "kept"
        diagnostics: ClassVar[dict[str, Any]] = {"many": lambda m: m.many}

        def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
            return heaviside(x + 0.5 * m.v - 1.0), {"v": x > 0.5}, {}

        @sweep(reverse=False, n=0.0)
        def count(self, c: Any, m: Any) -> tuple[Values, Values]:
            return {}, {"n": c.n + m.s}

        def between(self, sums: Any) -> Values:
            return {"many": sums.n > 2.0}

        @sweep(reverse=True, later=0.0)
        def back(self, c: Any, m: Any) -> tuple[Values, Values]:
            return {"dx": where(m.many, c.later, m.g)}, {"later": m.g > 0.0}

    x, g = signal(torch.float32)
    by_kernels = Compiled()
    spikes, states, tape, _ = Eager().forward(Kept(), x, {})
    found, found_states, found_tape, _ = by_kernels.forward(Kept(), x, {})
    assert torch.equal(found, spikes) and torch.equal(found_states["v"], states["v"].float())
    dx, values = Eager().backward(Kept(), tape, g)
    dx_found, values_found = by_kernels.backward(Kept(), found_tape, g)
    assert torch.equal(dx_found, dx) and torch.equal(values_found["many"], values["many"].float()) and values["many"].any()


def test_plain_numbers_run_too() -> None:
    """A rule is readable enough to be worked by hand."""
    rule = snn_rules.get_rule("surrogate", tau_m=2.0)
    s, state, _ = rule.step(SimpleNamespace(v=0.5), 1.0)
    assert (s, state["v"]) == (1.0, 0.0)
    with pytest.raises(RuleError, match="use heaviside"):
        where(torch.tensor([True]), 1.0, 0.0)
