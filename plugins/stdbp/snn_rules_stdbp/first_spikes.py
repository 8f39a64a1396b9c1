"""The first spike of each neuron from the times of its inputs, differentiable: on compiled kernels, or on torch tensors."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snn_rules import RuleError, kernels
from snn_rules.kernels import launch
from snn_rules.kernels.build import NoCompiler, build, say_once

from . import event_cpp, event_cuda

if TYPE_CHECKING:
    from .rule import STDBP

PARALLEL = 65536  # weights times samples below which a second thread costs more than it gains
THREADS, SAMPLES = 1 << 17, 64  # of the GPU: threads wanted for the gradient of few weights; samples a thread, at least


class Eager:
    """The walk over the inputs on torch tensors: the reference, on any device."""

    name = "eager torch"

    def __init__(self, why: str = "it is the reference"):
        self.why = why

    def forward(self, rule: STDBP, times: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """`times[B, in]`, `weight[out, in]` -> the first crossing of each neuron `[B, out]`, and its slope S (0 if silent)."""
        ordered, index = times.clamp(max=rule.window).sort(dim=1, stable=True)
        rows, full = weight.t().contiguous(), times.new_ones(len(times), len(weight))
        state, now = {name: full * value for name, value in rule.event_state.items()}, times.new_zeros(len(times), 1)
        for k in range(_live(rule, ordered)):
            t = ordered[:, k, None]
            state, now = rule.event(SimpleNamespace(now=now, **state), rows[index[:, k]], t - now), t
        state = rule.event(SimpleNamespace(now=now, **state), 0.0, rule.window - now)
        return state["time"], state["s_slope"]

    def backward(self, rule: STDBP, times: Tensor, weight: Tensor, out: Tensor, slope: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dtimes and dL/dweight."""
        pull = rule.pull(SimpleNamespace(g=g, s_slope=slope))
        ordered, index = times.sort(dim=1)
        d_ordered, d_rows, rows = torch.zeros_like(times), torch.zeros_like(weight.t()), weight.t().contiguous()
        for k in range(_live(rule, ordered)):
            i = index[:, k]
            d_t, d_w = rule.causal(SimpleNamespace(t=ordered[:, k, None], w=rows[i], time=out, pull=pull))
            d_ordered[:, k] = d_t.sum(1)
            d_rows.index_add_(0, i, d_w)
        return torch.zeros_like(times).scatter_(1, index, d_ordered), d_rows.t()


def _live(rule: STDBP, ordered: Tensor) -> int:
    """How many inputs fire in the window, at most."""
    return int((ordered < rule.window).sum(1).max()) if ordered.numel() else 0


