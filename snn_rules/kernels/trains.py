"""Runs whole spike trains by a rule's kernels, on the CPU or the GPU; what they do not serve runs on torch tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..rule import LearningRule
from .eager import Eager, State, Tape
from .program import Program


class Loaded(Protocol):
    """The kernels of a rule, ready to run."""

    program: Program

    def __call__(self, index: int, tensors: dict[str, Tensor | None], T: int, M: int) -> int | None:
        """Run kernel `index` (0: forward, k: the k-th walk back); not 0 if a state is not finite, None if nothing has looked."""


class ByKernels(Eager):
    """Kernels for feed-forward layers; a recurrent layer's matrix products lie between the steps, which run on torch."""

    derives = True  # a rule without sweeps gets its adjoint from its graph

    def load(self, rule: LearningRule, x: Tensor) -> Loaded:
        """The kernels of a rule for trains like `x`."""
        raise NotImplementedError

    def empty_like(self, x: Tensor) -> Tensor:
        """Memory for a result."""
        return torch.empty_like(x)

    def forward(
        self, rule: LearningRule, x: Tensor, state: State, weight: Tensor | None = None, record: str | None = None
    ) -> tuple[Tensor, State, Tape, list[Tensor]]:
        if weight is not None or record not in (None, "v"):  # `executor` gives a recurrent layer to `Eager`
            return super().forward(rule, x, state, weight, record)
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
        T, M = x.shape[0], x[0].numel()
        run = self.load(rule, x)
        dx, neurons = self.empty_like(x), dict[str, Any]()
        if rule.delay:
            dx[max(T - rule.delay, 0) :] = 0
        for k, stage in enumerate(run.program.stages):
            left = {name: self.empty_like(x[0]) for name in stage.writes}
            values = {f"n_{name}": neurons[name].contiguous() for name in {*stage.neurons, "scale"} & neurons.keys()}
            run(k + 1, {**tape.neurons, "g": g, "dx": dx, **values, **{f"c_{n}": t for n, t in left.items()}}, T, M)
            neurons.update(left)
            if k + 1 < len(run.program.stages):
                neurons.update(rule.between(SimpleNamespace(T=T, **neurons)))
        return dx, neurons
