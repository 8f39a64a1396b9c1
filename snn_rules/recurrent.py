"""Layers whose neurons also hear each other, one step later."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from .kernels.autograd import Job, in_backward, run
from .kernels.eager import state_dtype
from .kernels.ops import traced
from .kernels.transforms import refuse
from .neuron import RuleNode
from .rule import LearningRule, RuleError


def check_recurrent(rule: LearningRule, where: str) -> None:
    """Refuse rules whose backward pass cannot go through recurrent weights."""
    bptt = type(rule).couple is LearningRule.couple
    if not bptt and not rule.sweeps:
        raise RuleError(f"{where}: rule {rule.name!r} has a `couple`, but no sweep that makes the `dx` it is given; write one")
    if bptt and rule.sweeps and not (len(rule.sweeps) == 1 and rule.sweeps[0].reverse):
        raise RuleError(
            f"{where}: rule {rule.name!r} cannot train recurrent weights (it has several sweeps, and no `couple`); use a feed-forward layer"
        )


def run_recurrent(node: RuleNode, x: Tensor, weight: Tensor, y: Any, x_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Spikes `[T, N, F]` of `node` fed by `x[T, N, F]` and by its own spikes of the step before; and the last spikes."""
    if torch.compiler.is_compiling():  # beside the graph
        found: tuple[Tensor, Tensor] = torch.compiler.disable(_run)(node, x, weight, y, x_weights)  # type: ignore[no-untyped-call]
        return found
    return _run(node, x, weight, y, x_weights)


