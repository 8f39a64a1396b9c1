"""TSSL-BP: W. Zhang and P. Li, NeurIPS 2020. Equation numbers are the paper's."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from snn_rules import Capabilities, LearningRule, RuleError, Training, hookimpl, parameter, sweep
from snn_rules.coding import psc, van_rossum_loss
from snn_rules.ops import clip, exp, heaviside, where
from snn_rules.rule import Sweep, Values

PATTERNS = {"paper": (0.0, 1.0, 0.0, 1.0, 1.0), "code": (0.0, 1.0, 1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class TSSL(LearningRule):
    """Spikes reach each other through their firing times; within a neuron, a spike moves the next one.

    The paper filters the spikes that a neuron sends into a post-synaptic current (PSC). Here the filter sits at the
    input of the neuron that receives them, which is the same over a synapse without bias, and leaves spikes on the wire.
    """

    tau_m: float = parameter(5.0, "steps", "membrane time constant", low=1.0)
    tau_s: float = parameter(3.0, "steps", "synaptic time constant of the PSC", low=1.0)
    v_threshold: float = parameter(1.0, "", "firing threshold V_th")
    reset: str = parameter("zero", "", "what a spike does to the potential", choices=("zero", "subtract"))
    fire: str = parameter(">=", "", "a spike where u >= V_th (SpikingJelly) or u > V_th (paper)", choices=(">=", ">"))
    psc: str = parameter(
        "input", "", "where the PSC filter sits; 'output' (the authors' wiring) sends currents, not spikes", choices=("input", "output")
    )
    dadt: str = parameter(
        "code",
        "",
        "reading of da/dt_m in Eq. 12: the authors' code (ca5da518), a shift by one step, or the continuous derivative",
        choices=("code", "shift", "continuous"),
    )
    intra: bool = parameter(True, "", "a spike moves the next spike of its neuron (Eq. 13)")
    leak: bool = parameter(True, "", "silent steps pass the error of the next spike on; by the text of 3.3.3 and 3.3.4 they have none")
    bound: float = parameter(8.0, "1/v", "largest |dt/du| of Eq. 12 (supplement 2.3)", low=0.0)
    warmup: str = parameter(
        "element",
        "",
        "where a sigmoid surrogate replaces the rule (supplement 2.3): neuron-steps with little PSC, layers without a spike, nowhere",
        choices=("element", "layer", "off"),
    )
    target: str = parameter(
        "paper", "", "wanted spike train of the class: paper 0,1,0,1,1 or code 0,1,1,1,1; repeated beyond (ours)", choices=("paper", "code")
    )

    name: ClassVar[str] = "tssl"
    cite: ClassVar[str] = "W. Zhang, P. Li. Temporal spike sequence learning via backpropagation for deep spiking neural networks. NeurIPS 2020."
    equations: ClassVar[str] = "Eqs. 3-5 (forward), 7 (loss), 11-14 (backward); supplement 2.3 (bound, warm-up)"
    state: ClassVar[Mapping[str, float]] = {"v": 0.0, "i": 0.0, "a": 0.0}
    capabilities: ClassVar[Capabilities] = Capabilities(resets=("zero", "subtract"))
    training: ClassVar[Training] = Training(T=5, lr=5e-4, batch_size=50, clip=1.0, reduction="sum", normalize=True)
    diagnostics: ClassVar[Mapping[str, Any]] = {"warmup_fraction": lambda values: values.warm.mean() / values.T}

    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        i = x if self.psc == "output" else (1 - 1 / self.tau_s) * m.i + (1 / self.tau_s) * x  # Eq. 3, at the input
        u = (1 - 1 / self.tau_m) * m.v + i  # Eq. 4
        s = heaviside(u - self.v_threshold) if self.fire == ">=" else 1.0 - heaviside(self.v_threshold - u)  # Eq. 5
        v = u * (1.0 - s) if self.reset == "zero" else u - self.v_threshold * s
        a = (1 - 1 / self.tau_s) * m.a + (1 / self.tau_s) * s  # the neuron's own PSC, Eq. 3
        out = a if self.psc == "output" else s
        return out, {"v": v, "i": i, "a": a}, {"u": u, "du": u - m.v, "spike": s, "psc": a}

    @sweep(reverse=False, fired=0.0)
    def count(self, c: Any, m: Any) -> tuple[Values, Values]:
        return {}, {"fired": c.fired + m.spike}

    @sweep(reverse=True, th=0.0, later=0.0, b=0.0, out=0.0, warm=0.0)
    def backward(self, c: Any, m: Any) -> tuple[Values, Values]:
        lam, keep = 1 / self.tau_m, 1 - 1 / self.tau_s
        # G[t] = sum_k eps[k] dL/da[t+k]: the receiving neurons' input filters have summed it, or the output filter does
        out = keep * c.out + m.g if self.psc == "output" else m.g
        g = (1 / self.tau_s) * out if self.psc == "output" else m.g
        if self.dadt == "code":  # e[t] = - sum_k da[k]/dt_m dL/da[k], Eq. 12
            e = g
        elif self.dadt == "shift":
            e = g - c.later
        else:
            e = (-keep / self.tau_s) * c.later
        if self.warmup == "off":
            cold, under = 0.0 * m.spike, m.du
        else:  # h = 1 / (1 + decay) = sigmoid(5 (u - V_th)); a cold step has no spike: one division serves both
            cold = m.cold if self.warmup == "layer" else 1.0 - heaviside(m.psc - 1 / (4 * self.tau_s))
            decay = exp(clip(5.0 * self.v_threshold - 5.0 * m.u, -8.0, 8.0))
            under = where(cold > 0.0, 1.0 + decay, m.du)
        over = 1.0 / under
        slope = clip(over, 0.0, self.bound)  # - dt_m/du[t_m], Eq. 12
        amplitude = m.u if self.reset == "zero" else self.v_threshold  # of the reset kernel nu
        moved = e + (lam * amplitude) * c.th if self.intra else e  # by dt_m: the others' currents, Eq. 11, and the own next spike, Eq. 13
        d = where(m.spike > 0.0, slope * moved, (1 - lam) * c.th)  # dL/du[t]; th decays with the kernel
        error = d if self.leak else where(m.spike > 0.0, d, 0.0)  # 3.3.3, 3.3.4
        if self.warmup != "off":
            error = where(cold > 0.0, 5.0 * g * (over - over * over), error)  # 5 h (1 - h)
        b = error if self.psc == "output" else error + keep * c.b  # adjoint of the input filter
        dx = b if self.psc == "output" else (1 / self.tau_s) * b
        return {"dx": dx}, {"th": d, "later": g, "b": b, "out": out, "warm": c.warm + cold}

    @property
    def sweeps(self) -> tuple[Sweep, ...]:  # type: ignore[override]
        return (TSSL.count, TSSL.backward) if self.warmup == "layer" else (TSSL.backward,)

    def between(self, sums: Any) -> Values:
        return {"cold": torch.full_like(sums.fired, float(sums.fired.sum() == 0))}

    def adopt(self, site: Any, given: frozenset[str]) -> Self:
        """With tau_s = 1 the forward pass is LIFNode's, spike for spike."""
        rule = super().adopt(site, given)
        return rule if "tau_s" in given else replace(rule, tau_s=1.0)

    def train(self, T: int) -> Tensor:
        """The wanted spike train of the class over T steps."""
        pattern = PATTERNS[self.target] if T > 1 else (1.0,)
        return torch.tensor([pattern[t % len(pattern)] for t in range(T)])

    def stock(self) -> tuple[str, Values]:
        """A synapse that is none (tau_s = 1) leaves SpikingJelly's LIF neuron."""
        from snn_rules.stock import leaky

        if self.fire == ">" or self.psc == "output":
            given = "fire='>'" if self.fire == ">" else "psc='output'"
            raise RuleError(f"has {given}, which no neuron of SpikingJelly does; convert with fire='>=' and psc='input'")
        return leaky(self, self.tau_s)

    def loss(self, out: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """1/2 sum_t (eps*d - eps*s)^2, Eq. 7; `out` is `[T, N, C]` or `[N, C]`."""
        return van_rossum_loss(out, target, self.train(out.shape[0] if out.dim() > 2 else 5).to(out), self.tau_s, reduction)

    def predict(self, out: Tensor) -> Tensor:
        """The class whose PSC is largest over the window."""
        return (psc(out, self.tau_s).sum(0) if out.dim() > 2 else out).argmax(-1)


@hookimpl
def learning_rule() -> type[LearningRule]:
    return TSSL
