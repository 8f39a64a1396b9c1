"""The baseline: SpikingJelly's LIF neuron with its surrogate gradient (Neftci, Mostafa & Zenke, 2019)."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .hookspecs import hookimpl
from .ops import heaviside, sigmoid, spike
from .rule import Capabilities, LearningRule, Training, Values, parameter, warn_once

SHAPES = {"Sigmoid": "sigmoid", "ATan": "atan"}  # SpikingJelly's surrogate functions that are options here


@dataclass(frozen=True)
class Surrogate(LearningRule):
    """`LIFNode` with its defaults. No sweep: the adjoint is derived from the step, through the declared slope.

    u[t] = (1 - 1/tau_m) v[t-1] + x[t]          (x / tau_m with decay_input)
    s[t] = H(u[t] - v_threshold),   ds/du = slope(u[t] - v_threshold)
    v[t] = u[t] (1 - s[t])                      (u[t] - v_threshold s[t] with reset="subtract")
    """

    tau_m: float = parameter(2.0, "steps", "membrane time constant", low=1.0)
    v_threshold: float = parameter(1.0, "", "firing threshold")
    reset: str = parameter("zero", "", "what a spike does to the potential", choices=("zero", "subtract"))
    surrogate: str = parameter("sigmoid", "", "shape of the declared slope", choices=("sigmoid", "atan"))
    alpha: float = parameter(4.0, "", "steepness of the declared slope", low=0.0)
    detach_reset: bool = parameter(False, "", "let no gradient pass through the reset")
    decay_input: bool = parameter(True, "", "drive the neuron with x / tau_m, as LIFNode does")

    name: ClassVar[str] = "surrogate"
    cite: ClassVar[str] = "E. O. Neftci, H. Mostafa, F. Zenke. Surrogate gradient learning in spiking neural networks. IEEE SPM, 2019."
    equations: ClassVar[str] = "SpikingJelly 2.0, LIFNode and surrogate.Sigmoid"
    state: ClassVar[dict[str, float]] = {"v": 0.0}
    capabilities: ClassVar[Capabilities] = Capabilities(single_step=True, resets=("zero", "subtract"))
    training: ClassVar[Training] = Training(T=10, lr=1e-3, batch_size=100, options={"decay_input": False})

    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        u = (1 - 1 / self.tau_m) * m.v + x
        s = spike(u - self.v_threshold, self.slope(u - self.v_threshold))
        r = heaviside(u - self.v_threshold) if self.detach_reset else s
        v = u * (1.0 - r) if self.reset == "zero" else u - self.v_threshold * r
        return s, {"v": v}, {}

    def slope(self, z: Any) -> Any:
        """The derivative that stands in for that of the Heaviside step."""
        if self.surrogate == "atan":
            w = (math.pi / 2 * self.alpha) * z
            return (0.5 * self.alpha) / (1.0 + w * w)
        h = sigmoid(self.alpha * z)
        return self.alpha * h * (1.0 - h)

    def adopt(self, site: Any, given: frozenset[str]) -> "Surrogate":
        """With the neuron's `detach_reset` and surrogate function, too, as far as this rule has it."""
        (kind, alpha), offered = site.surrogate, {"detach_reset": site.detach_reset}
        if kind in SHAPES and "surrogate" not in given:
            offered |= {"surrogate": SHAPES[kind], "alpha": alpha}
        elif "surrogate" not in given:
            warn_once(self.name, f"surrogate_function={kind}")
        return replace(super().adopt(site, given), **{name: value for name, value in offered.items() if name not in given})

    def stock(self) -> tuple[str, Values]:
        from spikingjelly.activation_based import surrogate

        from .stock import leaky

        name, keywords = leaky(self)
        function = surrogate.Sigmoid(self.alpha) if self.surrogate == "sigmoid" else surrogate.ATan(self.alpha)
        return name, {**keywords, "surrogate_function": function, "detach_reset": self.detach_reset}


@hookimpl
def learning_rule() -> type[LearningRule]:
    return Surrogate
