"""Runs whole spike trains by a rule's kernels, on the CPU or the GPU; what they do not serve runs on torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..rule import LearningRule, RuleError
from . import recurrent
from .eager import Eager, State, Tape
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

    derives = True  # a rule without sweeps gets its adjoint from its graph

    def load(self, rule: LearningRule, x: Tensor, recurrent: bool = False) -> Loaded:
        """The kernels of a rule for trains like `x`, or those of a recurrent layer."""
        raise NotImplementedError

    def empty_like(self, x: Tensor) -> Tensor:
        """Memory for a result."""
        return torch.empty_like(x)

    def forward(
        self, rule: LearningRule, x: Tensor, state: State, weight: Tensor | None = None, record: str | None = None, learns: bool = True
    ) -> tuple[Tensor, State, Tape, list[Tensor]]:
        if record not in (None, "v"):
            return super().forward(rule, x, state, weight, record)
        if weight is not None:
            return recurrent.forward(self, rule, x, state, weight, record, learns)
        x = x.contiguous()
        T, M = x.shape[0], x[0].numel()
        given = {f"in_{n}": s.contiguous() for n in rule.state if isinstance(s := state.get(n), Tensor)}
        if rule.delay:
            queue = state.get("late")
            given["late"] = queue.contiguous() if isinstance(queue, Tensor) else x.new_zeros(rule.delay, *x.shape[1:])
        after = {name: self.empty_like(x[0]) for name in rule.state}
        spikes, recorded = self.empty_like(x), self.empty_like(x) if record else None
        wrong = self.load(rule, x)(0, {"x": x, "s": spikes, "record": recorded, **given, **{f"out_{n}": t for n, t in after.items()}}, T, M)
        tape = Tape(neurons={"x": x, **given}, finite=None if wrong is None else not wrong)
        if rule.delay:
            after["late"] = torch.cat([given["late"], x])[T:].clone() if rule.delay > T else x[T - rule.delay :].clone()
        return spikes, after, tape, list(recorded.unbind(0)) if recorded is not None else []

    def backward(self, rule: LearningRule, tape: Tape, g: Tensor) -> tuple[Tensor, State]:
        if tape.steps:
            return super().backward(rule, tape, g)
        x, g = tape.neurons["x"], g.contiguous()
        dx = self.empty_like(x)
        if rule.delay:
            dx[max(x.shape[0] - rule.delay, 0) :] = 0
        return dx, self.walk_back(self.load(rule, x), rule, {**tape.neurons, "g": g, "dx": dx})

    def recurrent_backward(self, rule: LearningRule, tape: Tape, g: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
        if tape.steps:
            return super().recurrent_backward(rule, tape, g, weight)
        return recurrent.backward(self, rule, tape, g.contiguous(), weight)

    def walk_back(self, run: Loaded, rule: LearningRule, given: dict[str, Tensor]) -> State:
        """Write `dx`, by the kernels of whole trains; the values of each neuron that the sweeps leave behind."""
        x, neurons = given["x"], dict[str, Any]()
        T, M = x.shape[0], x[0].numel()
        for k, stage in enumerate(run.program.stages):
            if missing := [name for name in stage.neurons if name not in neurons]:
                raise RuleError(f"rule {rule.name!r}: a sweep reads {missing}, which neither an earlier one nor `between` has made")
            left = {name: self.empty_like(x[0]) for name in stage.writes}
            values = {f"n_{name}": neurons[name].contiguous() for name in {*stage.neurons, "scale"} & neurons.keys()}
            run(k + 1, {**given, **values, **{f"c_{n}": t for n, t in left.items()}}, T, M)
            neurons.update(left)
            if k + 1 < len(run.program.stages):
                neurons.update(rule.between(SimpleNamespace(T=T, **neurons)))
        return neurons
