"""STDBP in float64 from the paper's equations: the causal set is found by trying each, potentials are sums over spikes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .rule import STDBP


@dataclass
class Crossing:
    """The one spike of a neuron."""

    time: float  # t_j
    slope: float  # S_j, the sum of the weights of the causal set; 0 for a silent neuron
    causal: list[int]  # the inputs that have arrived before t_j


def crossing(times: list[float], weights: list[float], threshold: float, window: float) -> Crossing:
    """Eq. 12: the first t_j = (theta + sum w t) / sum w over a causal set, with t_n < t_j <= t_(n+1)."""
    arrivals = sorted({t for t in times if t < window})
    for n, t_n in enumerate(arrivals):
        causal = [i for i, t in enumerate(times) if t <= t_n]
        slope = sum(weights[i] for i in causal)
        if slope <= 0:
            continue
        t_j = (threshold + sum(weights[i] * times[i] for i in causal)) / slope
        t_next = arrivals[n + 1] if n + 1 < len(arrivals) else window
        if t_n < t_j <= t_next:
            return Crossing(t_j, slope, causal)
    return Crossing(window, 0.0, [])


def layer(times: list[float], weight: list[list[float]], threshold: float, window: float) -> list[Crossing]:
    """The spikes of all neurons; `weight[j][i]`."""
    return [crossing(times, row, threshold, window) for row in weight]


def layer_gradient(times: list[float], weight: list[list[float]], crossings: list[Crossing], g: list[float]) -> tuple[list[float], list[list[float]]]:
    """dL/dt_i and dL/dw_ji from g = dL/dt_j: Eqs. 14 and 15."""
    d_times, d_weight = [0.0] * len(times), [[0.0] * len(times) for _ in weight]
    for j, spike in enumerate(crossings):
        for i in spike.causal:
            d_weight[j][i] = g[j] * (times[i] - spike.time) / spike.slope
            d_times[i] += g[j] * weight[j][i] / spike.slope
    return d_times, d_weight


def clock(x: list[float], threshold: float) -> tuple[list[float], Crossing]:
    """mode="clock": V[t] = sum_(t'<t) x[t'] (t - t'), Eqs. 8 and 9; the spikes, and the crossing inside the step."""
    spikes = [0.0] * len(x)
    for t in range(len(x)):
        if sum(x[k] * (t - k) for k in range(t)) >= threshold:
            spikes[t] = 1.0
            slope = sum(x[:t])
            return spikes, Crossing((threshold + sum(x[k] * k for k in range(t))) / slope, slope, list(range(t)))
    return spikes, Crossing(float(len(x)), 0.0, [])


def clock_gradient(x: list[float], threshold: float, g: list[float], revive: float = 0.0) -> list[float]:
    """dL/dx from g = dL/ds: a spike that moves by a step exchanges g[t] for g[t+1]; then Eq. 14.

    With `revive`, a silent neuron crosses one step after the last with slope theta / revive, if it ought to fire earlier.
    """
    spikes, spike = clock(x, threshold)
    if not spike.slope:
        return [max(-g[-1], 0.0) * revive / threshold * (k - len(x)) for k in range(len(x))]
    t = spikes.index(1.0)
    dl_dt = (g[t + 1] if t + 1 < len(g) else 0.0) - g[t]
    return [dl_dt * (k - spike.time) / spike.slope if k in spike.causal else 0.0 for k in range(len(x))]


def spikes_and_gradient(rule: STDBP, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mode="clock": the spikes and dL/dx, `[T, N]`, from g = dL/ds."""
    trains = [clock(column.tolist(), rule.v_threshold)[0] for column in x.T]
    columns = zip(x.T.tolist(), g.T.tolist(), strict=True)
    return np.array(trains).T, np.array([clock_gradient(given, rule.v_threshold, wanted, rule.revive * rule.unit) for given, wanted in columns]).T
