"""A stand-in for CuPy where a kernel meets the GPU: `RawModule`, `Device`, `Stream`. All else of the launch code is real.

with fake_cupy.installed() as gpu:
    spikes, state, tape, _ = launch.Launched().forward(rule, x, {})  # x on the CPU
gpu.launches  # what ran, on which stream
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from ..kernels import launch
from ..kernels.cuda import Kernel
from . import nvrtc, ptx
from .memory import Memory


class LaunchError(Exception):
    """What CuPy or the driver would have refused."""


@dataclass
class Launch:
    kernel: str
    grid: int
    block: int
    arguments: tuple[np.generic, ...]
    device: Any
    stream: Any


@dataclass
class Gpu:
    """What the launch code did."""

    arch: int
    launches: list[Launch] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)  # the sources that were compiled
    entered: list[Any] = field(default_factory=list)  # devices and streams that are current now
    tensors: dict[str, Tensor] = field(default_factory=dict)  # those of the launch at hand, by name


@dataclass
class Stream:
    """torch's current stream, seen by either library."""

    device: torch.device

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 7


@contextmanager
def installed(arch: int = 80) -> Iterator[Gpu]:
    """While it lasts, `import cupy` gives the stand-in, which interprets the PTX for `compute_ARCH` over CPU tensors."""
    gpu, pack = Gpu(arch), launch.pack

    def observed(kernel: Kernel, tensors: dict[str, Tensor | None], sizes: dict[str, int]) -> tuple[np.generic, ...]:
        gpu.tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        return pack(kernel, tensors, sizes)

    launch.forget()
    with (
        patch.dict(sys.modules, cupy=_module(gpu)),
        patch.object(launch, "pack", observed),
        patch.object(torch.cuda, "current_stream", Stream),
    ):
        try:
            yield gpu
        finally:
            launch.forget()


def _numpy(tensor: Tensor) -> Any:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _module(gpu: Gpu) -> ModuleType:
    class Entered:
        def __init__(self, thing: Any):
            self.thing = thing

        def __enter__(self) -> None:
            gpu.entered.append(self.thing)

        def __exit__(self, *_: object) -> None:
            gpu.entered.remove(self.thing)

    class Function:
        def __init__(self, entry: ptx.Entry):
            self.entry = entry

        def __call__(self, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any]) -> None:
            streams = [thing for thing in gpu.entered if isinstance(thing, Stream)]
            if not streams or not gpu.entered or isinstance(gpu.entered[0], Stream):
                raise LaunchError(f"kernel {self.entry.name!r} is launched without its device and torch's stream being current")
            right = isinstance(grid, tuple) and isinstance(block, tuple) and len(grid) == len(block) == 1
            if not (right and 0 < grid[0] < 2**31 and 0 < block[0] <= 1024):
                raise LaunchError(f"kernel {self.entry.name!r}: a grid of {grid} blocks of {block} threads")
            memory = Memory({name: _numpy(tensor) for name, tensor in gpu.tensors.items()})
            ptx.launch(self.entry, grid[0], block[0], arguments, memory)
            gpu.launches.append(Launch(self.entry.name, grid[0], block[0], tuple(arguments), gpu.entered[0], streams[-1]))

    class RawModule:
        def __init__(self, *, code: str, options: tuple[str, ...] = ()):
            gpu.modules.append(code)
            given = (*options, "-ftz=true", "--device-as-default-execution-space")  # as CuPy adds
            self._entries = ptx.parse(nvrtc.ptx(code, gpu.arch, given))

        def get_function(self, name: str) -> Function:
            return Function(self._entries[name])

    module = ModuleType("cupy")
    streams = SimpleNamespace(from_external=lambda stream: Entered(stream))
    vars(module).update(RawModule=RawModule, cuda=SimpleNamespace(Device=lambda index: Entered(index), Stream=streams))
    return module
