"""e-prop: G. Bellec et al., 2020. Names are the paper's."""

from dataclasses import dataclass, replace

import torch

from snn_rules import Capabilities, LearningRule, Training, hookimpl, parameter, sweep
from snn_rules.ops import heaviside, maximum, where


@dataclass(frozen=True)
class EProp(LearningRule):
    """What a neuron learns is local: the signal L[t] = dL/ds[t] that reaches it from above, times its eligibility traces.

    dE/dW_ji = sum_t L_j[t] e_ji[t]. A trace e_ji[t] is psi_j[t] times a filter of the spikes of i, so the sum over t is the same
    filter, run backwards in time over psi_j L_j, and then summed with the spikes of i, which a linear layer's own backward pass
    does. Nothing flows through the recurrent weights of a layer, or through the reset; the adaptive threshold (beta) has its trace.
    """

    tau_m: float = parameter(20.0, "steps", "membrane time constant (alpha = 1 - 1/tau_m)", low=1.0)
    v_threshold: float = parameter(1.0, "", "firing threshold v_th", low=1e-6)
    beta: float = parameter(0.0, "", "rise of the threshold by a spike; 0: neurons without adaptation (LIF)", low=0.0)
    tau_a: float = parameter(200.0, "steps", "time constant of the adaptation (rho = 1 - 1/tau_a)", low=1.0)
    t_ref: int = parameter(2, "steps", "refractory period", low=0)
    gamma: float = parameter(0.3, "", "height of the pseudo-derivative psi, gamma / v_th", low=0.0)
    reset: str = parameter("subtract", "", "what a spike does to the potential; the paper subtracts", choices=("subtract", "zero"))

    name = "eprop"
    cite = "G. Bellec et al. A solution to the learning dilemma for recurrent networks of spiking neurons. Nature Communications, 2020."
    equations = "Eq. 1 (gradient); Methods: LIF and ALIF neurons, their pseudo-derivative, their eligibility traces"
    state = {"v": 0.0, "a": 0.0, "r": 0.0}
    capabilities = Capabilities(resets=("subtract", "zero"))
    training = Training(T=20, lr=3e-3, batch_size=32)

    def step(self, m, x):
        active = heaviside(-m.r)  # 0 in the t_ref steps after a spike
        u = (1 - 1 / self.tau_m) * m.v + x
        above = u - (self.v_threshold + self.beta * m.a)
        s = active * heaviside(above)
        psi = active * maximum(1.0 - maximum(above, -above) * (1 / self.v_threshold), 0.0) * (self.gamma / self.v_threshold)
        v = u - self.v_threshold * s if self.reset == "subtract" else u * (1.0 - s)
        r = where(s > 0.0, float(self.t_ref), maximum(m.r - 1.0, 0.0))
        return s, {"v": v, "a": (1 - 1 / self.tau_a) * m.a + s, "r": r}, {"psi": psi}

    @sweep(reverse=True, v=0.0, a=0.0)
    def traces(self, c, m):
        """The adjoint of the eligibility vector (eps_v, eps_a): its recursion, transposed and run backwards."""
        local = m.psi * (m.g + c.a)  # psi (L + what the threshold's trace hands on)
        v = local + (1 - 1 / self.tau_m) * (c.v if self.reset == "subtract" else c.v * (1.0 - m.s))
        return {"dx": v}, {"v": v, "a": (1 - 1 / self.tau_a) * c.a - self.beta * local}

    def couple(self, weight, dx, s_before, sums):
        """A recurrent layer: its own weights learn from the same traces, and no error passes through them."""
        return torch.ones_like(dx[0]), torch.ones_like(dx[0])

    def adopt(self, site, given):
        """SpikingJelly's neurons are not refractory."""
        rule = super().adopt(site, given)
        return rule if "t_ref" in given else replace(rule, t_ref=0)


@hookimpl
def learning_rule():
    return EProp
