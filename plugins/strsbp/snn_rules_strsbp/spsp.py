"""The characterisation that ST-RSBP makes before training: the mean S-PSP as a function of the firing counts (Fig. 3).

For random trains the mean of e_ij is proportional to o_j (Fig. 3B), so the paper's table of cubics, one for each o_j,
is o_j times a single cubic r(o_i), and de_ij/do_i is o_j r'(o_i).
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Polynomial

from snn_rules.ops import clip

TRAINS = 500  # random trains a count, as in the paper


def slope(counts: Any, tau_m: float, tau_s: float, T: int, t_ref: int) -> Any:
    """r'(counts), in the type and dtype of `counts`; counts outside the fitted range are taken at its edge."""
    derivative, largest = _fit(tau_m, tau_s, T, t_ref)
    if isinstance(counts, (int, float, np.ndarray, np.generic)):
        return np.polynomial.polynomial.polyval(np.clip(counts, 1, largest), derivative)
    x = clip(counts, 1.0, float(largest))
    value = 0.0 * x + derivative[-1]
    for coefficient in reversed(derivative[:-1]):
        value = value * x + coefficient
    return value


def mean_spsp(tau_m: float, tau_s: float, T: int, t_ref: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts o_i, and the mean S-PSP that one presynaptic spike at a random step makes on a neuron with that count."""
    generator = np.random.default_rng(0)
    largest = max(1, int(min(T / 4, (T + t_ref) / (1 + t_ref))))
    counts = np.unique(np.linspace(1, largest, min(largest, 40)).round().astype(int))
    return counts, np.array([_h(_trains(generator, o, T, t_ref), tau_m, tau_s, t_ref).mean() for o in counts])


@cache
def _fit(tau_m: float, tau_s: float, T: int, t_ref: int) -> tuple[tuple[float, ...], int]:
    counts, mean = mean_spsp(tau_m, tau_s, T, t_ref)
    if len(counts) == 1:
        return (0.0,), int(counts[-1])
    cubic = Polynomial.fit(counts, mean, min(3, len(counts) - 1)).convert()
    return tuple(float(c) for c in cubic.deriv().coef), int(counts[-1])


def _trains(generator: np.random.Generator, count: int, T: int, t_ref: int) -> np.ndarray:
    """`[T, TRAINS]`: `count` spikes at random, more than t_ref steps apart."""
    free = T - (count - 1) * t_ref
    slots = np.argsort(generator.random((TRAINS, free)), axis=1)[:, :count]
    steps = np.sort(slots, axis=1) + t_ref * np.arange(count)
    trains = np.zeros((T, TRAINS))
    trains[steps, np.arange(TRAINS)[:, None]] = 1
    return trains


def _h(trains: np.ndarray, tau_m: float, tau_s: float, t_ref: int) -> np.ndarray:
    """h[t] of each train, by the rule's own sweep: what a presynaptic spike at step t adds to the S-PSP."""
    from snn_rules.kernels import Eager

    from .rule import STRSBP

    s = torch.from_numpy(trains)
    refractory = torch.zeros_like(s)
    for k in range(1, t_ref + 1):
        refractory[k:] += s[:-k]
    steps = {"s": list(s), "active": list(1 - refractory), "g": list(s)}
    rule = STRSBP(tau_m=tau_m, tau_s=tau_s, t_ref=t_ref)
    Eager().walk(rule, STRSBP.spsp, steps, {"virtual": torch.zeros_like(s[0])})
    return torch.stack(steps["dx"]).numpy()
