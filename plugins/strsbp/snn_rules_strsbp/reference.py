"""ST-RSBP for one sample, in float64, from the definitions of the supplement: loops over spikes and pairs of neurons.

A layer is a dict: `w[l][j]` from below, `back[l][p]` from its own neurons one step before (or None), and, after
`run`, its input trains `below` and its own trains `spikes`, both lists over neurons of lists over steps.
"""

from __future__ import annotations

from math import exp
from typing import Any

import numpy as np

from .rule import STRSBP

Layer = dict[str, Any]


def run(rule: STRSBP, layer: Layer, below: list[list[float]]) -> list[list[float]]:
    """Forward, Eqs. 2, 3 and 5 in Euler steps of 1 ms, neuron by neuron and synapse by synapse."""
    n, T = len(layer["w"]), len(below[0])
    spikes = [[0.0] * T for _ in range(n)]
    p, q, last = [0.0] * n, [0.0] * n, [-(10**9)] * n
    for t in range(T):
        for i in range(n):
            arriving = sum(w * train[t - rule.delay] for w, train in zip(layer["w"][i], below, strict=True) if t >= rule.delay)
            if layer["back"] is not None and t >= 1:
                arriving += sum(w * train[t - 1] for w, train in zip(layer["back"][i], spikes, strict=True))
            p[i] = (1 - 1 / rule.tau_s) * p[i] + arriving
            q[i] = (1 - 1 / rule.tau_m) * q[i] + p[i] / rule.tau_s if t - last[i] > rule.t_ref else 0.0
        for i in range(n):
            if q[i] >= rule.v_threshold:
                spikes[i][t], q[i], last[i] = 1.0, 0.0, t
    layer["below"], layer["spikes"] = below, spikes
    return spikes


def eps(rule: STRSBP, t_i: int, before: int, t_j: int, delay: int) -> float:
    """Eq. 4 with C = 1 in Euler steps: what a spike sent at t_j adds to the potential at t_i of a neuron that fired last at `before`."""
    start = max(t_j + delay, before + rule.t_ref + 1)
    return sum((1 - 1 / rule.tau_m) ** (t_i - t) * (1 / rule.tau_s) * (1 - 1 / rule.tau_s) ** (t - t_j - delay) for t in range(start, t_i + 1))


def eps_continuous(tau_m: float, tau_s: float, s: float, t: float) -> float:
    """Eq. 5, the same in continuous time: t after the presynaptic and s after the last postsynaptic spike."""
    if s <= 0 or t <= 0:
        return 0.0
    least = min(s, t)
    return exp(-max(t - s, 0) / tau_s) / (1 - tau_s / tau_m) * (exp(-least / tau_m) - exp(-least / tau_s))


def times(rule: STRSBP, train: list[float]) -> list[int]:
    """Firing times; with silent="expected" the last step stands for a train without a spike."""
    found = [t for t, s in enumerate(train) if s]
    return found or ([len(train) - 1] if rule.silent == "expected" else [])


def spsp(rule: STRSBP, post: list[float], sent: list[int], delay: int) -> float:
    """e_ij, Eq. 6: over all pairs of a postsynaptic and a presynaptic spike."""
    total, before = 0.0, -(10**9)
    for t_i in times(rule, post):
        total += sum(eps(rule, t_i, before, t_j, delay) for t_j in sent)
        before = t_i
    return total


def de_do_pre(rule: STRSBP, post: list[float], pre: list[float], delay: int) -> float:
    """de_ij/do_j = e_ij / o_j, Eq. 27; of a silent j the mean over all steps at which it could have fired."""
    sent = [t for t, s in enumerate(pre) if s]
    if sent:
        return spsp(rule, post, sent, delay) / len(sent)
    T = len(pre)
    return sum(spsp(rule, post, [t], delay) for t in range(T)) / T if rule.silent == "expected" else 0.0


