"""What a check of the conformance kit is, and the rule that it looks at with inputs that make its neuron fire."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor

from ..kernels import Eager
from ..network import network
from ..neuron import RuleNode
from ..rule import LearningRule

Reference = Callable[[LearningRule, Any, Any], tuple[Any, Any]]
EAGER = Eager()
SCALES = [2.0**k for k in range(-8, 11)]
STEPS = 16  # of the trains on which a drive is looked for


class Skip(Exception):
    """Why a check has nothing to look at."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One promise of a rule: its name, why it matters, and the function that raises where it is broken."""

    name: str
    reason: str
    body: Callable[[Case], None]
    neuron: bool  # it runs the rule's neuron; a rule that sends spike times has none


CHECKS: dict[str, Check] = {}


def check(body: Callable[[Case], None]) -> Callable[[Case], None]:
    """Adds a function to the kit: its name is that of the check, the first line of its docstring the reason."""
    return _add(body, True)


def check_any_signal(body: Callable[[Case], None]) -> Callable[[Case], None]:
    """The same, for a check that rules which send spike times pass, too."""
    return _add(body, False)


def _add(body: Callable[[Case], None], neuron: bool) -> Callable[[Case], None]:
    CHECKS[body.__name__] = Check(body.__name__, (body.__doc__ or "").strip().partition("\n")[0], body, neuron)
    return body


def demand(holds: Any, message: str) -> None:
    """Fail with one line unless it holds."""
    if not holds:
        raise AssertionError(message)


def differ(got: Tensor, want: Tensor, rtol: float = 0.0, atol: float = 0.0) -> str:
    """Where two tensors differ most, in a few words; empty where they agree."""
    if got.shape != want.shape:
        return f"the shape is {list(got.shape)}, it should be {list(want.shape)}"
    got, want = got.detach().double(), want.detach().double()
    wrong = ~torch.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return ""
    size = torch.where(wrong, (got - want).abs().nan_to_num(torch.inf, torch.inf), -1.0)
    where = [int(k) for k in torch.unravel_index(size.argmax(), got.shape)]
    return f"{int(wrong.sum())} of {wrong.numel()} values differ, most at {where}: {got[tuple(where)]:.6g}, it should be {want[tuple(where)]:.6g}"


@dataclasses.dataclass
class Case:
    """A rule under test."""

    rule: LearningRule
    given: Reference | None = None  # the reference handed over

    @property
    def v_reset(self) -> float | None:
        """Of SpikingJelly's neurons that the rule stands in for."""
        return 0.0 if "zero" in self.rule.capabilities.resets else None

    def node(self) -> RuleNode:
        """A new neuron that learns by the rule."""
        return RuleNode(self.rule, step_mode="m")

    def run(self, x: Tensor, g: Tensor, node: RuleNode | None = None) -> tuple[Tensor, Tensor]:
        """Spikes and dL/dx of a neuron at rest, for `x` and `g = dL/ds`."""
        node, leaf = node or self.node(), x.detach().clone().requires_grad_()
        functional.reset_net(node)
        spikes = node(leaf)
        (dx,) = torch.autograd.grad(spikes, leaf, g.to(spikes.dtype))
        return spikes.detach(), dx

    def run_by(self, executor: Eager, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """What that executor gives, without a neuron around it: spikes, dL/dx and the states."""
        by_autograd = not (self.rule.sweeps or executor.derives)
        leaf = x.detach().clone().requires_grad_(by_autograd)
        spikes, after, tape, _ = executor.forward(self.rule, leaf, {})
        dx = torch.autograd.grad(spikes, leaf, g)[0] if by_autograd else executor.backward(self.rule, tape, g)[0]
        return {"spikes": spikes.detach(), "dL/dx": dx, **{f"state {name}": after[name].detach() for name in after}}

    def inputs(self, *shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
        """`x` that makes some neurons fire and leaves others silent, and `g = dL/ds`, `[T, N, *]`; both are exact in float32.

        Some of `x` are zero, and some are the threshold in the first step.
        """
        draw = torch.Generator().manual_seed(seed)
        x, g = (torch.randn(shape, generator=draw, dtype=torch.float32) for _ in range(2))
        x = self.drive * (x + 0.5)
        x.view(-1)[::7] = 0.0
        x[:1, ..., ::5] = getattr(self.rule, "v_threshold", 1.0)
        return x.to(dtype), g.to(dtype)

    @cached_property
    def drive(self) -> float:
        """The scale of normal inputs (mean half of it) at which two neurons in three fire, as nearly as powers of two allow."""
        noise = torch.randn(STEPS, 1, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
        shares = [float((EAGER.forward(self.rule, scale * noise, {})[0] != 0).any(0).double().mean()) for scale in SCALES]
        demand(max(shares) > 0, f"no normal input of a scale from {SCALES[0]:g} to {SCALES[-1]:g} makes a neuron fire in {STEPS} steps")
        return min(zip(SCALES, shares, strict=True), key=lambda pair: abs(pair[1] - 2 / 3))[0]

    @cached_property
    def hush(self) -> float:
        """A constant input that leaves the neuron silent, just below the one at which it fires within `STEPS` steps."""

        def fires(level: float) -> bool:
            return bool(EAGER.forward(self.rule, torch.full((STEPS, 1, 1), level, dtype=torch.float64), {})[0].any())

        if fires(0.0):
            raise Skip("the neuron fires without input")
        low, high = 0.0, next((scale for scale in SCALES if fires(scale)), 0.0)
        demand(high, f"no constant input up to {SCALES[-1]:g} makes the neuron fire in {STEPS} steps")
        for _ in range(20):
            low, high = (low, (low + high) / 2) if fires((low + high) / 2) else ((low + high) / 2, high)
        return 0.97 * low

    @cached_property
    def trained(self) -> LearningRule:
        """The rule with the options it trains with out of the box, where they were left at their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self.rule)}
        own = self.rule.resolve(self.rule.training.options)
        return self.rule.replace(**{name: value for name, value in own.items() if getattr(self.rule, name) == defaults[name]})

    def network(self, text: str, features: int) -> Any:
        """A network in the notation of `snn_rules.network`, with the weights from which the rule learns."""
        torch.manual_seed(0)
        return network(text, self.trained, (features,))

    @property
    def known(self) -> bool:
        """The rule can be found by its name, as operators inside `torch.compile` find it."""
        from ..registry import get_rule, rules

        return self.rule.name in rules() and type(get_rule(self.rule.name)) is type(self.rule)

    @property
    def reference(self) -> Reference:
        """The slow float64 loops to compare with: those handed over, or `spikes_and_gradient` of the module `reference` beside the rule's."""
        if self.given:
            return self.given
        package = sys.modules[type(self.rule).__module__].__package__ or ""
        name = f"{package}.reference"
        try:
            found: Reference = importlib.import_module(name).spikes_and_gradient
        except (ImportError, AttributeError) as cause:
            if isinstance(cause, ImportError) and cause.name not in (name, package):
                raise
            raise Skip("it has no reference: pass one, or write spikes_and_gradient(rule, x, g) in reference.py beside the rule") from cause
        return found
