"""A layer of neurons under the transforms of `torch.func`: grad, vjp, jacrev and vmap, in any order; first derivatives only.

What is transformed has no side effects: a train starts from the states that the neurons hold, and leaves them as they are.
As inside `torch.compile`, nothing looks at values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..rule import LearningRule, RuleError
from . import executor
from .autograd import NO_JVP
from .ops import _states, walk_back


def refuse(where: str, what: str) -> RuleError:
    """That something stays outside of these transforms."""
    return RuleError(f"{where}: torch.func cannot transform {what}; call backward() or torch.autograd.grad, or leave it out of the function")


class Layer(torch.autograd.Function):
    """Spikes for `x[T, N, *]`, from a rule and its states."""

    @staticmethod
    def forward(x: Tensor, rule: LearningRule, *state: Tensor) -> Tensor:
        return executor(rule, x).forward(rule, x, dict(zip(_states(rule), state, strict=True)))[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.rule, *state = inputs
        ctx.save_for_backward(x, *state)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *state = ctx.saved_tensors
        dx: Tensor = _Backward.apply(grads[0], x, ctx.rule, *state)
        return dx, None, *[None] * len(state)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuleError(NO_JVP)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, rule: LearningRule, *state: Tensor) -> tuple[Tensor, int]:
        (x,), state = _beside(info.batch_size, [(x, in_dims[0])], rule, state, in_dims[2:])
        return Layer.apply(x, rule, *state), 1


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(g: Tensor, x: Tensor, rule: LearningRule, *state: Tensor) -> Tensor:
        return walk_back(rule, x, state, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rule = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuleError(f"rule {ctx.rule.name!r} gives first derivatives; a second one of its layers does not exist")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], g: Tensor, x: Tensor, rule: LearningRule, *state: Tensor) -> tuple[Tensor, int]:
        (g, x), state = _beside(info.batch_size, [(g, in_dims[0]), (x, in_dims[1])], rule, state, in_dims[3:])
        return _Backward.apply(g, x, rule, *state), 1


def _beside(size: int, trains: list[tuple[Tensor, Any]], rule: LearningRule, state: Sequence[Tensor], dims: Sequence[Any]) -> tuple[Any, Any]:
    """Neurons do not see each other: what is mapped over stands beside the batch, after the time."""

    def moved(value: Tensor, dim: Any, to: int) -> Tensor:
        return value.movedim(dim, to) if dim is not None else value.unsqueeze(to).expand(*value.shape[:to], size, *value.shape[to:])

    places = [1 if name == "late" else 0 for name in _states(rule)]
    return [moved(train, dim, 1) for train, dim in trains], [moved(s, d, to) for s, d, to in zip(state, dims, places, strict=True)]
