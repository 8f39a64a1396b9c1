"""ST-RSBP: W. Zhang and P. Li, NeurIPS 2019. Equation numbers are the supplement's; the paper's are marked P."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from snn_rules import LearningRule, RuleError, Training, hookimpl, parameter, sweep
from snn_rules.coding import count_loss, poisson
from snn_rules.ops import heaviside, maximum, where
from snn_rules.rule import Values
from snn_rules.zeros import at_spikes

from .spsp import slope


@dataclass(frozen=True)
class STRSBP(LearningRule):
    """The error is carried by spike counts; how a spike train acts on a count is its S-PSP, e_ij (Eq. 6).

    With c_i[t] = 1 at each own spike and the membrane's memory cut at the spike before, h_i is the adjoint of synapse
    and membrane applied to c_i, and e_ij = sum_t h_i[t] s_j[t]: exactly Eq. 6, for every presynaptic j at once. So
    dL/dx_i[t] = z_i h_i[t], with which the synapse's ordinary backward pass makes Eq. 28.
    """

    tau_m: float = parameter(64.0, "ms", "membrane time constant (a step is 1 ms)", low=1.0)
    tau_s: float = parameter(8.0, "ms", "synaptic time constant", low=1.0)
    v_threshold: float = parameter(10.0, "mV", "firing threshold nu", low=1e-6)
    t_ref: int = parameter(2, "steps", "refractory period", low=0)
    delay: int = parameter(1, "steps", "synaptic delay of the input", low=0)
    gradient: str = parameter(
        "adjoint", "", "of a recurrent layer's weights: the total derivative, or Eq. 26, which Eq. 28 abbreviates", choices=("adjoint", "paper")
    )
    solver: str = parameter(
        "taylor", "", "of Eq. 20: the first-order Taylor expansion of the inverse, or a linear solve", choices=("taylor", "exact")
    )
    silent: str = parameter("expected", "", "neurons without a spike: their expected effect, or the formula's limit", choices=("expected", "zero"))
    rate: float = parameter(0.5, "spikes/step", "of the Poisson input code at a pixel of 1", low=0.0, high=1.0)
    desired: float = parameter(35.0, "spikes", "count wanted of the class, in 400 steps (scales with T)", low=0.0)
    undesired: float = parameter(5.0, "spikes", "count wanted of the other classes, in 400 steps (scales with T)", low=0.0)
    margin: float = parameter(0.0, "spikes", "taken off the size of each count's error, in 400 steps (scales with T)", low=0.0)

    name: ClassVar[str] = "strsbp"
    cite: ClassVar[str] = "W. Zhang, P. Li. Spike-train level backpropagation for training deep recurrent spiking neural networks. NeurIPS 2019."
    equations: ClassVar[str] = "supplement Eqs. 2, 3, 5 (forward), 6 (S-PSP), 19, 20 (Omega, Theta), 26, 27, 28 (gradients); paper Eq. 3 (loss)"
    aliases: ClassVar[Mapping[str, str]] = {"tau": "tau_m", "nu": "v_threshold"}
    state: ClassVar[Mapping[str, float]] = {"v": 0.0, "p": 0.0, "r": 0.0}
    training: ClassVar[Training] = Training(T=100, lr=1e-3, batch_size=50)
    diagnostics: ClassVar[Mapping[str, Any]] = {"omega_clamped": lambda values: values.clamped.mean()}

    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        p = (1 - 1 / self.tau_s) * m.p + x  # Eq. 2
        active = heaviside(-m.r)  # 0 in the t_ref steps after a spike
        q = active * ((1 - 1 / self.tau_m) * m.v + (1 / self.tau_s) * p)  # Eqs. 3, 5: Eq. 1 without 1 / tau_m at its input
        s = heaviside(q - self.v_threshold)
        r = where(s > 0.0, float(self.t_ref), maximum(m.r - 1.0, 0.0))
        return s, {"v": q * (1.0 - s), "p": p, "r": r}, {"active": active}

    @sweep(reverse=False, o=0.0, X=0.0, g_spikes=0.0, g_all=0.0)
    def totals(self, c: Any, m: Any) -> tuple[Values, Values]:
        return {}, {"o": c.o + m.s, "X": c.X + m.x, "g_spikes": c.g_spikes + m.g * m.s, "g_all": c.g_all + m.g}

    def between(self, sums: Any) -> Values:
        expected = 1.0 if self.silent == "expected" else 0.0
        at_spikes = sums.g_spikes / maximum(sums.o, 1.0)  # dE/do_i: Eq. 27 seen from below, e_li / o_i
        delta = where(sums.o > 0.0, at_spikes, (expected / sums.T) * sums.g_all) * (1 / self.v_threshold)  # Eqs. 10, 11
        omega = 1.0 - self.spsp_slope(sums.o, sums.T) * sums.X * (1 / self.v_threshold)  # Eq. 19: sum_j w_ij de_ij/do_i = q(o_i) sum_j w_ij o_j
        size = maximum(omega, -omega)
        bounded = (2.0 * heaviside(omega) - 1.0) * maximum(size, 0.5)
        virtual = expected * (1.0 - heaviside(sums.o - 0.5))  # a spike in the last step stands for the silent
        return {"virtual": virtual, "delta": delta, "omega": bounded, "scale": delta / bounded, "clamped": 1.0 - heaviside(size - 0.5)}

    @sweep(reverse=True, y=0.0, b=0.0, last=1.0)
    def spsp(self, c: Any, m: Any) -> tuple[Values, Values]:
        s = m.s + c.last * m.virtual
        y = s + (1.0 - s) * (m.active * ((1 - 1 / self.tau_m) * c.y))  # membrane, from a spike back to the one before
        b = (1 / self.tau_s) * y + (1 - 1 / self.tau_s) * c.b  # synapse; not reset by spikes
        return {"dx": b}, {"y": y, "b": b, "last": 0.0}

    def couple(self, weight: Tensor, dx: Tensor, s_before: Tensor, sums: Any) -> tuple[Tensor, Tensor]:
        """z = (Omega - Theta)^-T delta of a recurrent layer, sample by sample (Eqs. 19, 20)."""
        alone, o, expected = sums.delta / sums.omega, sums.o, float(self.silent == "expected")
        if self.solver == "taylor":  # (Omega - Theta)^-1 = Omega^-1 + Omega^-1 Theta Omega^-1 + ..., for which Theta is not built
            own = alone * dx
            coupled = torch.where(o > 0, at_spikes(own, weight, s_before) / o.clamp(min=1), expected / sums.T * (own[1:].sum(0) @ weight))
            z = alone + coupled / (self.v_threshold * sums.omega)
        else:
            e = torch.einsum("tni,tnp->nip", dx, s_before)  # S-PSPs within the layer; a matrix a sample is large, so it is worked on in place
            silent = (expected / sums.T * dx[1:].sum(0)).unsqueeze(-1)  # heard a step later
            matrix = torch.where(o.unsqueeze(-2) > 0, e.div_(o.unsqueeze(-2).clamp(min=1)), silent).mul_(-weight / self.v_threshold)  # -Theta
            matrix.diagonal(dim1=-2, dim2=-1).add_(sums.omega)
            z = torch.linalg.solve(matrix.mT, sums.delta)
        return z, z if self.gradient == "adjoint" else alone

    def spsp_slope(self, counts: Any, T: int) -> Any:
        """q(o_i): the slope in o_i of the mean S-PSP that one presynaptic spike makes (Fig. 3C), at counts of T steps."""
        return slope(counts, self.tau_m, self.tau_s, T, self.t_ref)

    def adopt(self, site: Any, given: frozenset[str]) -> Self:
        """SpikingJelly's neurons have neither synapse nor delay; the refractory period stays."""
        plain: Values = {"tau_s": 1.0, "delay": 0, "t_ref": 2}
        return replace(super().adopt(site, given), **{k: v for k, v in plain.items() if k not in given})

    def stock(self) -> tuple[str, Values]:
        """Without delay and refractory period, a synapse and a LIF neuron remain."""
        from snn_rules.stock import leaky

        if self.delay or self.t_ref:
            given = f"delay={self.delay}" if self.delay else f"t_ref={self.t_ref}"
            raise RuleError(f"has {given}, which no neuron of SpikingJelly has; convert with delay=0 and t_ref=0")
        return leaky(self, self.tau_s)

    def initialize(self, net: nn.Module) -> nn.Module:
        """Uniform in +-1.5 nu / sqrt(fan_in), nu being that of the layer's neurons: the paper's U[-1, 1] for 784 inputs and nu = 20."""
        from snn_rules.conversion import synapses

        for module, rule in synapses(net, self):
            span = 1.5 * rule.v_threshold / rule.gain / module.weight[0].numel() ** 0.5
            nn.init.uniform_(module.weight, -span, span)
        return net

    def encode(self, x: Tensor, T: int) -> Tensor:
        """Poisson spikes, `[T, N, *]`, with `rate * x` a step."""
        return poisson(x, T, self.rate)

    def loss(self, out: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """1/2 |o - y|^2 over spike counts (P3); `out` is `[T, N, C]`, or `[N, C]` where the model has averaged time."""
        unit = out.shape[0] / 400 if out.dim() > 2 else 1 / 400
        return count_loss(out, target, self.desired * unit, self.undesired * unit, self.margin * unit, reduction)


@hookimpl
def learning_rule() -> type[LearningRule]:
    return STRSBP
