"""The first spikes as an operator of PyTorch, for `torch.compile`: one node in the graph, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snn_rules import RuleError
from snn_rules.kernels.ops import rule_of

from .first_spikes import executor


@torch.library.custom_op("snn_rules_stdbp::first_spikes", mutates_args=())
def first_spikes(times: Tensor, weight: Tensor, rule: str) -> list[Tensor]:
    """`times[B, in]`, `weight[out, in]` -> the first crossing of each neuron `[B, out]`, and its slope."""
    configured: Any = rule_of(rule)
    return [t.contiguous() for t in executor(configured, times, weight).forward(configured, times, weight)]


@first_spikes.register_fake
def _(times: Tensor, weight: Tensor, rule: str) -> list[Tensor]:
    if times.device != weight.device:  # the layer does not look at it inside a graph
        raise RuleError(
            f"the layers of {rule_of(rule).name!r}: the input is on {times.device}, the weights on {weight.device}; move both to one device"
        )
    return [times.new_empty(times.shape[0], weight.shape[0]) for _ in range(2)]


@torch.library.custom_op("snn_rules_stdbp::first_spikes_backward", mutates_args=())
def first_spikes_backward(times: Tensor, weight: Tensor, out: Tensor, slope: Tensor, g: Tensor, rule: str) -> list[Tensor]:
    """dL/dtimes and dL/dweight."""
    configured: Any = rule_of(rule)
    return [t.contiguous() for t in executor(configured, times, weight).backward(configured, times, weight, out, slope, g)]


@first_spikes_backward.register_fake
def _(times: Tensor, weight: Tensor, out: Tensor, slope: Tensor, g: Tensor, rule: str) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (times, weight)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    times, weight, ctx.rule = inputs
    ctx.save_for_backward(times, weight, *output)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    times, weight, out, slope = ctx.saved_tensors
    if grads[0] is None:
        return None, None, None
    d_times, d_weight = first_spikes_backward(times, weight, out, slope, grads[0], ctx.rule)
    return d_times, d_weight, None


first_spikes.register_autograd(_backward, setup_context=_keep)