class Compiled:
    """The same by the kernels of `event_cpp`, for one rule and dtype."""

    name = "compiled for the CPU"
    why = "a C++ compiler is installed"

    def __init__(self, rule: STDBP, dtype: torch.dtype):
        library = build(event_cpp.source(rule, dtype))
        self._forward, self._backward = library.forward, library.backward
        for function in (self._forward, self._backward):
            function.argtypes, function.restype = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_int], None
        self._vector = 64 // dtype.itemsize

    def forward(self, rule: STDBP, times: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        out, slope = times.new_empty(len(times), len(weight)), times.new_empty(len(times), len(weight))
        rows = weight.new_empty(weight.shape[1] + 1, self._padded(weight))
        self._run(self._forward, times.contiguous(), weight.contiguous(), rows, out, slope)
        return out, slope

    def backward(self, rule: STDBP, times: Tensor, weight: Tensor, out: Tensor, slope: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        times, weight, out, slope = (saved.contiguous() for saved in (times, weight, out, slope))  # hooks may have given them other strides
        neurons = times.new_empty(len(times), 2, self._padded(weight))
        d_times, d_weight = torch.empty_like(times), torch.empty_like(weight)
        self._run(self._backward, times, weight, out, slope, g.contiguous(), neurons, d_times, d_weight)
        return d_times, d_weight

    def _padded(self, weight: Tensor) -> int:
        return -(-len(weight) // self._vector) * self._vector

    @staticmethod
    def _run(function: Any, times: Tensor, weight: Tensor, *others: Tensor) -> None:
        tensors = (times, weight, *others)
        pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
        threads = torch.get_num_threads() if len(times) * weight.numel() >= PARALLEL else 1
        function(pointers, len(times), weight.shape[1], weight.shape[0], threads)


class Launched:
    """The same by the kernels of `event_cuda`, for one rule, dtype and device. Torch sorts the inputs."""

    name = "compiled for the GPU"
    why = "CuPy is installed"

    def __init__(self, rule: STDBP, dtype: torch.dtype, device: torch.device):
        self._module = launch.Module(event_cuda.kernels(rule), dtype, device, f"the event layers of {rule.name!r}")

    def forward(self, rule: STDBP, times: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ordered, index = times.contiguous().sort(dim=1, stable=True)
        out, slope = times.new_empty(len(times), len(weight)), times.new_empty(len(times), len(weight))
        given = {"ordered": ordered, "index": index, "by_input": weight.t().contiguous(), "time": out, "s_slope": slope}
        self._launch(0, given, times, weight, out.numel())
        return out, slope

    def backward(self, rule: STDBP, times: Tensor, weight: Tensor, out: Tensor, slope: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        times, weight, out, slope = (saved.contiguous() for saved in (times, weight, out, slope))
        pull = torch.empty_like(out)
        self._launch(1, {"time": out, "s_slope": slope, "g": g.contiguous(), "pull": pull}, times, weight, out.numel())
        given = {"times": times, "weight": weight, "time": out, "pull": pull}
        each = max(-(-len(times) * max(weight.numel(), 1) // THREADS), SAMPLES)  # samples a thread
        parts = max(-(-len(times) // each), 1)
        d_weight, d_times = weight.new_empty(parts, *weight.t().shape), torch.empty_like(times)
        self._launch(2, {**given, "d_weight": d_weight}, times, weight, d_weight.numel(), each=each, count=d_weight.numel())
        self._launch(3, {**given, "d_times": d_times}, times, weight, times.numel())
        return d_times, (d_weight[0] if parts == 1 else d_weight.sum(0)).t().contiguous()

    def _launch(self, index: int, tensors: dict[str, Tensor], times: Tensor, weight: Tensor, threads: int, **sizes: int) -> None:
        self._module.launch(index, {**tensors}, {"rows": len(times), "ins": weight.shape[1], "outs": weight.shape[0], **sizes}, threads)


def executor(rule: STDBP, times: Tensor, weight: Tensor) -> Eager | Compiled | Launched:
    """What runs here. What falls back to torch says so, once."""
    if times.device.type not in ("cpu", "cuda"):
        return _slow(rule, f"there are no kernels for {times.device.type}")
    if times.dtype not in (torch.float32, torch.float64) or times.dtype != weight.dtype:
        return _slow(rule, f"there are no kernels for times of {times.dtype} and weights of {weight.dtype}")
    return _loaded(rule, times.dtype, times.device, kernels.FORCED)


@lru_cache(maxsize=512)
def _loaded(rule: STDBP, dtype: torch.dtype, device: torch.device, forced: str) -> Eager | Compiled | Launched:
    if forced == "eager":
        return Eager("SNN_RULES_EXECUTOR=eager")
    try:
        return Compiled(rule, dtype) if device.type == "cpu" else Launched(rule, dtype, device)
    except (NoCompiler, launch.NoCupy, RuleError) as cause:
        return _slow(rule, str(cause))


def _slow(rule: STDBP, why: str) -> Eager:
    say_once(f"the event layers of {rule.name!r} run on torch tensors, many times slower: {why}")
    return Eager(why)


class _FirstSpikes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, times: Tensor, weight: Tensor, rule: STDBP, passed: Any) -> Tensor:
        ctx.rule, ctx.passed, run_by = rule, passed, executor(rule, times, weight)
        out, slope = run_by.forward(rule, times, weight)
        ctx.save_for_backward(times, weight, out, slope)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        times, weight, out, slope = ctx.saved_tensors
        d_times, d_weight = executor(ctx.rule, times, weight).backward(ctx.rule, times, weight, out, slope, grads[0])
        ctx.passed(grads[0], d_weight)
        return d_times, d_weight, None, None
