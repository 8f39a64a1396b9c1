"""STDBP: M. Zhang et al., 2021. Equation numbers are the paper's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from snn_rules import Capabilities, LearningRule, RuleError, Training, hookimpl, parameter, sweep
from snn_rules.coding import check_steps, first_spike_loss, latency, latency_times, spike_steps
from snn_rules.ops import heaviside, maximum, where
from snn_rules.rule import Values

if TYPE_CHECKING:
    from snn_rules.kernels.cuda import Kernel


@dataclass(frozen=True)
class STDBP(LearningRule):
    """At most one spike a neuron, and its time is the signal. The potential is linear in time between input spikes
    (ReL-PSP, Eqs. 8 and 9), so the time of the crossing and its derivative are exact.

    mode="clock": spikes on the grid of time steps, a drop-in neuron. V[t] = sum_(t'<t) x[t'] (t - t').
    mode="event": exact times on the wire, `[1, N, *]`, no grid; `convert` fuses each layer with its neuron.

    The paper gives no threshold, window, initialisation or optimiser, and plain initialisation does not learn. What does
    is `initialize`, a silent background, a short window, a sharper loss, and `revive`. With paper=True the background fires, the window
    is 100 and the loss that of Eq. 13, and `snn-rules train` sets no `revive`; one that is given stays, and so does `initialize`.
    """

    mode: str = parameter("clock", "", "spikes on a grid, or exact times", choices=("clock", "event"))
    v_threshold: float = parameter(1.0, "", "firing threshold theta", low=1e-6)
    t_max: float = parameter(
        4.0, "", "mode='event': end of the window, with inputs in [0, 1]; a neuron silent until then counts as firing then", low=1.0
    )
    floor: float = parameter(0.02, "", "samples up to it are silent", low=0.0, high=1.0)
    sharpness: float = parameter(4.0, "1/time", "factor of the times in the softmax of Eq. 13", low=0.0)
    unit: int = parameter(8, "steps", "mode='clock': steps of the input's window, the unit of time", low=1)
    revive: float = parameter(
        0.0,
        "",
        "gradient of a silent neuron that should fire earlier, as if it crossed at the window's end with slope theta; 0: the exact one",
        low=0.0,
    )
    mean: float = parameter(4.0, "theta/time", "of `initialize`: sum of a neuron's weights, on average")
    spread: float = parameter(1.0, "theta/time", "of `initialize`: standard deviation of that sum", low=0.0)
    paper: bool = parameter(False, "", "nearer to the paper: no silent background, a window of 100 (mode='event'), sharpness 1")

    name: ClassVar[str] = "stdbp"
    cite: ClassVar[str] = "M. Zhang et al. Spike-timing-dependent back propagation in deep spiking neural networks. arXiv:2003.11837, 2021."
    equations: ClassVar[str] = "Eqs. 8, 9, 12 (forward), 13 (loss), 10, 14, 15 (backward)"
    aliases: ClassVar[Mapping[str, str]] = {"theta": "v_threshold", "threshold": "v_threshold"}
    state: ClassVar[Mapping[str, float]] = {"v": 0.0, "slope": 0.0, "fired": 0.0, "s_slope": 1.0, "s_over": 0.0}

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        if self.mode == "event":
            return Capabilities(exact=True, averaged=False, signal="times", pooling="max", resets=("zero", "subtract"))
        return Capabilities(averaged=False, pooling="max", resets=("zero", "subtract"))

    @property
    def training(self) -> Training:  # type: ignore[override]
        return Training(T=1 if self.mode == "event" else 4 * self.unit, lr=1e-3, batch_size=128, options={"revive": 0.0 if self.paper else 1.0})

    @property
    def expected_failed_checks(self) -> dict[str, str]:  # type: ignore[override]
        """A silent neuron has no spike that could move; `revive` is what is done about it."""
        return {} if self.revive else {"silent_neurons_learn": "revive=0 is the paper's gradient: a silent neuron has no spike that could move"}

    @property
    def window(self) -> float:
        """The time at which a silent neuron counts as firing."""
        return 100.0 if self.paper else self.t_max

    # ---- mode="clock" ------------------------------------------------------------------------------------------

    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        v = m.v + m.slope  # V[t], Eqs. 8 and 9: slope holds the inputs before t
        s = heaviside(v - self.v_threshold) * (1.0 - m.fired)
        state = {
            "v": v,
            "slope": m.slope + x,
            "fired": maximum(m.fired, s),
            "s_slope": where(s > 0.0, m.slope, m.s_slope),  # S_j and how far V overshot at the step of the spike:
            "s_over": where(s > 0.0, v - self.v_threshold, m.s_over),  # the crossing lies s_over / s_slope before it
        }
        return s, state, {}

    @sweep(reverse=True, later=0.0, pull=0.0, ago=0.0, last=1.0)
    def backward(self, c: Any, m: Any) -> tuple[Values, Values]:
        moved, pull = c.later - m.g, c.pull  # dL/dt_j: the spike one step later
        if self.revive:  # a silent neuron counts as firing one step after the last
            silent = c.last * (1.0 - m.fired)
            pull = where(silent > 0.0, (self.revive * self.unit / self.v_threshold) * maximum(moved, 0.0), pull)
        dx = pull * (c.ago - 1.0)  # dL/dt_j (t' - t_j) / S_j for t' < t_j, Eq. 14; W makes Eq. 15 of it
        pull = where(m.s > 0.0, moved / m.s_slope, pull)  # dL/dt_j / S_j, Eq. 10
        ago = where(m.s > 0.0, m.s_over / m.s_slope, c.ago - 1.0)  # t' - t_j
        return {"dx": dx}, {"later": m.g, "pull": pull, "ago": ago, "last": 0.0}

    # ---- mode="event" ------------------------------------------------------------------------------------------

    @property
    def event_state(self) -> dict[str, float]:
        """What a neuron carries from input to input, and its values before the first: those of a silent neuron."""
        return {"v": 0.0, "slope": 0.0, "time": self.window, "s_slope": 0.0}

    def event(self, m: Any, w: Any, dt: Any) -> Values:
        """One input spike at one neuron, `dt` after the one before at `m.now`: cross the threshold on the way (Eq. 12), then add `w`.

        The slope S is the sum of the weights that have arrived: sums run over the causal set only.
        """
        v = m.v + m.slope * dt
        crossed = v >= self.v_threshold
        return {
            "v": where(crossed, -math.inf, v),  # a neuron fires once
            "slope": m.slope + w,
            "time": where(crossed, m.now + (self.v_threshold - m.v) / m.slope, m.time),
            "s_slope": where(crossed, m.slope, m.s_slope),
        }

    def pull(self, m: Any) -> Any:
        """dL/dt_j / S_j of a neuron with spike time t_j, S_j = `m.s_slope` and dL/dt_j = `m.g`: Eq. 10."""
        return where(m.s_slope > 0.0, m.g / m.s_slope, (self.revive / self.v_threshold) * maximum(m.g, 0.0))

    def causal(self, m: Any) -> tuple[Any, Any]:
        """What an input at `m.t` with weight `m.w` receives from a neuron at `m.time` that pulls with `m.pull`: dL/dt_i and dL/dw_ij."""
        pull = where(m.t < m.time, m.pull, 0.0)
        return pull * m.w, pull * (m.t - m.time)  # Eqs. 15 and 14

    def fuse(self, net: nn.Module, rules: Mapping[str, LearningRule]) -> bool:
        if self.mode == "clock":
            return False
        from .event import fuse

        fuse(net, rules)  # type: ignore[arg-type]
        return True

    def own_layers(self, x: Tensor) -> tuple[str, str] | None:
        from .first_spikes import executor

        runner = executor(self, x, x)
        return runner.name, runner.why

    def own_kernels(self) -> "tuple[Kernel, ...]":
        from .event_cuda import kernels

        return kernels(self)

    # ---- in a network ------------------------------------------------------------------------------------------

    def initialize(self, net: nn.Module) -> nn.Module:
        """Weights whose sum is positive: normal, with mean `mean`/fan_in and standard deviation `spread`/sqrt(fan_in)."""
        from snn_rules.conversion import synapses

        for module, rule in synapses(net, self):
            theta = rule.v_threshold / (rule.unit if rule.mode == "clock" else 1)
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, theta * rule.mean / fan_in, theta * rule.spread / fan_in**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        return net

    def encode(self, x: Tensor, T: int) -> Tensor:
        """The brighter, the earlier (Fig. 4): the time 1 - x, `[1, N, *]`; on the grid one spike in the first `unit` of T steps."""
        floor = -1.0 if self.paper else self.floor
        if self.mode == "event":
            return latency_times(x, self.window, floor)
        check_steps(T)
        first = min(T, self.unit)
        return torch.cat([latency(x, first, floor), x.new_zeros(T - first, *x.shape)])

    def times(self, out: Tensor) -> Tensor:
        """The network's output as spike times `[N, C]`, in units of the input's window."""
        if self.mode == "event" and out.dim() > 2 and out.shape[:-2].numel() != 1:
            raise RuleError(f"stdbp: the output has shape {list(out.shape)}, but mode='event' sends each time once: pass rule.encode(x, T)")
        if self.mode == "event":
            return out.flatten(0, -3)[0] if out.dim() > 2 else out
        return spike_steps(out) / self.unit

    def loss(self, out: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Cross entropy of the softmax over negative first-spike times, Eq. 13.

        `[N, C]` in mode="clock" has no times left (the model has averaged them): there the largest value wins.
        """
        if self.mode == "clock" and out.dim() == 2:
            return first_spike_loss(-out, target, reduction)
        return first_spike_loss((1.0 if self.paper else self.sharpness) * self.times(out), target, reduction)

    def predict(self, out: Tensor) -> Tensor:
        """The class that fires first."""
        return out.argmax(-1) if self.mode == "clock" and out.dim() == 2 else self.times(out).argmin(-1)


@hookimpl
def learning_rule() -> type[LearningRule]:
    return STDBP
