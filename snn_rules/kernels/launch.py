"""Runs a rule by its CUDA kernels through CuPy, which is imported when the first CUDA tensor arrives.

Each launch sets the device and torch's current stream, for autograd walks back in a thread of its own. torch allocates
all memory. What the reverse sweep finds of each step takes T x (values kept) x (size of a value) a neuron; with more
neurons than `SCRATCH` bytes hold, a backward pass is several launches, one after another in the same memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..rule import LearningRule, RuleError
from . import cuda
from .eager import state_dtype
from .once import Once
from .program import Program, program
from .steps import for_gpu
from .trains import ByKernels

SCRATCH = 512 << 20  # bytes, at most, that a backward pass keeps beside its tensors


class NoCupy(Exception):
    """Why CUDA kernels cannot run here, with the remedy, in one line."""


def remedy() -> str:
    """How CuPy is installed beside this torch."""
    major = (torch.version.cuda or "13").partition(".")[0]
    return f"pip install 'snn-rules[cuda{major}]'"


def pack(kernel: cuda.Kernel, tensors: dict[str, Tensor | None], sizes: dict[str, int]) -> tuple[np.generic, ...]:
    """The arguments in the order and width of the kernel's parameters; a name without a tensor is a null pointer."""
    packed, x = list[np.generic](), next(tensor for tensor in tensors.values() if tensor is not None)
    for kind, name in kernel.parameters:
        tensor = tensors.get(name)
        dtype = torch.int64 if kind == "const N*" else x.dtype if "H" in kind else state_dtype(x)
        if kind == "N":
            packed.append(np.int64(sizes[name]))
        elif tensor is not None and not (tensor.is_contiguous() and tensor.dtype == dtype and tensor.device == x.device):
            given = f"{list(tensor.shape)} of {tensor.dtype} on {tensor.device}, strides {list(tensor.stride())}"
            raise RuleError(f"kernel {kernel.name!r}: {name!r} is {given}; it should be contiguous, of {dtype} on {x.device}")
        else:
            packed.append(np.uint64(0 if tensor is None else tensor.data_ptr()))
    return tuple(packed)


class Module:
    """Kernels of one source and dtype, loaded on one device; `whose` they are is for messages."""

    def __init__(self, kernels: tuple[cuda.Kernel, ...], dtype: torch.dtype, device: torch.device, whose: str):
        self.kernels, self.device = kernels, device
        try:
            self._cupy = importlib.import_module("cupy")
            with self.current():
                module = self._cupy.RawModule(code=cuda.source(kernels, dtype), options=cuda.OPTIONS)
                self._functions = [module.get_function(kernel.name) for kernel in kernels]
        except ImportError as cause:
            raise NoCupy(f"CuPy cannot be imported ({_first_line(cause)}); {remedy()}") from cause
        except Exception as cause:  # of its compiler, loader or driver: each has its own class
            raise NoCupy(f"CuPy cannot load the kernels of {whose} ({_first_line(cause)}); see snn-rules doctor --kernels") from cause

    def launch(self, index: int, tensors: dict[str, Tensor | None], sizes: dict[str, int], count: int) -> None:
        """Kernel `index` in `count` threads, on the current stream; the first tensor says of which dtype the others should be."""
        arguments = pack(self.kernels[index], tensors, sizes)
        if count:
            with self.current():
                self._functions[index]((-(-count // cuda.BLOCK),), (cuda.BLOCK,), arguments)

    @contextmanager
    def current(self) -> Iterator[None]:
        """The tensors' device, and on it torch's current stream."""
        with self._cupy.cuda.Device(self.device.index), self._cupy.cuda.Stream.from_external(torch.cuda.current_stream(self.device)):
            yield


class Kernels(Module):
    """The kernels of a rule for one dtype, loaded on one device."""

    def __init__(self, plan: Program, dtype: torch.dtype, device: torch.device):
        super().__init__(for_gpu(plan), dtype, device, repr(plan.rule.name))
        self.program = plan

    def __call__(self, index: int, tensors: Sequence[Tensor | None], T: int, M: int) -> None:
        """Run kernel `index` (0: forward, k: the k-th walk back) on the tensors of `program.pointers`, on the current stream."""
        kernel, x = self.kernels[index], tensors[0]
        assert x is not None
        named = dict(zip(self.program.pointers[index], tensors, strict=True))
        width = self._width(kernel, T, M, state_dtype(x).itemsize)
        if kernel.scratch:
            named["scratch"] = x.new_empty(T, kernel.scratch, width, dtype=state_dtype(x))
        for j0 in range(0, M, width):
            W = min(width, M - j0)
            self.launch(index, named, {"T": T, "M": M, "j0": j0, "W": W}, W)

    def marks(self, row: Tensor, T: int) -> None:
        """None: these kernels walk a train back in one piece."""

    def bind(self, index: int, tensors: dict[str, Tensor], M: int) -> Callable[[int], object]:
        """Kernel `index`, of one step, over these tensors: to be called with each step."""
        kernel, grid = self.kernels[index], (-(-M // cuda.BLOCK),)
        arguments = list(pack(kernel, {**tensors}, {"t": 0, "M": M}))  # once: they stay where they are
        place = [name for _, name in kernel.parameters].index("t")

        def run(t: int, held: object = tensors) -> None:
            arguments[place] = np.int64(t)
            if M:
                with self.current():
                    self._functions[index](grid, (cuda.BLOCK,), tuple(arguments))

        return run

    @staticmethod
    def _width(kernel: cuda.Kernel, T: int, M: int, size: int) -> int:
        """Neurons a launch: all, or as many whole blocks as the scratch memory holds."""
        if not kernel.scratch:
            return max(M, 1)
        held = SCRATCH // (T * kernel.scratch * size)
        return max(min(M, max(held // cuda.BLOCK, 1) * cuda.BLOCK), 1)


_loaded = lru_cache(maxsize=512)(Kernels)


def _kernels(rule: LearningRule, T: int, dtype: torch.dtype, device: torch.device, recurrent: bool = False) -> Kernels:
    """For trains of `T` steps, which matter only to a rule that has a `between`."""
    return _loaded(program(rule, T, recurrent), dtype, device)


kernels = Once(_kernels, NoCupy, RuleError)


def forget() -> None:
    """Unload all kernels."""
    _loaded.cache_clear()
    kernels.forget()


class Launched(ByKernels):
    """The GPU's kernels. They leave it to the neuron to look whether a state is finite."""

    name = "compiled for the GPU"
    why = "CuPy is installed"

    def load(self, rule: LearningRule, x: Tensor, recurrent: bool = False) -> Kernels:
        return kernels(rule, x.shape[0], x.dtype, x.device, recurrent)


def _first_line(cause: BaseException) -> str:
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
