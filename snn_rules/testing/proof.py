"""The proof of a rule's CUDA kernels, for the rule's tests:

    from snn_rules.testing import proof

    def test_cuda():
        assert all(row.compiled and not row.spills for row in proof.resources(MyRule()))
        for name, (gpu, cpu) in proof.agreement(MyRule()).items():
            assert torch.equal(gpu, cpu), name

What stays unproved is what only a GPU has: its driver, its speed, CuPy's own loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels import cuda
from ..kernels.compiled import Compiled
from ..kernels.launch import Launched
from ..kernels.program import program
from ..kernels.steps import for_gpu
from ..kernels.trains import ByKernels
from ..rule import LearningRule, RuleError
from . import fake_cupy, nvrtc


@dataclass(frozen=True)
class Resources:
    """What a kernel takes on an architecture."""

    rule: str
    kernel: str
    arch: int
    compiled: bool
    registers: int = 0
    spills: int = 0
    error: str = ""


def resources(rule: LearningRule, archs: Iterable[int] = nvrtc.ARCHITECTURES, T: int = 10, dtype: torch.dtype = torch.float32) -> list[Resources]:
    """Every kernel of the rule, those of its recurrent layers and of its own layers too, compiled for every architecture."""
    archs, rows = list(archs), compiled(rule.name, for_gpu(program(rule, T)), archs, dtype)
    if own := rule.own_kernels():
        rows += compiled(rule.name, own, archs, dtype)
    try:
        again = for_gpu(program(rule, T, recurrent=True))
    except RuleError:  # it cannot train recurrent weights
        return rows
    return rows + [replace(row, kernel=f"recurrent {row.kernel}") for row in compiled(rule.name, again, archs, dtype)]


def compiled(
    rule: str, kernels: Sequence[cuda.Kernel], archs: Iterable[int] = nvrtc.ARCHITECTURES, dtype: torch.dtype = torch.float32
) -> list[Resources]:
    """These kernels, as one unit, compiled for every architecture."""
    rows = list[Resources]()
    for arch in archs:
        try:
            used, error = nvrtc.build(cuda.source(kernels, dtype), arch).kernels, "NVRTC left it out"
        except nvrtc.CompileError as cause:
            used, error = {}, str(cause).partition("\n")[0]
        for kernel in kernels:
            made = used.get(kernel.name)
            rows.append(Resources(rule, kernel.name, arch, made is not None, *((made.registers, made.spills) if made else (0, 0, error))))
    return rows


def agreement(
    rule: LearningRule, shape: tuple[int, ...] = (23, 1000), dtype: torch.dtype = torch.float32, arch: int = 80, scale: float = 1.0, warm: bool = True
) -> dict[str, tuple[Tensor, Tensor]]:
    """All that a forward and a backward pass give: by the PTX through the launch code, and by the C++ build.

    Inputs are normal, of mean `scale` / 2 and deviation `scale`; `warm`: the first state comes from a train before.
    """
    draw = torch.Generator().manual_seed(0)
    before, x, g = (torch.randn(shape, generator=draw, dtype=dtype) for _ in range(3))
    before, x = (scale * (value + 0.5) for value in (before, x))
    by_cpu = Compiled()
    state = by_cpu.forward(rule, before, {})[1] if warm else {}
    with fake_cupy.installed(arch):
        found = _both(Launched(), rule, x, g, state)
    wanted = _both(by_cpu, rule, x, g, state)
    assert found.keys() == wanted.keys()
    return {name: (found[name], wanted[name]) for name in wanted}


def recurrent_agreement(
    rule: LearningRule,
    shape: tuple[int, int, int] = (12, 4, 70),
    dtype: torch.dtype = torch.float32,
    arch: int = 80,
    scale: float = 1.0,
    warm: bool = True,
) -> dict[str, tuple[Tensor, Tensor]]:
    """As `agreement`, of a recurrent layer of `[T, N, features]`."""
    draw = torch.Generator().manual_seed(0)
    before, x, g = (torch.randn(shape, generator=draw, dtype=dtype) for _ in range(3))
    before, x = (scale * (value + 0.5) for value in (before, x))
    weight = scale * torch.randn(shape[2], shape[2], generator=draw, dtype=dtype) / shape[2] ** 0.5
    by_cpu = Compiled()
    state = by_cpu.forward(rule, before, {}, weight)[1] if warm else {}

    def run(executor: ByKernels) -> dict[str, Tensor]:
        spikes, after, tape, recorded = executor.forward(rule, x, state, weight, "v" in rule.state)
        dx, dx_weights, d_weight, neurons = executor.recurrent_backward(rule, tape, g, weight)
        made = {"spikes": spikes, "dx": dx, "dx for weights": dx_weights, "dweight": d_weight}
        made |= {f"state {n}": t for n, t in after.items()} | {f"value {n}": t for n, t in neurons.items()}
        return made | ({"recorded": recorded} if recorded is not None else {})

    with fake_cupy.installed(arch):
        found = run(Launched())
    wanted = run(by_cpu)
    return {name: (found[name], wanted[name]) for name in wanted}


def _both(executor: ByKernels, rule: LearningRule, x: Tensor, g: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    spikes, after, tape, recorded = executor.forward(rule, x, state, record="v" in rule.state)
    dx, neurons = executor.backward(rule, tape, g)
    made = {"spikes": spikes, "dx": dx, **{f"state {n}": t for n, t in after.items()}, **{f"value {n}": t for n, t in neurons.items()}}
    return made | ({"recorded": recorded} if recorded is not None else {})
