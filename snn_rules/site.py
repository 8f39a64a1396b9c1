"""What SpikingJelly said of a neuron that a rule takes over: the constants that `convert` keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.model import spike_dhs
from torch import nn

from .neuron import RuleNode
from .rule import RuleError

_LIF = (neuron.LIFNode, neuron.OTTTLIFNode, neuron.SLTTLIFNode, spike_dhs.save_v_LIFNode)  # all fire as LIFNode does


@dataclass(frozen=True)
class Site:
    """The constants of a neuron of SpikingJelly's, in its own units: `v_threshold` and `v_reset` are potentials, `tau_m` is in steps."""

    tau_m: float
    v_threshold: float
    v_reset: float | None
    decay_input: bool
    detach_reset: bool = False
    surrogate: tuple[str, float] = ("Sigmoid", 4.0)  # the class of its surrogate function, and that one's alpha

    def options(self) -> dict[str, Any]:
        """The constants as options of a rule; the potential is measured from `v_reset`."""
        return {
            "tau_m": self.tau_m,
            "v_threshold": self.v_threshold - (self.v_reset or 0.0),
            "reset": "subtract" if self.v_reset is None else "zero",
            "decay_input": self.decay_input,
        }

    def after(self, option: str, node: RuleNode) -> Site:
        """The constants of that place, one of which has been set on the neuron since."""
        name = {"reset": "v_reset"}.get(option, option)
        return replace(self, **{name: getattr(node, name)}) if name in ("tau_m", "v_threshold", "v_reset", "decay_input", "detach_reset") else self


def site_of(path: str, module: nn.Module) -> Site | None:
    """What `convert` goes by; None for a neuron that was made as a `RuleNode` and has no constants of SpikingJelly's."""
    if isinstance(module, RuleNode):
        return module.site  # type: ignore[no-any-return]
    stock: Any = module
    kind = type(module)
    if kind is neuron.IFNode:
        tau, decay_input = math.inf, False
    elif kind in _LIF:
        tau, decay_input = float(stock.tau), stock.decay_input
    elif kind is neuron.ParametricLIFNode:
        tau, decay_input = 1.0 / float(stock.w.detach().sigmoid()), stock.decay_input
    else:
        raise RuleError(f"convert: {path!r} is a {kind.__name__}, which no rule can stand in for; use LIFNode, IFNode or ParametricLIFNode there")
    function = stock.surrogate_function
    if not getattr(function, "spiking", True):
        raise RuleError(f"convert: {path!r} has a surrogate_function with spiking=False and sends no spikes; pass spiking=True")
    surrogate = type(function).__name__, float(getattr(function, "alpha", math.nan))
    return Site(tau, stock.v_threshold, stock.v_reset, decay_input, stock.detach_reset, surrogate)
