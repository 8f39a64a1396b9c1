"""Runs a rule by its compiled CPU kernels; what they do not serve runs on torch tensors, as `Eager` does."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..rule import LearningRule
from . import cpp
from .buffers import empty_like
from .build import build
from .eager import Eager, State, Tape
from .prelude import prelude
from .program import Program, program

UNROLLED = 8  # trains up to this length are walked without a loop
PARALLEL = 65536  # neuron-steps below which a second thread costs more than it gains


class Kernels:
    """The compiled kernels of a rule for one dtype."""

    def __init__(self, plan: Program, double: bool, steps: int | None):
        self.program = plan
        sources = [cpp.forward(plan, steps), *(cpp.backward(plan, k, steps) for k in range(len(plan.stages)))]
        library = build(prelude(double) + "".join(source.text for source in sources))
        self._run = []
        for source in sources:
            function = getattr(library, source.name)
            function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
            function.restype = ctypes.c_int
            self._run.append((function, source.pointers, ctypes.c_void_p * len(source.pointers)))

    def __call__(self, index: int, tensors: dict[str, Tensor | None], T: int, M: int) -> int:
        """Run kernel `index` (0: forward, k: the k-th walk back); a name without a tensor is a null pointer."""
        function, names, array = self._run[index]
        pointers = array(*[None if (t := tensors.get(name)) is None else t.data_ptr() for name in names])
        threads = torch.get_num_threads() if T * M >= PARALLEL else 1
        return int(function(pointers, T, M, threads))


_made = lru_cache(maxsize=512)(Kernels)
_found: dict[tuple[int, int, bool], tuple[LearningRule, Kernels]] = {}  # by identity: comparing rules takes longer than small kernels


def kernels(rule: LearningRule, T: int, double: bool) -> Kernels:
    """The kernels of a rule for trains of `T` steps: short trains and rules with a `between` have kernels of their own."""
    found = _found.get((id(rule), T, double))
    if found is None:
        if len(_found) >= 4096:
            _found.clear()
        found = _found[id(rule), T, double] = rule, _made(program(rule, T), double, T if T <= UNROLLED else None)
    return found[1]


class Compiled(Eager):
    """Kernels for feed-forward layers; a recurrent layer's matrix products lie between the steps, which run on torch."""

    name = "compiled for the CPU"
    why = "a C++ compiler is installed"
    derives = True  # a rule without sweeps gets its adjoint from its graph

    def forward(
        self, rule: LearningRule, x: Tensor, state: State, weight: Tensor | None = None, record: str | None = None
    ) -> tuple[Tensor, State, Tape, list[Tensor]]:
        if weight is not None or record not in (None, "v"):
            return super().forward(rule, x, state, weight, record)
        x = x.contiguous()
        T, M = x.shape[0], x[0].numel()
        given = {f"in_{n}": s.contiguous() if isinstance(s := state.get(n), Tensor) else None for n in rule.state}
        late = None
        if rule.delay:
            queue = state.get("late")
            late = queue.contiguous() if isinstance(queue, Tensor) else x.new_zeros(rule.delay, *x.shape[1:])
        after = {name: empty_like(x[0]) for name in rule.state}
        spikes = empty_like(x)
        recorded = empty_like(x) if record else None
        outs = {f"out_{n}": t for n, t in after.items()}
        wrong = kernels(rule, x.shape[0], x.dtype == torch.float64)(0, {"x": x, "late": late, "s": spikes, "record": recorded, **given, **outs}, T, M)
        tape = Tape(neurons={"x": x, **{k: t for k, t in given.items() if t is not None}, **({"late": late} if late is not None else {})})
        if rule.delay:
            after["late"] = torch.cat([late, x])[T:].clone() if late is not None and rule.delay > T else x[T - rule.delay :].clone()
        tape.finite = not wrong
        return spikes, after, tape, list(recorded.unbind(0)) if recorded is not None else []

    def backward(self, rule: LearningRule, tape: Tape, g: Tensor) -> tuple[Tensor, State]:
        if tape.steps:
            return super().backward(rule, tape, g)
        x, g = tape.neurons["x"], g.contiguous()
        T, M = x.shape[0], x[0].numel()
        run = kernels(rule, x.shape[0], x.dtype == torch.float64)
        dx, neurons = empty_like(x), dict[str, Any]()
        if rule.delay:
            dx[max(T - rule.delay, 0) :] = 0
        for k, stage in enumerate(run.program.stages):
            left = {name: empty_like(x[0]) for name in stage.writes}
            values = {f"n_{name}": neurons[name].contiguous() for name in {*stage.neurons, "scale"} & neurons.keys()}
            run(k + 1, {**tape.neurons, "g": g, "dx": dx, **values, **{f"c_{n}": t for n, t in left.items()}}, T, M)
            neurons.update(left)
            if k + 1 < len(run.program.stages):
                neurons.update(rule.between(SimpleNamespace(T=T, **neurons)))
        return dx, neurons