def _run(node: RuleNode, x: Tensor, weight: Tensor, y: Any, x_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = state_dtype(x)
    if torch._C._are_functorch_transforms_active():
        raise refuse(node._where(), "recurrent layers")
    if traced():
        raise RuleError(f"{node._where()}: a recurrent layer has no values to run on while a graph is made of it; leave it out of the graph")
    given = dict(node._memories)
    if in_backward() and given["v"] is node._report.last:
        raise RuleError(
            f"{node._where()}: a checkpoint runs a recurrent layer again, from the state that it left; "
            f"use spikingjelly.activation_based.memopt.checkpoint_module, which keeps the states"
        )
    node._check(x, "m", given, weight)
    if weight.device != x.device:
        raise RuleError(f"{node._where()}: the input is on {x.device}, its recurrent weights on {weight.device}; move both to one device")
    state = node._state(x, given)
    if not isinstance(y, Tensor) or y.shape != x.shape[1:]:
        y = torch.zeros_like(x[0], dtype=dtype)
    job = Job(node.rule, {**state, "y": y.detach().to(dtype)}, node._report, node._warn_silent, node.store_v_seq)
    spikes = run(job, x.to(dtype), weight.to(dtype), None if x_weights is None else x_weights.to(dtype))
    if not job.finite:
        node._check_finite(x, job.state)
    if job.record:
        node.v_seq = job.recorded
    node._memories.update((name, job.state[name]) for name in node._memories)
    node._report.last = job.state["v"]
    return spikes.to(x.dtype), job.state["y"].to(x.dtype)


class RecurrentNode(RuleNode):
    """A `RuleNode` of `features` neurons with recurrent weights: the input of a step is x[t] + weight s[t-1].

    `weight` is `[features, features]`, from the neuron of the column to that of the row, uniform in
    +-1/sqrt(features) at first. Input and output `[T, N, features]`, in step mode 'm' only.
    """

    y: Any

    def __init__(
        self, features: int, rule: str | LearningRule | None = None, *, step_mode: str = "m", store_v_seq: bool = False, **options: Any
    ) -> None:
        super().__init__(rule, step_mode=step_mode, store_v_seq=store_v_seq, **options)
        check_recurrent(self.rule, "RecurrentNode")
        if not isinstance(features, int) or features < 1:
            raise RuleError(f"RecurrentNode: features={features!r} should be a whole number, at least 1")
        self.features = features
        self.weight = nn.Parameter(torch.empty(features, features))
        nn.init.uniform_(self.weight, -(features**-0.5), features**-0.5)

    def _extra_memories(self) -> list[str]:
        return [*super()._extra_memories(), "y"]

    def extra_repr(self) -> str:
        return f"{self.features}, {super().extra_repr()}"

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(x_seq, Tensor) and x_seq.shape[-1:] != (self.features,):
            raise RuleError(f"{self._where()}: the input has shape {list(x_seq.shape)}; pass [T, N, {self.features}]")
        spikes, self.y = run_recurrent(self, x_seq, self.wiring(), self.y)
        return spikes

    def wiring(self) -> Tensor:
        """The weights from the neuron of the column to that of the row."""
        return self.weight

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        own = dict(self._memories)
        self._memories.update(zip(own, states, strict=True))
        try:
            return (self.multi_step_forward(*inputs),), tuple(self._memories.values())
        finally:
            self._memories.update(own)

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise RuleError(f"{self._where()}: a recurrent layer runs in step mode 'm'; call functional.set_step_mode(net, 'm')")


class InhibitedNode(RecurrentNode):
    """A `RuleNode` of `features` neurons, each of which inhibits the others one step after its spike: the last layer of ST-RSBP (section 4.1).

    The input of a step is x[t] - inhibition v_threshold (the spikes of the other neurons at t-1). These weights are fixed, and in no
    `state_dict`. J. H. Lee, T. Delbruck and M. Pfeiffer (Frontiers in Neuroscience 10:508, 2016) give them as a fraction of the threshold;
    the configurations of ST-RSBP's authors have 1 at thresholds of 15 (Fashion-MNIST) and 5 (MNIST).
    """

    def __init__(self, features: int, rule: str | LearningRule | None = None, *, inhibition: float = 0.1, **options: Any) -> None:
        super().__init__(features, rule, **options)
        if isinstance(inhibition, bool) or not isinstance(inhibition, (int, float)) or not 0 <= inhibition < float("inf"):
            raise RuleError(f"InhibitedNode: inhibition={inhibition!r} should be a fraction of the threshold, at least 0")
        self.inhibition = float(inhibition)
        del self.weight
        self.register_buffer("weight", torch.eye(features) - 1, persistent=False)

    def wiring(self) -> Tensor:
        return self.weight * (self.inhibition * float(getattr(self.rule, "v_threshold", 1.0)))  # of the rule that it has now

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, inhibition={self.inhibition:g}"


class RuleRecurrentContainer(layer.LinearRecurrentContainer):
    """SpikingJelly's `LinearRecurrentContainer` around a `RuleNode`: `convert` makes one of the other in place.

    The one linear layer `rc` holds both weights: `rc.weight = [feed-forward, recurrent]`.
    """

    y: Any

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        node, width = self.sub_module, self.rc.in_features - self.sub_module_out_features
        w_in, w_back, bias = self.rc.weight[:, :width], self.wiring(), self.rc.bias
        x, x_weights = F.linear(x_seq, w_in, bias), None
        if type(node.rule).couple is not LearningRule.couple:  # the rule may want other gradients for weights than for errors
            x_weights = F.linear(x_seq.detach(), w_in, bias)
            x = F.linear(x_seq, w_in.detach(), None if bias is None else bias.detach())
        spikes, self.y = run_recurrent(node, x, w_back, self.y, x_weights)
        return spikes

    def wiring(self) -> Tensor:
        """The weights from the neuron of the column to that of the row."""
        return self.rc.weight[:, -self.sub_module_out_features :]  # type: ignore[no-any-return]

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        node = self.sub_module
        if not node.rule.capabilities.single_step:
            raise RuleError(f"{node._where()}: a recurrent layer runs in step mode 'm'; call functional.set_step_mode(net, 'm')")
        return super().single_step_forward(x, *args, **kwargs)  # type: ignore[no-any-return]
