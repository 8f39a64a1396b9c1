"""Linear layers that leave out the zeros of spike trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from .kernels import zeros
from .kernels.eager import state_dtype
from .kernels.ops import traced

LARGE = 1 << 24  # multiplications; below, a look at the input takes longer than the product


class skip_zeros(TorchFunctionMode):
    """In it, linear and recurrent layers on the CPU add up the weights of the inputs that spike, and leave the others out.

        with snn_rules.skip_zeros():
            out = net(rule.encode(images, T))
        rule.loss(out, labels).backward()

    The weights' gradients leave out the same zeros. All are those of `torch.nn.functional.linear` to round-off, and several times faster
    where at most an eighth of an input is not zero. Others go their usual way, as do small ones, other devices, `torch.compile` and
    `torch.func`. A weight that is NaN shows in the output only where its input is not zero. A gradient of the gradient is refused. Segments
    of `torch.utils.checkpoint` run again outside; give it `context_fn=lambda: (skip_zeros(), skip_zeros())`.

    Each call of torch takes some microseconds longer in it: small networks lose. `snn-rules train` takes it where an input is large.
    """

    def __enter__(self) -> skip_zeros:
        self._before = [*getattr(self, "_before", ()), zeros.wanted.set(True)]
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        zeros.wanted.reset(self._before.pop())

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_linear if func is F.linear else func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not _worth(input, weight, bias):
        return F.linear(input, weight, bias)
    out: Tensor = _Linear.apply(input, weight, bias, torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype)
    return out


def _worth(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether there are kernels for it, and they are faster."""
    if traced() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if x.dim() < 2 or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or x.numel() * len(weight) < LARGE:
        return False
    if not (_plain(x) and _plain(weight) and x.is_contiguous()):
        return False
    if bias is not None and not (_plain(bias) and bias.dtype == weight.dtype and bias.shape == weight.shape[:1]):
        return False
    autocast = torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32
    if weight.dtype != (state_dtype(x) if autocast else x.dtype) or weight.dtype not in (torch.float32, torch.float64):
        return False
    return zeros.worth(x.detach().flatten(0, -2))


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
