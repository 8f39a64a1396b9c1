"""EventProp: T. C. Wunderlich and C. Pehle, 2021. Tables and equations are the paper's."""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from snn_rules import LearningRule, Training, hookimpl, parameter, sweep
from snn_rules.coding import first_spike_loss, first_spike_steps, latency
from snn_rules.ops import heaviside, maximum, minimum, where


@dataclass(frozen=True)
class EventProp(LearningRule):
    """The exact gradient of spike times: an adjoint system that runs backwards in time and jumps at spikes.

    A leaky neuron with an exponential synapse, tau_m V' = -V + I, tau_s I' = -I; an input x raises I / tau_m by x (I by x with
    decay_input). The adjoints of V and I are -tau_m and -tau_s times the paper's lambda_V and lambda_I. Steps are forward Euler; a
    spike is at the step at which V has crossed. Of the layer above only lambda_V - lambda_I is needed, weighted, which is the
    difference over time of the gradient dL/ds that it sends: as exact as the steps are short.
    """

    tau_m: float = parameter(20.0, "steps", "membrane time constant tau_mem", low=1.0)
    tau_s: float = parameter(5.0, "steps", "synaptic time constant tau_syn", low=1.0)
    v_threshold: float = parameter(1.0, "", "firing threshold theta", low=1e-6)
    bound: float = parameter(math.inf, "steps", "largest |dt/dV|, at spikes that barely cross; the paper has none", low=0.0)
    revive: float = parameter(0.0, "steps", "|dt/dV| of a silent neuron that ought to fire, as if it crossed at the end; the paper has none", low=0.0)
    tau_0: float = parameter(2.0, "steps", "of the loss: unit of the times in the softmax", low=0.01)

    name = "eventprop"
    cite = "T. C. Wunderlich, C. Pehle. Event-based backpropagation can compute exact gradients for spiking neural networks. 2021."
    equations = "table 1 (neuron), table 2 (adjoint: free dynamics, jumps), Eq. 2 (gradient)"
    state = {"v": 0.0, "i": 0.0, "fired": 0.0}
    training = Training(T=40, lr=3e-3, batch_size=32, options={"bound": 20.0, "revive": 5.0})

    @property
    def expected_failed_checks(self):
        """Silence is what `revive` is for."""
        return {} if self.revive else {"silent_neurons_learn": "revive=0 is the paper's gradient: a silent neuron has no spike that could move"}

    def step(self, m, x):
        i = (1 - 1 / self.tau_s) * m.i + x  # I / tau_m; table 1
        u = (1 - 1 / self.tau_m) * m.v + i
        s = heaviside(u - self.v_threshold)
        return s, {"v": u * (1.0 - s), "i": i, "fired": maximum(m.fired, s)}, {"i": i}

    @sweep(reverse=True, dv=0.0, di=0.0, later=0.0, last=1.0)
    def adjoint(self, c, m):
        dv = (1 - 1 / self.tau_m) * c.dv  # -tau_m lambda_V, after the spike if there is one
        moved = c.later - m.g  # dL/dt of a spike here: W^T (lambda_V - lambda_I) of the layer above, and the loss
        rise = m.i - self.v_threshold / self.tau_m  # V' before the spike; after it, V = 0 and V' = I / tau_m
        slower = minimum(1.0 / where(m.s > 0.0, rise, 1.0), self.bound)  # -dt/dV
        du = where(m.s > 0.0, slower * (m.i * dv - moved), dv)  # the jump of lambda_V, table 2
        if self.revive:
            du = du - self.revive * (1.0 - m.fired) * c.last * maximum(moved, 0.0)
        di = du + (1 - 1 / self.tau_s) * c.di  # -tau_s lambda_I: what Eq. 2 sums at the spikes of each presynaptic neuron
        return {"dx": di}, {"dv": du, "di": di, "later": m.g, "last": 0.0}

    def adopt(self, site, given):
        """SpikingJelly's neurons have no synapse: with tau_s = 1 the forward pass is theirs."""
        rule = super().adopt(site, given)
        return rule if "tau_s" in given else replace(rule, tau_s=1.0)

    def initialize(self, net):
        """Weights under which most neurons fire: mean 3 / fan_in and deviation 2 / sqrt(fan_in), where 1 takes V to theta at once."""
        v = i = peak = 0.0
        for t in range(100):
            i = (1 - 1 / self.tau_s) * i + (self.gain if t == 0 else 0.0)
            v = (1 - 1 / self.tau_m) * v + i
            peak = max(peak, v)
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fan_in, unit = module.weight[0].numel(), self.v_threshold / peak
                nn.init.normal_(module.weight, 3 * unit / fan_in, 2 * unit / fan_in**0.5)
        return net

    def encode(self, x, T):
        """One spike a pixel in the first half of T steps, the brighter the earlier: `[T, N, *]`."""
        first = max(T // 2, 1)
        return torch.cat([latency(x, first), x.new_zeros(T - first, *x.shape)])

    def loss(self, out, target, reduction="mean"):
        """Cross entropy of the softmax over negative times of the first spikes, in tau_0; `[N, C]` has no times: the largest wins."""
        return first_spike_loss(-out if out.dim() == 2 else first_spike_steps(out) / self.tau_0, target, reduction)

    def predict(self, out):
        """The class that fires first."""
        return out.argmax(-1) if out.dim() == 2 else first_spike_steps(out).argmin(-1)


@hookimpl
def learning_rule():
    return EventProp
