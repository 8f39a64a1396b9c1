"""Every operator and function that a step may use, from its text through the graph and the kernels: the values of eager torch."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from snn_rules.kernels import Compiled, Eager
from snn_rules.ops import spike, where
from snn_rules.rule import LearningRule, Values
from snn_rules.testing import nvrtc, proof

Formula = Callable[[Any, Any], Any]  # of the input of the step before and that of now
TABLES: dict[str, dict[str, Formula]] = {
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
        assert torch.equal(found_states[f"r{k}"], states[f"r{k}"]), name
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
