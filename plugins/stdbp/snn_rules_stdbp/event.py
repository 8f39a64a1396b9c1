"""STDBP's layers of exact spike times: a synapse and its neurons in one, fed by times and giving times.

Times are `[..., in]`, or `[..., C, H, W]` for a convolution; a neuron that has not fired counts as firing at the end
of the window. A bias is the weight of an input that fires at time 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from snn_rules import RecurrentNode, RuleError, RuleNode
from snn_rules.inputs import problem
from snn_rules.kernels import ops
from snn_rules.kernels.autograd import Stuck
from snn_rules.kernels.transforms import refuse
from snn_rules.neuron import warn_zero_gradient

from .event_op import first_spikes
from .first_spikes import _FirstSpikes

if TYPE_CHECKING:
    from .rule import STDBP


class _Fused:
    """What the fused layers share: the rule, the path, and the way back."""

    rule: STDBP
    path: str
    key: str  # the rule as text, inside `torch.compile`
    stock: type[nn.Module]

    def times(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x[B, in]` -> `[B, out]`."""
        if bias is not None:
            x, weight = F.pad(x, (0, 1)), torch.cat([weight, bias[:, None]], 1)
        if ops.traced():
            made: Tensor = first_spikes(x, weight, self.key)[0]
        else:
            made = _FirstSpikes.apply(x, weight, self.rule, self.passed)
        return made

    def check(self, x: Tensor, *weights: Tensor | None) -> None:
        if ops.traced():  # a graph does not look at values
            return
        where = f"layer {self.path!r} (stdbp)"
        if torch._C._are_functorch_transforms_active():
            raise refuse(where, "layers of spike times")
        if wrong := problem(x, "the spike times of rule.encode(x, T)"):
            raise RuleError(f"{where}: {wrong}")
        given = [w.detach() for w in weights if w is not None]
        if given[0].device != x.device:
            raise RuleError(f"{where}: the input is on {x.device}, its weights on {given[0].device}; move both to one device")
        x = x.detach()
        if not (bool(x.sum().isfinite()) or bool(x.isfinite().all())):  # one pass, and a second where the sum alone is too large
            wrong = "nan" if bool(torch.isnan(x).any()) else "inf"
            raise RuleError(f"{where}: the input holds {wrong}; pass the spike times of rule.encode(x, T)")
        if any(bool(w.sum().isnan()) and bool(w.isnan().any()) for w in given):  # its neuron would count as silent
            raise RuleError(f"{where}: its weights hold nan; lower the learning rate, and go on from weights without")

    def passed(self, g: Tensor, gradient: Tensor) -> None:
        if vars(self).setdefault("stuck", Stuck()).at(g, gradient):
            warn_zero_gradient(f"layer {self.path!r} (stdbp)", "stdbp")

    def unfuse(self) -> None:
        """Back to the layer that it was."""
        for name in ("rule", "path", "key", "stuck"):
            vars(self).pop(name, None)
        self.__class__ = vars(self).pop("stock")


