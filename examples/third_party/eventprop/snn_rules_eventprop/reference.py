"""EventProp's neuron twice: on the grid, where derivatives run forwards in time, and in continuous time, from spike to spike."""

import math

import numpy as np


def spikes_and_gradient(rule, x, g):
    """Spikes and dL/dx, `[T, N]`: each input is moved by itself, and what it moves is followed through all later steps."""
    T, (mem, syn) = len(x), (1 - 1 / rule.tau_m, 1 - 1 / rule.tau_s)
    spikes, dx = np.zeros_like(x), np.zeros_like(x)
    for j in range(x.shape[1]):
        v, current, currents = 0.0, 0.0, []
        for t in range(T):
            current = syn * current + x[t, j]
            v = mem * v + current
            currents.append(current)
            if v >= rule.v_threshold:
                spikes[t, j], v = 1.0, 0.0
        for start in range(T):
            dv = 0.0
            for t in range(start, T):
                dv = mem * dv + syn ** (t - start)
                if spikes[t, j]:
                    rise_before, rise_after = currents[t] - rule.v_threshold / rule.tau_m, currents[t]
                    dt = -dv * min(1 / rise_before, rule.bound)  # a higher potential crosses earlier
                    dx[start, j] += dt * ((g[t + 1, j] if t + 1 < T else 0.0) - g[t, j])
                    dv = -rise_after * dt  # what rises later is lower
            if not spikes[:, j].any():  # as if it crossed at the end
                dx[start, j] = -rule.revive * max(-g[-1, j], 0.0) * dv
    return spikes, dx


def spike_times(tau_m, tau_s, threshold, arrivals, until):
    """The firing times of one neuron in continuous time; `arrivals` are the (time, weight) of its inputs.

    Between events V and I are sums of exponentials; the crossing is found by bisection on each rise.
    """

    def voltage(v, current, dt):  # tau_m V' = -V + I
        if tau_m == tau_s:
            return (v + current * dt / tau_m) * math.exp(-dt / tau_m)
        share = current * tau_s / (tau_m - tau_s)
        return (v + share) * math.exp(-dt / tau_m) - share * math.exp(-dt / tau_s)

    found, now, v, current = [], 0.0, 0.0, 0.0
    for after, weight in [*sorted(arrivals), (until, 0.0)]:
        while True:
            span, peak = after - now, after - now
            if tau_m != tau_s and current > 0:  # where V' = 0
                share = current * tau_s / (tau_m - tau_s)
                ratio = share * tau_m / (tau_s * (v + share)) if v + share > 0 else 0.0
                if ratio > 0:
                    peak = min(max(math.log(ratio) / (1 / tau_s - 1 / tau_m), 0.0), span)
            if voltage(v, current, peak) < threshold:
                break
            low, high = 0.0, peak
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (middle, high) if voltage(v, current, middle) < threshold else (low, middle)
            now, v, current = now + high, 0.0, current * math.exp(-high / tau_s)
            found.append(now)
        v, current, now = voltage(v, current, after - now), current * math.exp(-(after - now) / tau_s) + weight, after
    return found
