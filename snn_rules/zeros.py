"""Layers of synapses that leave out the zeros of spike trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import Token
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from .kernels import zeros, zeros_conv
from .kernels.eager import state_dtype
from .kernels.ops import traced

LARGE = 1 << 24  # multiplications; below, a look at the input takes longer than the product


class skip_zeros(TorchFunctionMode):
    """In it, layers of synapses on the CPU add up the weights of the inputs that spike, and leave the others out.

        with snn_rules.skip_zeros():
            out = net(rule.encode(images, T))
        rule.loss(out, labels).backward()

    These are linear layers whose input is not zero at one place in eight or fewer, convolutions at one in twelve (of any stride and padding,
    without dilation and groups), and recurrent weights. Outputs and weights' gradients are torch's to round-off, several times faster. Other
    layers go their usual way, as do small ones, other devices, `torch.compile` and `torch.func`. A weight that is NaN shows in the
    output only where its input is not zero. A gradient of the gradient is refused. Segments of `torch.utils.checkpoint` run again
    outside; give it `context_fn=lambda: (skip_zeros(), skip_zeros())`.

    Each call of torch takes some microseconds longer in it: small networks lose. `snn-rules train` takes it where an input is large.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: list[Token[bool]] = []

    def __enter__(self) -> skip_zeros:
        self._before.append(zeros.wanted.set(True))
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        zeros.wanted.reset(self._before.pop())

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _OTHERS.get(func, func)(*args, **(kwargs or {}))


def at_spikes(x: Tensor, weight: Tensor, spikes: Tensor) -> Tensor:
    """`((x @ weight) * spikes).sum(0)` of trains `[T, N, F]`, for a rule's `couple`; of few spikes on a CPU, the products at spikes alone."""
    if x.is_cpu and x.dtype == spikes.dtype == weight.dtype and x.dim() == 3 and zeros.worth(spikes.flatten(0, 1)):
        return zeros.at_spikes(x.contiguous(), weight.contiguous(), spikes.contiguous())
    return ((x @ weight) * spikes).sum(0)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    fits = input.dim() > 1 and weight.dim() == 2 and input.shape[-1] == weight.shape[1]
    if fits and _may(input, weight, bias, input.numel() * len(weight)) and zeros.worth(input.detach().flatten(0, -2)):
        return _Linear.apply(input, weight, bias, _dtype(weight))  # type: ignore[no-any-return]
    return F.linear(input, weight, bias)


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    fits = groups == 1 and dilation in (1, (1, 1), [1, 1]) and padding not in ("same", "valid") and input.dim() == weight.dim() == 4
    if fits and input.shape[1] == weight.shape[1]:
        step, more = _pair(stride), _pair(padding)
        height, width = zeros_conv.size(input, weight, step, more)
        rows = input.detach().flatten(0, 1).flatten(1)
        if height > 0 < width and _may(input, weight, bias, len(input) * height * width * weight.numel()) and zeros_conv.worth(rows):
            return _Conv2d.apply(input, weight, bias, step, more, _dtype(weight))  # type: ignore[no-any-return]
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


_OTHERS: dict[Callable[..., Any], Callable[..., Any]] = {F.linear: _linear, F.conv2d: _conv2d}


def _pair(given: Any) -> tuple[int, int]:
    first, *rest = (given,) if isinstance(given, int) else given
    return first, rest[0] if rest else first


def _dtype(weight: Tensor) -> torch.dtype:
    """Of the output."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype


def _may(x: Tensor, weight: Tensor, bias: Tensor | None, multiplications: int) -> bool:
    """Whether kernels read such tensors, and the product is large enough for a look at its input."""
    if traced() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or multiplications < LARGE:
        return False
    if not (_plain(x) and _plain(weight) and x.is_contiguous()):
        return False
    if bias is not None and not (_plain(bias) and bias.dtype == weight.dtype and bias.shape == weight.shape[:1]):
        return False
    autocast = torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32
    return weight.dtype == (state_dtype(x) if autocast else x.dtype) and weight.dtype in (torch.float32, torch.float64)


def _plain(x: Tensor) -> bool:
    """Numbers in memory, as they are."""
    return type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.layout is torch.strided and not x.is_neg()


class _Linear(torch.autograd.Function):
    """Products in the dtype of the weights, beside autocast; output and errors in `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = zeros.product(x.flatten(0, -2), weight.contiguous(), None if bias is None else bias.contiguous())
        return out.view(*x.shape[:-1], -1).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows, g = x.flatten(0, -2).contiguous(), grads[0].flatten(0, -2)  # hooks of saved tensors may give other strides
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        dx = (g @ weight.to(g.dtype)).view(x.shape).to(x.dtype) if for_x else None
        wide = g.to(weight.dtype).contiguous()
        return dx, zeros.weight_gradient(wide, rows) if for_weight else None, wide.sum(0) if for_bias else None, None


class _Conv2d(torch.autograd.Function):
    """As `_Linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding
        return zeros_conv.product(x, weight.contiguous(), None if bias is None else bias.contiguous(), stride, padding).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        (g,), (for_x, for_weight, for_bias, *_) = grads, ctx.needs_input_grad
        dx = conv2d_input(x.shape, weight.to(g.dtype), g, *ctx.how).to(x.dtype) if for_x else None  # type: ignore[no-untyped-call]
        wide = g.to(weight.dtype).contiguous()
        d_weight = zeros_conv.weight_gradient(wide, x.contiguous(), weight.contiguous(), *ctx.how) if for_weight else None
        return dx, d_weight, wide.sum((0, 2, 3)) if for_bias else None, None, None, None