class FirstSpikeLinear(_Fused, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.check(x, self.weight, self.bias)
        if x.shape[-1] != self.in_features or (x.dim() > 2 and x.shape[0] != 1):
            raise RuleError(
                f"layer {self.path!r} (stdbp): the input has shape {list(x.shape)}; pass times [1, N, {self.in_features}], each sent once"
            )
        out = self.times(x.reshape(-1, self.in_features), self.weight, self.bias)
        return out.view(*x.shape[:-1], self.out_features)


class FirstSpikeConv2d(_Fused, nn.Conv2d):
    padding: tuple[int, int]  # others are refused

    def forward(self, x: Tensor) -> Tensor:
        self.check(x, self.weight, self.bias)
        if x.dim() < 3 or x.shape[-3] != self.in_channels or (x.dim() > 4 and x.shape[0] != 1):
            shape = f"[1, N, {self.in_channels}, H, W]"
            raise RuleError(f"layer {self.path!r} (stdbp): the input has shape {list(x.shape)}; pass times {shape}, each sent once")
        images = x.reshape(-1, *x.shape[-3:])
        (top, left), window = self.padding, self.rule.window  # padding is silent
        padded = F.pad(images, (left, left, top, top), value=window)
        patches = F.unfold(padded, self.kernel_size, self.dilation, 0, self.stride)  # [N, in, L]
        rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        out = self.times(rows, self.weight.flatten(1), self.bias).view(*patches.shape[::2], self.out_channels).transpose(1, 2)
        height = (padded.shape[-2] - self.dilation[0] * (self.kernel_size[0] - 1) - 1) // self.stride[0] + 1
        return out.reshape(*x.shape[:-3], self.out_channels, height, patches.shape[2] // height)


class FirstSpikeMaxPool2d(_Fused, nn.MaxPool2d):
    """The earliest spike of the window."""

    def forward(self, x: Tensor) -> Tensor:
        images = x.reshape(-1, *x.shape[-3:])
        out = -F.max_pool2d(-images, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return out.view(*x.shape[:-3], *out.shape[1:])


class FirstSpikeDropout(_Fused, nn.Dropout):
    """A dropped neuron is silent: its time is the end of the window."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.rand_like(x) < self.p, self.rule.window, x) if self.training else x


class FusedNode(RuleNode):
    """The place of a neuron that its synapse has taken over: times pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def unfuse(self) -> None:
        self.__class__ = RuleNode


def fuse(net: nn.Module, rules: Mapping[str, STDBP]) -> None:
    """Turn each Linear or Conv2d and the neuron after it into a layer of first spikes, in place; refuse the rest by path."""
    for path, module in net.named_modules():
        if isinstance(module, (RecurrentNode, layer.LinearRecurrentContainer, layer.ElementWiseRecurrentContainer)):
            raise RuleError(_refusal(path, module, "is recurrent, but spike times are sent forward, once; use a feed-forward layer, or mode='clock'"))
    leaves = [(path, module) for path, module in net.named_modules() if path in rules or not list(module.children())]
    leaves = [(path, module) for path, module in leaves if not any(path.startswith(f"{site}.") for site in rules)]
    plan: list[tuple[str, nn.Module, type[nn.Module]]] = []
    pending: tuple[str, nn.Module] | None = None
    for path, module in leaves:
        if pending and path not in rules:
            raise RuleError(_refusal(*pending, "has no neuron right after it; put one there"))
        if path in rules:
            if pending is None:
                raise RuleError(_refusal(path, module, "has no Linear or Conv2d right before it; put one there"))
            plan.append((path, module, FusedNode))
            pending = None
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            _check_synapse(path, module)
            plan.append((path, module, FirstSpikeLinear if isinstance(module, nn.Linear) else FirstSpikeConv2d))
            pending = path, module
        elif isinstance(module, nn.MaxPool2d):
            plan.append((path, module, FirstSpikeMaxPool2d))
        elif type(module).__name__ == "Dropout":
            plan.append((path, module, FirstSpikeDropout))
        elif not isinstance(module, (nn.Flatten, nn.Identity)):
            raise RuleError(
                _refusal(path, module, "has no meaning for spike times; use Linear, Conv2d, MaxPool2d, Flatten, Dropout, or mode='clock'")
            )
    if pending:
        raise RuleError(_refusal(*pending, "has no neuron right after it; put one there"))
    rule = None
    for path, module, fused in reversed(plan):  # a synapse has the rule of the neuron after it, a pool that of the layer after it
        rule = rules.get(path, rule)
        _become(rule or next(iter(rules.values())), path, module, fused)


def _become(rule: STDBP, path: str, module: nn.Module, fused: type[nn.Module]) -> None:
    if fused is FusedNode:
        from snn_rules.conversion import become_node
        from snn_rules.site import site_of

        become_node(module, path, site_of(path, module), rule, 0.0)
        module.__class__ = FusedNode
        return
    stock = vars(module).get("stock", type(module))
    module.__class__ = fused
    vars(module).update(rule=rule, path=path, key=ops.key(rule), stock=stock)


def _check_synapse(path: str, module: nn.Module) -> None:
    if not isinstance(module, _Fused) and type(module).forward not in [kind.forward for kind in (nn.Linear, nn.Conv2d, layer.Linear, layer.Conv2d)]:
        raise RuleError(_refusal(path, module, "computes in a way of its own, which mode='event' would not; use Linear, Conv2d, or mode='clock'"))
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        raise RuleError(_refusal(path, module, "has no weight yet; run the network once first"))
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or isinstance(module.padding, str) or module.padding_mode != "zeros"):
        raise RuleError(_refusal(path, module, "has groups or a padding that mode='event' does not know; use groups=1 and a number of zeros"))


def _refusal(path: str, module: nn.Module, why: str) -> str:
    return f"convert: {path!r} ({type(module).__name__}) {why}"
