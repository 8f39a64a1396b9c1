"""A layer of neurons as a PyTorch operator, for `torch.compile`: one node in the graph, forward and backward.

Outside a compiled graph the neuron goes the shorter way of `autograd.run`. Inside, what looks at values is left out:
the check for NaN and inf, the refusal of a forgotten reset, the warning about a zero gradient, diagnostics.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import get_rule
from ..rule import LearningRule, RuleError
from .autograd import Job, Report, run

_MODES = torch._C._TorchDispatchModeKey


def traced() -> bool:
    """A graph is being made, by `torch.compile`, `torch.jit.trace`, `make_fx` or a FakeTensorMode: tensors may hold no values."""
    modes = torch._C._get_dispatch_mode
    return torch.compiler.is_compiling() or torch._C._is_tracing() or bool(modes(_MODES.PROXY) or modes(_MODES.FAKE))


_known: dict[str, LearningRule] = {}


def key(rule: LearningRule) -> str:
    """A rule as text, by which `rule_of` finds it; in another process, too."""
    cls = type(rule)
    text = json.dumps([rule.name, f"{cls.__module__}.{cls.__qualname__}", dataclasses.asdict(rule)])
    while type(_known.setdefault(text, rule)) is not cls:  # another class of that name, written since
        text += " "
    return text


def rule_of(text: str) -> LearningRule:
    """The rule of that key: that of a neuron here, or of a graph that was compiled elsewhere."""
    if text not in _known:
        name, _, options = json.loads(text)
        rule = get_rule(name, **options)
        if key(rule) != text:
            raise RuleError(f"rule {name!r} is {type(rule).__qualname__} here, but was another class where this graph was compiled; compile it anew")
    return _known[text]


def _states(rule: LearningRule) -> list[str]:
    return [*rule.state, *(["late"] if rule.delay else [])]


def walk_back(rule: LearningRule, x: Tensor, state: Sequence[Tensor], g: Tensor) -> Tensor:
    """dL/dx from g = dL/ds, without a tape: the train runs again, then the rule's backward pass."""
    job = Job(rule, dict(zip(_states(rule), state, strict=True)), Report(), lambda: None)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(run(job, leaf), leaf, g)
    return dx


@torch.library.custom_op("snn_rules::layer", mutates_args=())
def layer(x: Tensor, state: list[Tensor], rule: str) -> list[Tensor]:
    """Spikes for `x[T, N, *]`, and the states after the last step, in the order of the rule's."""
    configured = rule_of(rule)
    job = Job(configured, dict(zip(_states(configured), state, strict=True)), Report(), lambda: None)
    spikes = run(job, x.detach())
    return [spikes, *(job.state[name].clone() for name in _states(configured))]


@layer.register_fake
def _(x: Tensor, state: list[Tensor], rule: str) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format), *(torch.empty_like(s) for s in state)]


@torch.library.custom_op("snn_rules::layer_backward", mutates_args=())
def layer_backward(g: Tensor, x: Tensor, state: list[Tensor], rule: str) -> Tensor:
    """dL/dx."""
    return walk_back(rule_of(rule), x, state, g).clone()


@layer_backward.register_fake
def _(g: Tensor, x: Tensor, state: list[Tensor], rule: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, state, ctx.rule = inputs
    ctx.save_for_backward(x, *state)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, list[None], None]:
    x, *state = ctx.saved_tensors
    g = grads[0]
    return None if g is None else layer_backward(g.contiguous(), x, state, ctx.rule), [None] * len(state), None


layer.register_autograd(_backward, setup_context=_keep)
