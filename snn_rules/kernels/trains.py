"""Runs whole spike trains by a rule's kernels, on the CPU or the GPU; what they do not serve runs on torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..rule import LearningRule, RuleError
from . import recurrent
from .eager import Eager, State, Tape, state_dtype
from .program import Program


class Loaded(Protocol):
    """The kernels of a rule, ready to run."""

    program: Program

    def __call__(self, index: int, tensors: Sequence[Tensor | None], T: int, M: int) -> int | None:
        """Run kernel `index` on the tensors of `program.pointers`; not 0 if a state is not finite, None if nothing has looked."""

    def bind(self, index: int, tensors: dict[str, Tensor], M: int) -> Callable[[int], object]:
        """Kernel `index`, of one step, over these tensors: to be called with each step."""


class ByKernels(Eager):
    """Kernels of whole trains; for a recurrent layer, whose matrix products lie between them, kernels of its steps."""

    converts = True
    derives = True  # a rule without sweeps gets its adjoint from its graph

    def load(self, rule: LearningRule, x: Tensor, recurrent: bool = False) -> Loaded:
        """The kernels of a rule for trains like `x`, or those of a recurrent layer."""
        raise NotImplementedError

    def memory(self, x: Tensor) -> Callable[[Sequence[int]], Tensor]:
        """What makes results of a shape, in the dtype and on the device of `x`, none of them larger than it."""
        return x.new_empty

    def like(self, x: Tensor) -> Tensor:
        """What makes a result like `x`, which is contiguous."""
        return torch.empty_like(x)

    def forward(
        self, rule: LearningRule, x: Tensor, state: State, weight: Tensor | None = None, record: bool = False, learns: bool = True
    ) -> tuple[Tensor, State, Tape, Tensor | None]:
        if weight is not None:
            return recurrent.forward(self, rule, x, state, weight, record, learns)
        run, T, x = self.load(rule, x), x.shape[0], x.contiguous()
        held, row = [x, *_given(rule, state)], _row(x)
        spikes, after = self.like(x), {name: self.like(row) for name in rule.state}
        recorded = self.like(x.to(row.dtype)) if record else None
        wrong = run(0, [*held, spikes, *after.values(), recorded], T, x.numel() // T)
        if rule.delay:
            after["late"] = _queue(rule, x, held[1], row.dtype)
        return spikes, after, Tape(held, run, None if wrong is None else not wrong), recorded

    def backward(self, rule: LearningRule, tape: Tape, g: Tensor) -> tuple[Tensor, State]:
        dx = self.like(g := g.contiguous())
        return dx, self.walk_back(tape.about, rule, tape.values, g, dx)

    def recurrent_backward(self, rule: LearningRule, tape: Tape, g: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
        return recurrent.backward(self, rule, tape, g.contiguous(), weight)

    def walk_back(self, run: Loaded, rule: LearningRule, held: Sequence[Tensor | None], g: Tensor, dx: Tensor, sent: Tensor | None = None) -> State:
        """Write `dx`, by the kernels of whole trains; the values of each neuron that the sweeps leave behind."""
        T, stages, neurons = g.shape[0], run.program.stages, dict[str, Any]()
        for k, stage in enumerate(stages, 1):
            given = [neurons[name].contiguous() for name in stage.neurons]
            left = [self.like(_row(g)) for _ in stage.writes]
            run(k, [*held, sent, g, dx, *given, neurons.get("scale"), *left], T, g.numel() // T)
            neurons.update(zip(stage.writes, left, strict=True))
            if k < len(stages):
                neurons.update(rule.between(SimpleNamespace(T=T, **neurons)))
                if missing := [name for name in stages[k].neurons if name not in neurons]:
                    raise RuleError(f"rule {rule.name!r}: a sweep reads {missing}, which neither an earlier one nor `between` has made")
        return neurons


def _given(rule: LearningRule, state: State) -> list[Tensor | None]:
    """The inputs on their way and the states before the first step; None for what is at rest."""
    values = map(state.get, ("late", *rule.state))
    return [value.contiguous() if isinstance(value, Tensor) else None for value in values]


def _row(x: Tensor) -> Tensor:
    """What is like a value of each neuron: in the dtype of the state."""
    return x[0] if (dtype := state_dtype(x)) is x.dtype else x[0].to(dtype)


def _queue(rule: LearningRule, x: Tensor, late: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The inputs that are still on their way after the last step."""
    T, delay = x.shape[0], rule.delay
    if delay > T:
        return torch.cat([x.new_zeros(delay, *x.shape[1:], dtype=dtype) if late is None else late, x])[T:]
    queue = x.narrow_copy(0, T - delay, delay)
    return queue if queue.dtype is dtype else queue.to(dtype)
