"""Runs a rule by its compiled CPU kernels."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from ..rule import LearningRule
from . import cpp
from .buffers import empty_like
from .build import build
from .prelude import prelude
from .program import Program, program
from .trains import ByKernels

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


class Compiled(ByKernels):
    """The CPU's kernels, on recycled memory."""

    name = "compiled for the CPU"
    why = "a C++ compiler is installed"

    def load(self, rule: LearningRule, x: Tensor) -> Kernels:
        return kernels(rule, x.shape[0], x.dtype == torch.float64)

    def empty_like(self, x: Tensor) -> Tensor:
        return empty_like(x)
