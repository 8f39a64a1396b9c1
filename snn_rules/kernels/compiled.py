"""Runs a rule by its compiled CPU kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct

import torch
from torch import Tensor

from ..rule import LearningRule, RuleError
from .buffers import memory
from .build import NoCompiler, build
from .once import Once
from .prelude import PART, prelude
from .program import Program, program
from .steps import for_cpu
from .trains import ByKernels

UNROLLED = 8  # trains up to this length are walked without a loop
MARKED = 128  # trains longer than that are walked back part by part, from states that the forward kernel leaves
PARALLEL = 65536  # neuron-steps below which a second thread costs more than it gains


class Kernels:
    """The compiled kernels of a rule for one dtype."""

    def __init__(self, plan: Program, dtype: torch.dtype, steps: int | None):
        self.program = plan
        sources = for_cpu(plan, steps)
        library = build(prelude(dtype) + "".join(source.text for source in sources))
        self._run = []
        for source in sources:
            function = getattr(library, source.name)
            function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
            function.restype = ctypes.c_int
            self._run.append((function, source.pointers, Struct(f"{len(source.pointers)}P").pack))

    def __call__(self, index: int, tensors: Sequence[Tensor | None], T: int, M: int) -> int:
        """Run kernel `index` (0: forward, k: the k-th walk back) on the tensors of `program.pointers`; None is a null pointer."""
        function, _, pack = self._run[index]
        pointers = pack(*[0 if tensor is None else tensor.data_ptr() for tensor in tensors])
        threads = torch.get_num_threads() if T * M >= PARALLEL else 1
        wrong: int = function(pointers, T, M, threads)
        return wrong

    def marks(self, row: Tensor, T: int) -> Tensor | None:
        """Memory for the states of neurons like `row` at each `PART` steps of a long train, from where its parts are walked back."""
        if T <= MARKED or all(stage.ahead for stage in self.program.stages):  # a sweep that goes ahead makes them on its way
            return None
        return row.new_empty(-(-T // PART), len(self.program.rule.state), *row.shape)

    def bind(self, index: int, tensors: dict[str, Tensor], M: int) -> Callable[[int], object]:
        """Kernel `index`, of one step, over these tensors: to be called with each step."""
        function, names, pack = self._run[index]
        pointers = pack(*[0 if (t := tensors.get(name)) is None else t.data_ptr() for name in names])
        threads = torch.get_num_threads() if M >= PARALLEL else 1

        def run(t: int, held: object = tensors) -> None:
            function(pointers, t, M, threads)

        return run


_made = lru_cache(maxsize=512)(Kernels)


def kernels(rule: LearningRule, T: int, dtype: torch.dtype, recurrent: bool = False) -> Kernels:
    """The kernels of a rule for trains of `T` steps: short trains and rules with a `between` have kernels of their own."""
    plan = program(rule, T, recurrent)
    return _made(plan, dtype, T if T <= UNROLLED and (plan.coupled or not recurrent) else None)


class Compiled(ByKernels):
    """The CPU's kernels, on recycled memory."""

    name = "compiled for the CPU"
    why = "a C++ compiler is installed"
    memory = staticmethod(memory)

    def load(self, rule: LearningRule, x: Tensor, recurrent: bool = False) -> Kernels:
        return kernels(rule, x.shape[0], x.dtype, recurrent)


def _executor(rule: LearningRule, T: int, dtype: torch.dtype, recurrent: bool) -> Compiled:
    return Compiled(kernels(rule, T, dtype, recurrent))


executor = Once(_executor, NoCompiler, RuleError)  # for trains of T steps
