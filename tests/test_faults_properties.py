"""Any options within their declared ranges, any shape, length, dtype and size of input: finite, and equal on kernels and on torch.

SNN_RULES_CASES=500 tries so many cases a rule, drawn anew; without it the same ones at each run.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import snn_rules
from snn_rules.rule import LearningRule

ASKED = os.environ.get("SNN_RULES_CASES")
ON_KERNELS, ON_TORCH = (int(ASKED), int(ASKED)) if ASKED else (8, 60)  # cases a rule; each of the first compiles kernels of its own
RULES = ("surrogate", "tssl", "strsbp", "stdbp")
LARGE = 1e3  # where a range has no upper end
every_rule = pytest.mark.parametrize("name", RULES)
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient of exactly zero")


def values(field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    """Of a parameter, from what it declares."""
    meta, default = field.metadata, field.default
    if field.name == "mode":
        return st.just("clock")  # spike times have layers of their own, below
    if meta["choices"]:
        return st.sampled_from(meta["choices"])
    if isinstance(default, bool):
        return st.booleans()
    low, high = max(meta["low"], -LARGE), min(meta["high"], LARGE)
    if isinstance(default, int):
        return st.integers(int(low), int(min(high, low + 6)))
    near = st.floats(max(low, 0.0), min(high, 5.0)) if low < 5.0 else st.nothing()
    return st.one_of(st.just(default), near, st.floats(low, high), *([st.just(math.inf)] if field.name == "tau_m" else []))


@st.composite
def rules(draw: Callable[..., Any], name: str) -> LearningRule:
    """The rule with every one of its parameters drawn."""
    drawn = {field.name: draw(values(field)) for field in dataclasses.fields(snn_rules.get_rule(name))}
    if drawn.get("tau_m", math.inf) == math.inf:
        drawn["decay_input"] = False  # which divides by it, and is refused
    return snn_rules.get_rule(name, **drawn)


@st.composite
def trains(draw: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and gradient `[T, N, *]`, some silent, some saturating, some not contiguous."""
    T, shape = draw(st.sampled_from([1, 2, 5, 9, 40])), draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    scale, draws = draw(st.sampled_from([0.0, 0.1, 1.0, 30.0])), torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    x, g = (torch.randn(T, *shape, generator=draws, dtype=torch.float64) for _ in range(2))
    x = (scale * (x + 0.3)).to(dtype)
    return (x.transpose(0, -1).contiguous().transpose(0, -1) if draw(st.booleans()) else x), g.to(dtype)


def run(rule: LearningRule, x: torch.Tensor, g: torch.Tensor, executor: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spikes, the potential after the last step, and the gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snn_rules.kernels.FORCED", executor)
        node, leaf = snn_rules.RuleNode(rule, step_mode="m"), x.clone().requires_grad_()
        out = node(leaf)
        out.backward(g)
    return out.detach(), node.v, leaf.grad


def check(rule: LearningRule, x: torch.Tensor, out: torch.Tensor, v: torch.Tensor, dx: torch.Tensor) -> None:
    currents = getattr(rule, "psc", "input") == "output"
    assert out.shape == dx.shape == x.shape and out.dtype == dx.dtype == x.dtype and v.shape == x.shape[1:]
    assert torch.isfinite(out).all() if currents else ((out == 0) | (out == 1)).all()
    assert torch.isfinite(v).all()
    if x.dtype != torch.float16:  # whose largest number is 65504
        assert torch.isfinite(dx).all()


def tried(cases: int, strategy: Any, body: Callable[[Any], None]) -> int:
    """How many cases `body` has seen."""
    count = 0

    @settings(max_examples=cases, derandomize=not ASKED, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def each(case: Any) -> None:
        nonlocal count
        count += 1
        body(case)

    each()
    return count


@every_rule
def test_any_options_run_finite(name: str) -> None:
    def body(case: Any) -> None:
        rule, (x, g) = case
        check(rule, x, *run(rule, x, g, "eager"))

    assert tried(ON_TORCH, st.tuples(rules(name), trains()), body) >= ON_TORCH


@every_rule
def test_any_options_run_on_kernels_as_on_torch(name: str) -> None:
    def body(case: Any) -> None:
        rule, (x, g) = case
        want, got = run(rule, x, g, "eager"), run(rule, x, g, "")
        check(rule, x, *got)
        tight = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[x.dtype]
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
        torch.testing.assert_close(got[2], want[2], rtol=tight, atol=tight * float(want[2].abs().max() if want[2].numel() else 0) + 1e-30)

    assert tried(ON_KERNELS, st.tuples(rules(name), trains()), body) >= ON_KERNELS


@st.composite
def layers_of_times(draw: Callable[..., Any]) -> tuple[LearningRule, torch.Tensor, torch.Tensor]:
    """A rule of spike times, times `[1, N, in]` of which some are silent, weights `[out, in]`."""
    rule = draw(rules("stdbp")).replace(mode="event")
    N, inputs, outputs = draw(st.integers(0, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    dtype, draws = draw(st.sampled_from([torch.float64, torch.float32])), torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    times = (1.5 * torch.rand(1, N, inputs, generator=draws, dtype=torch.float64)).to(dtype)
    weight = draw(st.sampled_from([0.0, 1.0, 30.0])) * rule.v_threshold * (torch.randn(outputs, inputs, generator=draws, dtype=torch.float64) + 0.5)
    return rule, torch.where(times > 1.2, rule.window, times), weight.to(dtype)


def test_any_options_of_spike_times_run_on_kernels_as_on_torch() -> None:
    def body(case: Any) -> None:
        rule, times, weight = case
        found = []
        for executor in ("eager", ""):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("snn_rules.kernels.FORCED", executor)
                net = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], len(weight), bias=False), snn_rules.RuleNode("surrogate"))
                net[0].weight.data = weight.clone()
                snn_rules.convert(net, rule)
                leaf = times.clone().requires_grad_()
                out = net(leaf)
                out.backward(torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape))
                found.append((out.detach(), leaf.grad, net[0].weight.grad))
        for got, want in zip(*found[::-1], strict=True):
            assert torch.isfinite(got).all()
            tight = 1e-12 if got.dtype == torch.float64 else 2e-5
            torch.testing.assert_close(got, want, rtol=tight, atol=tight * float(want.abs().max() if want.numel() else 0) + 1e-30)

    assert tried(ON_KERNELS, layers_of_times(), body) >= ON_KERNELS
