"""Encoders (samples to spike trains), readouts (spike trains to numbers) and losses, in plain differentiable torch.

Spike trains are `[T, N, *]`, samples `[N, *]` with values in [0, 1], targets class indices `[N]`. Readouts and losses of half-precision
trains are float32, as torch's own losses are under autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .rule import RuleError

SLACK = 1e-3  # beyond [0, 1], of samples that were resized or rounded

# ---- encoders ------------------------------------------------------------------------------------------------------


def static(x: Tensor, T: int) -> Tensor:
    """`x` repeated at each of `T` steps: `[T, N, *]`, a view. Its values are a current, and may be any."""
    check_steps(T)
    _check_tensor(x)
    return x.unsqueeze(0).expand(T, *x.shape)


def poisson(x: Tensor, T: int, rate: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """A spike at each step with probability `rate * x`."""
    check_steps(T)
    _check_samples(x)
    chance = torch.rand((T, *x.shape), dtype=x.dtype, device=x.device, generator=generator)
    return chance.lt_(rate * x.detach())  # in place: a long train is large


def latency(x: Tensor, T: int, floor: float = 0.02) -> Tensor:
    """One spike, the earlier the larger `x`: at the step round((1 - x)(T - 1)); silent where `x <= floor`."""
    check_steps(T)
    _check_samples(x)
    step = ((1 - x) * (T - 1)).round().long().clamp(0, T - 1)
    spikes = torch.zeros((T, *x.shape), dtype=x.dtype, device=x.device)
    return spikes.scatter_(0, step.unsqueeze(0), (x > floor).to(x.dtype).unsqueeze(0))


def latency_times(x: Tensor, silent: float, floor: float = 0.02) -> Tensor:
    """The exact time 1 - x of one spike, `[1, N, *]`; `silent` where `x <= floor`."""
    _check_samples(x)
    return torch.where(x > floor, 1 - x, torch.full_like(x, silent)).unsqueeze(0)


# ---- readouts ------------------------------------------------------------------------------------------------------


def counts(out: Tensor) -> Tensor:
    """Spikes of each neuron: `[T, N, C]` -> `[N, C]`; `[N, C]` passes."""
    return _wide(out).sum(0) if out.dim() > 2 else _wide(out)


def psc(spikes: Tensor, tau_s: float) -> Tensor:
    """Post-synaptic current: the train filtered by eps[k] = (1 - 1/tau_s)^k / tau_s (TSSL-BP, Eqs. 2 and 3)."""
    T, spikes = spikes.shape[0], _wide(spikes)
    age = torch.arange(T, dtype=torch.float64, device=spikes.device)
    kernel = ((1 - 1 / tau_s) ** (age.unsqueeze(1) - age).clamp(min=0) / tau_s).tril()  # all steps at once: one small product
    with torch.autocast(spikes.device.type, enabled=False):
        return (kernel.to(spikes.dtype) @ spikes.reshape(T, -1)).view_as(spikes)


def first_spike_steps(spikes: Tensor) -> Tensor:
    """The step of a neuron's first spike, `T` where it is silent: `[T, N, C]` -> `[N, C]`.

    Written so that its derivative by `spikes[t]`, differenced over time, is the derivative by the time of a spike at `t`:
    1 for the first, 0 for later ones.
    """
    T, spikes = spikes.shape[0], _wide(spikes)
    first = torch.where(spikes.any(0), (spikes != 0).to(torch.uint8).argmax(0), T)
    steps = torch.arange(T, device=spikes.device).view(-1, *[1] * first.dim())
    early = (steps - first.clamp(max=T - 1) - 1).clamp(max=0).to(spikes.dtype)
    return first + (early * (spikes - spikes.detach())).sum(0)


def spike_steps(out: Tensor) -> Tensor:
    """The step of a neuron's one spike, `T` where it is silent: `[T, N, C]` -> `[N, C]`; the derivative is that of `first_spike_steps`.

    Linear, so that it also reads models that end in a layer without neurons (spiking_resnet18), whose outputs are no spikes: the
    earlier a large value comes, the earlier the class.
    """
    T, out = out.shape[0], _wide(out)
    with torch.autocast(out.device.type, enabled=False):
        return T + torch.einsum("t,t...->...", torch.arange(-T, 0, dtype=out.dtype, device=out.device), out)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# ---- losses --------------------------------------------------------------------------------------------------------


def step_loss(out: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """1/2 sum over time and classes of (out - one-hot)^2."""
    out = _wide(out)
    wanted = _one_hot(out, target)
    return _reduce(0.5 * (out - wanted).square(), out, reduction)


def count_loss(out: Tensor, target: Tensor, desired: float, undesired: float, margin: float = 0.0, reduction: str = "mean") -> Tensor:
    """1/2 |o - y|^2 over the spike counts o (ST-RSBP, Eq. 3): y is `desired` for the class and `undesired` for the others.

    A `margin` is taken off the size of each error: a smaller one costs nothing.
    """
    found = counts(out)
    error = found - (undesired + (desired - undesired) * _one_hot(found, target))
    return _reduce(0.5 * torch.relu(error.abs() - margin).square(), found, reduction)


def van_rossum_loss(out: Tensor, target: Tensor, train: Tensor, tau_s: float, reduction: str = "mean") -> Tensor:
    """1/2 sum_t (eps*d - eps*s)^2 (TSSL-BP, Eq. 7): `train[T]` is wanted of the class, silence of the others."""
    out = _wide(out)
    wanted = _one_hot(out, target)
    if out.dim() == 2:  # averaged over time by the model: compare with the average of the wanted train
        return _reduce(0.5 * (out - train.mean() * wanted).square(), out, reduction)
    error = psc(out - train.view(-1, 1, 1) * wanted, tau_s)  # the filter is linear
    return _reduce(0.5 * error.square(), out, reduction)


def first_spike_loss(times: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy of the softmax over negative spike times `[N, C]` (STDBP, Eq. 13): the class should fire first."""
    _one_hot(times, target)  # which checks both
    if times.dim() != 2:
        raise RuleError(f"loss: the spike times have shape {list(times.shape)}; pass [N, C], such as rule.times(out)")
    _check_reduction(reduction)
    return F.cross_entropy(-times, target, reduction=reduction)


