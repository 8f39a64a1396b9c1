"""TSSL-BP for one neuron, in float64, from the definitions of the paper: sums over pairs of steps, nothing recursive in time."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import numpy as np

from .rule import TSSL


@dataclass
class Trace:
    """One neuron over T steps."""

    u: list[float]  # potential before the reset
    du: list[float]  # its rise over the step
    s: list[float]  # spikes
    a: list[float]  # the neuron's own PSC


def eps(rule: TSSL, k: int) -> float:
    """The spike response kernel of Eqs. 2 and 3, in Euler steps."""
    return (1 - 1 / rule.tau_s) ** k / rule.tau_s if k >= 0 else 0.0


def forward(rule: TSSL, x: list[float]) -> Trace:
    """Eqs. 2 to 5. The input filter is a convolution; with psc="output" the input is a current already."""
    trace, T = Trace([], [], [], []), len(x)
    for t in range(T):
        i = x[t] if rule.psc == "output" else sum(eps(rule, t - k) * x[k] for k in range(t + 1))
        before = 0.0
        if t:
            before = trace.u[-1] * (1 - trace.s[-1]) if rule.reset == "zero" else trace.u[-1] - rule.v_threshold * trace.s[-1]
        u = (1 - 1 / rule.tau_m) * before + i
        fires = u >= rule.v_threshold if rule.fire == ">=" else u > rule.v_threshold
        trace.u.append(u)
        trace.du.append(u - before)
        trace.s.append(1.0 if fires else 0.0)
        trace.a.append(sum(eps(rule, t - k) * trace.s[k] for k in range(t + 1)))
    return trace


def phi(rule: TSSL, trace: Trace) -> list[list[float]]:
    """phi[m][k] = da[t_k] / du[t_m], Eq. 14, with t_p = t_k included as in the authors' code."""
    T, lam = len(trace.s), 1 / rule.tau_m
    table = [[0.0] * T for _ in range(T)]
    for m in reversed(range(T)):
        after = next((p for p in range(m + 1, T) if trace.s[p]), None)  # the next spike, t_p
        dt_du = -_bounded(rule, trace.du[m])  # Eq. 12
        for k in range(m, T):
            through_next = table[after][k] if after is not None and after <= k else 0.0
            if trace.s[m]:
                amplitude = trace.u[m] if rule.reset == "zero" else rule.v_threshold
                table[m][k] = _da_dt(rule, k - m) * dt_du  # Eq. 11
                if rule.intra and after is not None:  # Eq. 13: the reset kernel -amplitude (1 - lam)^k, one step later
                    dnu_dt = -amplitude * ((1 - lam) ** (after - m - 1) - (1 - lam) ** (after - m))
                    table[m][k] += through_next * dnu_dt * dt_du
            elif rule.leak and after is not None:
                table[m][k] = through_next * (1 - lam) ** (after - m)
    return table


def gradient(rule: TSSL, x: list[float], dl_da: list[float], layer_silent: bool = False) -> list[float]:
    """dL/dx from dL/da, the gradient by the neuron's PSC: Eqs. 9 and 10, and the adjoint of the input filter."""
    trace, T = forward(rule, x), len(x)
    table = phi(rule, trace)
    error = []
    for m in range(T):
        cold = {"element": trace.a[m] < 1 / (4 * rule.tau_s), "layer": layer_silent, "off": False}[rule.warmup]
        if cold:  # supplement 2.3
            h = 1 / (1 + exp(-min(max((trace.u[m] - rule.v_threshold) / 0.2, -8), 8)))
            error.append(h * (1 - h) / 0.2 * sum(eps(rule, k - m) * dl_da[k] for k in range(m, T)))
        elif trace.s[m] or rule.leak:
            error.append(sum(table[m][k] * dl_da[k] for k in range(m, T)))
        else:
            error.append(0.0)
    if rule.psc == "output":
        return error
    return [sum(eps(rule, t - k) * error[t] for t in range(k, T)) for k in range(T)]


def spikes_and_gradient(rule: TSSL, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the neuron sends and dL/dx, `[T, N]`, from g = dL/ds[t] = sum_k eps[k] dL/da[t+k]."""
    later = np.vstack([g[1:], 0 * g[:1]])
    dl_da = g if rule.psc == "output" else rule.tau_s * (g - (1 - 1 / rule.tau_s) * later)
    traces = [forward(rule, column.tolist()) for column in x.T]
    silent = not any(sum(trace.s) for trace in traces)
    sent = np.array([trace.a if rule.psc == "output" else trace.s for trace in traces])
    return sent.T, np.array([gradient(rule, column.tolist(), wanted.tolist(), silent) for column, wanted in zip(x.T, dl_da.T, strict=True)]).T


def _bounded(rule: TSSL, du: float) -> float:
    return min(max(1 / du if du else float("inf"), 0.0), rule.bound)


def _da_dt(rule: TSSL, k: int) -> float:
    """d eps(t_k - t_m) / dt_m, in the three readings of Eq. 12."""
    if rule.dadt == "code":
        return -eps(rule, k)
    if rule.dadt == "shift":
        return eps(rule, k - 1) - eps(rule, k)
    return eps(rule, k) / rule.tau_s if k else 0.0  # continuous: but for the step at the onset
