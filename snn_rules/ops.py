"""The functions that a rule's step and sweeps may use beside arithmetic and comparisons.

Each works on torch tensors, on Python numbers, and on any symbol that has a method of the same name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .rule import MalformedRule


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`; at least one of them is no plain number (use `heaviside` for 1 and 0)."""
    if isinstance(condition, bool):
        return a if condition else b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        raise MalformedRule(f"where(condition, {a!r}, {b!r}): two plain numbers have no dtype; use heaviside(x)")
    return torch.where(condition, a, b) if isinstance(condition, Tensor) else condition.where(a, b)


def exp(x: Any) -> Any:
    if isinstance(x, (int, float)):
        return math.exp(x)
    return torch.exp(x) if isinstance(x, Tensor) else x.exp()


def heaviside(x: Any) -> Any:
    """1 where `x >= 0`, else 0: SpikingJelly's firing condition. Its derivative is zero."""
    if isinstance(x, (int, float)):
        return 1.0 if x >= 0 else 0.0
    return (x >= 0).to(x.dtype) if isinstance(x, Tensor) else x.heaviside()


def spike(x: Any, slope: Any) -> Any:
    """`heaviside(x)` whose derivative is declared to be `slope`: a surrogate gradient."""
    if isinstance(x, Tensor):
        return _Spike.apply(x, slope if isinstance(slope, Tensor) else x.new_tensor(slope))
    return x.spike(slope) if hasattr(x, "spike") else heaviside(x)


def minimum(a: Any, b: Any) -> Any:
    return _pick("minimum", min, a, b)


def maximum(a: Any, b: Any) -> Any:
    return _pick("maximum", max, a, b)


def clip(x: Any, low: float, high: float) -> Any:
    return minimum(maximum(x, low), high)


def sigmoid(x: Any) -> Any:
    return _Sigmoid.apply(x) if isinstance(x, Tensor) else 1.0 / (1.0 + exp(-x))


def _pick(name: str, plain: Any, a: Any, b: Any) -> Any:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return plain(a, b)
    first, second = (a, b) if not isinstance(a, (int, float)) else (b, a)
    if isinstance(first, Tensor):  # of equals the first, which has the whole gradient: at a bound, torch.clamp gives it to nobody
        return torch.where(first > second if name == "minimum" else first < second, second, first)
    return getattr(first, name)(second)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None


class _Sigmoid(torch.autograd.Function):
    """Its derivative is that of torch.sigmoid: through the formula it would be 0 times infinity where exp(-x) overflows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        h = 1.0 / (1.0 + torch.exp(-x))
        ctx.save_for_backward(h)
        return h

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        h: Tensor = ctx.saved_tensors[0]
        return g * h * (1.0 - h)
