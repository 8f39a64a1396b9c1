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

    def __call__(self, index: int, tensors: dict[str, Tensor | None], T: int, M: int) -> int | None:
        """Run kernel `index` (0: forward, k: the k-th walk back); not 0 if a state is not finite, None if nothing has looked."""

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

    def inside(self, x: Tensor) -> Tensor:
        """The same for values of the state, which is float32 where `x` is in half precision."""
        return self.like(x) if (dtype := state_dtype(x)) is x.dtype else torch.empty_like(x, dtype=dtype)

    def forward(
        self, rule: LearningRule, x: Tensor, state: State, weight: Tensor | None = None, record: str | None = None, learns: bool = True
    ) -> tuple[Tensor, State, Tape, list[Tensor]]:
        if record not in (None, "v"):
            return super().forward(rule, x, state, weight, record)
        if weight is not None:
            return recurrent.forward(self, rule, x, state, weight, record, learns)
        x, run = x.contiguous(), self.load(rule, x)
        T, plan = x.shape[0], run.program
        given = {pointer: s.contiguous() for name, pointer in plan.ins.items() if isinstance(s := state.get(name), Tensor)}
        if rule.delay and isinstance(queue := state.get("late"), Tensor):
            given["late"] = queue.contiguous()
        spikes, first = self.like(x), x[0]
        after = {name: self.inside(first) for name in plan.ins}
        tensors: dict[str, Tensor | None] = {"x": x, "s": spikes, **given, **dict(zip(plan.outs, after.values(), strict=True))}
        recorded = tensors["record"] = self.inside(x) if record else None
        wrong = run(0, tensors, T, x.numel() // T)
        tape = Tape({}, {"x": x, **given}, run, None if wrong is None else not wrong)
        if rule.delay:
            after["late"] = _queue(rule, x, given.get("late")).to(state_dtype(x))
        return spikes, after, tape, list(recorded.unbind(0)) if recorded is not None else []

    def backward(self, rule: LearningRule, tape: Tape, g: Tensor) -> tuple[Tensor, State]:
        if tape.steps:
            return super().backward(rule, tape, g)
        x, g = tape.neurons["x"], g.contiguous()
        dx = self.like(x)
        return dx, self.walk_back(tape.run, rule, {**tape.neurons, "g": g, "dx": dx})

    def recurrent_backward(self, rule: LearningRule, tape: Tape, g: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
        if tape.steps:
            return super().recurrent_backward(rule, tape, g, weight)
        return recurrent.backward(self, rule, tape, g.contiguous(), weight)

    def walk_back(self, run: Loaded, rule: LearningRule, given: dict[str, Tensor]) -> State:
        """Write `dx`, by the kernels of whole trains; the values of each neuron that the sweeps leave behind."""
        x, neurons = given["x"], dict[str, Any]()
        T, stages = x.shape[0], run.program.stages
        for k, stage in enumerate(stages):
            left = {name: self.inside(x[0]) for name in stage.writes}
            values = {f"c_{name}": t for name, t in left.items()}
            if k:
                if missing := [name for name in stage.neurons if name not in neurons]:
                    raise RuleError(f"rule {rule.name!r}: a sweep reads {missing}, which neither an earlier one nor `between` has made")
                values |= {f"n_{name}": neurons[name].contiguous() for name in {*stage.neurons, "scale"} & neurons.keys()}
            run(k + 1, {**given, **values}, T, x.numel() // T)
            neurons.update(left)
            if k + 1 < len(stages):
                neurons.update(rule.between(SimpleNamespace(T=T, **neurons)))
        return neurons


def _queue(rule: LearningRule, x: Tensor, late: Tensor | None) -> Tensor:
    """The inputs that are still on their way after the last step."""
    T, delay = x.shape[0], rule.delay
    if delay <= T:
        return x.narrow_copy(0, T - delay, delay)
    return torch.cat([x.new_zeros(delay, *x.shape[1:]) if late is None else late, x])[T:]