def _one_hot(out: Tensor, target: Tensor) -> Tensor:
    classes = out.shape[-1]
    if out.dim() not in (2, 3) or target.shape != (out.shape[-2],):
        raise RuleError(
            f"loss: the output has shape {list(out.shape)} and the target {list(target.shape)}; pass [T, N, C] or [N, C] and class indices [N]"
        )
    if target.dtype != torch.long:
        raise RuleError(f"loss: the target is dtype {target.dtype}; pass class indices [N], e.g. y.long()")
    try:
        return F.one_hot(target, classes).to(out.dtype)
    except RuntimeError as cause:
        raise RuleError(f"loss: the target holds classes {int(target.min())} to {int(target.max())}, the output has {classes}") from cause


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise RuleError(f"loss: reduction={reduction!r} should be 'mean' (over the batch) or 'sum'")


def _reduce(cost: Tensor, out: Tensor, reduction: str) -> Tensor:
    _check_reduction(reduction)
    return cost.sum() / out.shape[-2] if reduction == "mean" else cost.sum()


def check_steps(T: int) -> None:
    """Refuse what is no number of time steps."""
    if not isinstance(T, int) or isinstance(T, bool) or T < 1:
        raise RuleError(f"encode: T={T!r} should be a whole number of time steps, at least 1")


def _check_samples(x: Tensor) -> None:
    """In spikes, what was wrong with the samples can no longer be seen."""
    _check_tensor(x)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x.is_meta or not x.numel():
        return
    low, high = x.detach().aminmax()
    if bool((low >= -SLACK) & (high <= 1 + SLACK)):
        return
    if len(bad := (~torch.isfinite(x)).nonzero()):
        raise RuleError(f"encode: the samples hold {x[tuple(bad[0])].item()} at {bad[0].tolist()}; look at the data and its normalisation")
    raise RuleError(
        f"encode: the samples reach from {float(low):.4g} to {float(high):.4g}; this code takes values in [0, 1]: divide by the largest, "
        f"and leave out what makes their mean 0"
    )


def _check_tensor(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise RuleError(f"encode: the samples are {given}; pass a floating-point tensor [N, *], e.g. of images: x.float() / 255")