def omega(rule: STRSBP, layer: Layer) -> np.ndarray:
    """The diagonal of Eq. 19, with de_ij/do_i = o_j q(o_i)."""
    T, diagonal = len(layer["spikes"][0]), []
    for i, train in enumerate(layer["spikes"]):
        q = float(rule.spsp_slope(np.array(sum(train)), T))
        drive = sum(w * sum(pre) * q for w, pre in zip(layer["w"][i], layer["below"], strict=True))
        if layer["back"] is not None:
            drive += sum(w * sum(pre) * q for w, pre in zip(layer["back"][i], layer["spikes"], strict=True))
        value = 1 - drive / rule.v_threshold
        diagonal.append(value if abs(value) >= 0.5 else (-0.5 if value < 0 else 0.5))
    return np.array(diagonal)


def theta(rule: STRSBP, layer: Layer) -> np.ndarray:
    """Eq. 19; zero without recurrent weights."""
    spikes = layer["spikes"]
    if layer["back"] is None:
        return np.zeros((len(spikes), len(spikes)))
    return np.array(
        [[layer["back"][i][p] * de_do_pre(rule, spikes[i], spikes[p], 1) / rule.v_threshold for p in range(len(spikes))] for i in range(len(spikes))]
    )


def inverse(rule: STRSBP, layer: Layer) -> np.ndarray:
    """(Omega - Theta)^-1 of Eq. 20, or its first-order expansion."""
    alone = np.diag(1 / omega(rule, layer))
    if rule.solver == "taylor":
        return np.asarray(alone + alone @ theta(rule, layer) @ alone)
    return np.linalg.inv(np.diag(omega(rule, layer)) - theta(rule, layer))


def p_matrix(rule: STRSBP, layer: Layer, nu_below: float) -> np.ndarray:
    """P = (Omega - Theta)^-1 Phi, Eqs. 19 and 20; Phi has the threshold of the layer below."""
    phi = np.array(
        [
            [w * de_do_pre(rule, post, pre, rule.delay) / nu_below for w, pre in zip(row, layer["below"], strict=True)]
            for row, post in zip(layer["w"], layer["spikes"], strict=True)
        ]
    )
    return np.asarray(inverse(rule, layer) @ phi)


def gradients(rules: list[STRSBP], layers: list[Layer], wanted: list[float]) -> list[dict[str, np.ndarray]]:
    """Eq. 28: of each layer, with its rule, the error `delta`, the S-PSPs `e`, and the gradients `w` and `back` of E = 1/2 |o - y|^2.

    With gradient="paper" both have the denominator of Eq. 26, the sum over all that a neuron hears.
    """
    counts = np.array([sum(train) for train in layers[-1]["spikes"]])
    delta, found = (counts - np.array(wanted)) / rules[-1].v_threshold, list[dict[str, Any]]()
    for k, (rule, layer) in reversed(list(enumerate(zip(rules, layers, strict=True)))):
        e = np.array([[spsp(rule, post, [t for t, s in enumerate(pre) if s], rule.delay) for pre in layer["below"]] for post in layer["spikes"]])
        back = None
        z = inverse(rule, layer).T @ delta if rule.gradient == "adjoint" else delta / omega(rule, layer)
        if layer["back"] is not None:
            pairs = [[spsp(rule, post, [t for t, s in enumerate(pre) if s], 1) for pre in layer["spikes"]] for post in layer["spikes"]]
            back = z[:, None] * np.array(pairs)
        found.insert(0, {"delta": delta, "e": e, "w": z[:, None] * e, "back": back})
        if k > 0:
            delta = p_matrix(rule, layer, rules[k - 1].v_threshold).T @ delta
    return found


def spikes_and_gradient(rule: STRSBP, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The spikes and dL/dx, `[T, N]`, of neurons with one synapse of weight 1 each, from g = dL/ds.

    A unit of input at t acts on the count by its S-PSP, Eq. 6; dE/do is the mean of g over the neuron's own spikes (Eq. 27).
    """
    spikes, dx = np.zeros_like(x), np.zeros_like(x)
    for i, (arriving, wanted) in enumerate(zip(x.T, g.T, strict=True)):
        layer: Layer = {"w": [[1.0]], "back": None}
        (train,) = run(rule, layer, [arriving.tolist()])
        at = np.array(train) > 0
        de_do = wanted[at].mean() if at.any() else wanted.mean() * (rule.silent == "expected")
        z = de_do / rule.v_threshold / omega(rule, layer)[0]
        spikes[:, i], dx[:, i] = train, [z * spsp(rule, train, [t], rule.delay) for t in range(len(x))]
    return spikes, dx
