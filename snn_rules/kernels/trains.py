"""Runs whole spike trains by a rule's kernels, on the CPU or the GPU; what they do not serve runs on torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..rule import LearningRule, RuleError
from . import form, recurrent
from .eager import Eager, State, Tape, state_dtype
from .program import Program


class Loaded(Protocol):
    """The kernels of a rule, ready to run."""

    program: Program

    def __call__(self, index: int, tensors: Sequence[Tensor | None], T: int, M: int) -> int | None:
        """Run kernel `index` on the tensors of `program.pointers`; not 0 if a state is not finite, None if nothing has looked."""

    def marks(self, row: Tensor, T: int) -> Tensor | None:
        """Memory for states that the forward kernel leaves to the walks back, if they are to start from there."""

    def bind(self, index: int, tensors: dict[str, Tensor], M: int) -> Callable[[int], object]:
        """Kernel `index`, of one step, over these tensors: to be called with each step."""


class ByKernels(Eager):
    """Kernels of whole trains; for a recurrent layer, whose matrix products lie between them, kernels of its steps."""

    converts = True
    derives = True  # a rule without sweeps gets its adjoint from its graph

    def __init__(self, run: Loaded | None = None) -> None:
        self.run = run  # the kernels of a rule for trains of one length and dtype; None: they are looked up for each train

    @staticmethod
    def memory(x: Tensor) -> Callable[[Tensor], Tensor]:
        """What makes results like other tensors, which are contiguous and none of them larger than `x`."""
        return torch.empty_like

    def load(self, rule: LearningRule, x: Tensor, recurrent: bool = False) -> Loaded:
        """The kernels of a rule for trains like `x`, or those of a recurrent layer."""
        raise NotImplementedError

    def forward(
        self, rule: LearningRule, x: Tensor, state: State, weight: Tensor | None = None, record: bool = False, learns: bool = True
    ) -> tuple[Tensor, State, Tape, Tensor | None]:
        if weight is not None:
            return recurrent.forward(self, rule, x, state, weight, record, learns)
        (T, *shape), dtype, run = x.shape, state_dtype(x), self.run or self.load(rule, x)
        x = x.resolve_neg().contiguous()
        held = [x, *[None if (s := state.get(name)) is None else s.resolve_neg().contiguous() for name in ("late", *rule.state)]]
        like, row = self.memory(x), x.new_empty(*shape, dtype=dtype)
        spikes, after = like(x), {name: like(row) for name in rule.state}
        if rule.delay:
            after["late"] = x.new_empty(rule.delay, *shape, dtype=dtype)
        recorded = like(x.to(dtype)) if record else None
        marks = run.marks(row, T) if learns else None
        wrong = run(0, [*held, spikes, *after.values(), recorded, marks], T, x.numel() // T)
        return spikes, after, Tape([*held, marks], (run, after["v"]), None if wrong is None else not wrong), recorded

    def backward(self, rule: LearningRule, tape: Tape, g: Tensor) -> tuple[Tensor, State]:
        dx = self.memory(g)(g := g.resolve_neg().contiguous())
        run, row = tape.about
        return dx, self.walk_back(rule, run, row, [value if value is None else value.contiguous() for value in tape.values], g, dx)

    def recurrent_backward(self, rule: LearningRule, tape: Tape, g: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
        return recurrent.backward(self, rule, tape, g.resolve_neg().contiguous(), weight)

    def walk_back(
        self, rule: LearningRule, run: Loaded, row: Tensor, held: Sequence[Tensor | None], g: Tensor, dx: Tensor, sent: Tensor | None = None
    ) -> State:
        """Write `dx`, by the kernels of whole trains; the values of each neuron that the sweeps leave behind, like `row`."""
        T, M, stages, like = g.shape[0], g.numel() // g.shape[0], run.program.stages, self.memory(g)
        neurons: dict[str, Any] = {}
        given: list[Tensor | None] = [None]  # the scale and nothing else
        for k, stage in enumerate(stages, 1):
            left = {name: like(row) for name in stage.writes}
            run(k, [*held, sent, g, dx, *given, *left.values()], T, M)
            neurons |= left
            if k < len(stages):
                neurons |= form.handed(rule, rule.between(form.Given(rule, "between", {"T": T, **neurons})), run.program.traced.saved)
                if missing := [name for name in stages[k].neurons if name not in neurons]:
                    raise RuleError(f"rule {rule.name!r}: a sweep reads {missing}, which neither an earlier one nor `between` has made")
                names = (*stages[k].neurons, "scale")
                given = [_like(neurons[name], row) if name in neurons else None for name in names]
        return neurons


def _like(value: Any, row: Tensor) -> Tensor:
    """A value of each neuron as kernels read it; `between` may have made one of another dtype, or of another shape that broadcasts."""
    return torch.as_tensor(value, dtype=row.dtype, device=row.device).expand(row.shape).contiguous()
