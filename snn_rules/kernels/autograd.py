"""Puts a rule's own backward pass where autograd looks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from ..rule import LearningRule, RuleError
from . import executor
from .eager import Eager, State, Tape, state_dtype

NO_JVP = "a learning rule has a backward pass, and no derivative forward: use vjp or jacrev in the place of jvp or jacfwd"
_NONE = Eager()  # in the place of an executor until `run` has chosen one


@dataclass(slots=True)
class Stuck:
    """Whether a layer that is sent errors passes none on. It looks at the first backward pass, the second, the fourth, and so on."""

    passes: int = 0
    said: bool = False

    def at(self, g: Tensor, gradient: Tensor) -> bool:
        """Of this pass, once."""
        self.passes += 1
        if self.said or self.passes & (self.passes - 1) or not gradient.numel() or bool(gradient.any()):
            return False
        self.said = bool(g.any())
        return self.said


@dataclass(slots=True)
class Report:
    """What the passes leave behind for the neuron that ran them."""

    learns: bool = False  # from the train whose state the neuron holds
    last: Any = None  # the potential after the last run
    warm: bool = False  # since the last backward pass, a train has begun in another state than at rest
    stuck: Stuck = field(default_factory=Stuck)
    values: tuple[int, State] | None = None  # the steps and the values of each neuron of the last backward pass, for diagnostics


@dataclass(slots=True)
class Job:
    """One forward pass of a layer: what runs, and what it leaves beside its spikes."""

    rule: LearningRule
    state: State
    report: Report
    notify: Callable[[], None]  # called when it is stuck
    record: bool = False  # keep the potential at each step,
    recorded: Tensor | None = None  # `[T, N, *]`
    finite: bool | None = None  # of the state afterwards; None: the executor has not looked
    run_by: Eager = _NONE
    about: Any = None  # what the executor has to know of the tape

    def forward(self, x: Tensor, weight: Tensor | None, learns: bool = True) -> tuple[Tensor, Sequence[Any]]:
        """The spikes, and what the backward pass needs."""
        spikes, self.state, tape, self.recorded = self.run_by.forward(self.rule, x, self.state, weight, self.record, learns)
        self.about, self.finite = tape.about, tape.finite
        return spikes, tape.values

    def passed(self, g: Tensor, dx: Tensor, neurons: State) -> None:
        report = self.report
        report.warm = False
        if self.rule.diagnostics:
            report.values = dx.shape[0], neurons
        if report.stuck.at(g, dx):
            self.notify()


def run(job: Job, x: Tensor, weight: Tensor | None = None, x_weights: Tensor | None = None) -> Tensor:
    """Spikes for `x[T, N, *]`; the layer is recurrent with `weight`, see `Eager.forward`.

    `x_weights` has the values of `x`; the gradient it receives is the one meant for the weights that made `x`.
    Afterwards `job.state` is the state after the last step, detached.
    """
    if _autocast(x):  # products, with recurrent weights or in a rule's `between`, are made in the dtype of the state
        with torch.autocast(x.device.type, enabled=False):
            return run(job, x, weight, x_weights)
    job.run_by = executor(job.rule, x, weight is not None)
    if (dtype := x.dtype) is not (inside := state_dtype(x)) and not (job.run_by.converts and weight is None):
        return run(job, x.to(inside), weight, x_weights).to(dtype)
    recurrent: tuple[Tensor | None, ...] = ()
    if weight is None:
        learns = x.requires_grad
    else:
        weight = weight if job.rule.gain == 1.0 else weight * job.rule.gain  # the gain is of all that a neuron receives
        recurrent = weight, x_weights
        learns = any(t is not None and t.requires_grad for t in (x, *recurrent))
    if not (learns and torch.is_grad_enabled()):
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
            raise RuleError(NO_JVP)
        with torch.no_grad():
            return job.forward(x, weight, learns=False)[0]
    if job.run_by.derives or job.rule.sweeps:
        spikes: Tensor = _Learn.apply(x, job, *recurrent)
        return spikes
    spikes, _ = job.forward(x, weight)  # the adjoint is derived: autograd walks back through the steps
    job.state = {name: value.detach() for name, value in job.state.items()}
    job.recorded = None if job.recorded is None else job.recorded.detach()
    return spikes


def _autocast(x: Tensor) -> bool:
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type)  # the first costs a fifth of the second


class _Learn(torch.autograd.Function):
    """A layer of neurons: forward by the rule's steps, backward by its sweeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, job: Job, weight: Tensor | None = None, x_weights: Tensor | None = None) -> Tensor:
        spikes, values = job.forward(x, weight)
        ctx.save_for_backward(weight, *values)
        ctx.job = job
        return spikes

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a graph of the backward pass is asked for
            return once_differentiable(_Learn.backward)(ctx, g)
        if _autocast(g):  # as in `run`
            with torch.autocast(g.device.type, enabled=False):
                return _Learn.backward(ctx, g)
        job, (weight, *values) = ctx.job, ctx.saved_tensors
        tape = Tape(values, job.about)
        if weight is None:
            dx, neurons = job.run_by.backward(job.rule, tape, g)
            job.passed(g, dx, neurons)
            return dx, None
        dx, dx_weights, d_weight, neurons = job.run_by.recurrent_backward(job.rule, tape, g, weight)
        job.passed(g, dx, neurons)
        return dx, None, d_weight, dx_weights if ctx.needs_input_grad[3] else None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuleError(NO_JVP)


def in_backward() -> bool:
    """A layer runs in a backward pass where it was checkpointed: it runs a second time, and its state has been counted."""
    return torch._C._current_graph_task_id() != -1
