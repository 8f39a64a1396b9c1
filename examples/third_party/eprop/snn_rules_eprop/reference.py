"""e-prop in float64, forwards in time, as the paper computes it: an eligibility trace for every synapse, step by step."""

import numpy as np


def layer(rule, x, weight, g, feed=None):
    """A recurrent layer, `weight[j][i]` from neuron i to j, one step later: its spikes `[T, N]`, and dE/dweight, Eq. 1.

    `g[T, N]` is the learning signal L. `feed[T, N, K]` holds K presynaptic values a neuron, one a step (for dE/dx); its own
    layer's spikes of the step before otherwise. The gradient is `[N, K]`.
    """
    (T, N), alpha, rho = x.shape, 1 - 1 / rule.tau_m, 1 - 1 / rule.tau_a
    spikes, v, a, r, z = np.zeros((T, N)), np.zeros(N), np.zeros(N), np.zeros(N), np.zeros(N)
    count = N if feed is None else feed.shape[2]
    eps_v, eps_a, gradient = np.zeros((N, count)), np.zeros((N, count)), np.zeros((N, count))
    for t in range(T):
        before = z.copy()
        for j in range(N):
            u = alpha * v[j] + x[t, j] + sum(weight[j][i] * before[i] for i in range(N))
            above = u - (rule.v_threshold + rule.beta * a[j])
            z[j] = float(r[j] == 0 and above >= 0)
            psi = rule.gamma / rule.v_threshold * max(0.0, 1 - abs(above) / rule.v_threshold) if r[j] == 0 else 0.0
            for k in range(count):
                eps_v[j, k] = alpha * eps_v[j, k] + (before[k] if feed is None else feed[t, j, k])
                trace = psi * (eps_v[j, k] - rule.beta * eps_a[j, k])
                gradient[j, k] += g[t, j] * trace
                eps_a[j, k] = rho * eps_a[j, k] + trace
                if rule.reset == "zero" and z[j]:
                    eps_v[j, k] = 0.0
            v[j] = u - rule.v_threshold * z[j] if rule.reset == "subtract" else u * (1 - z[j])
            a[j], r[j] = rho * a[j] + z[j], rule.t_ref if z[j] else max(r[j] - 1, 0)
        spikes[t] = z
    return spikes, gradient


def spikes_and_gradient(rule, x, g):
    """Spikes and dL/dx, `[T, N]`: step t' of the input is a presynaptic neuron that fires once, then."""
    T, N = x.shape
    once = np.broadcast_to(np.eye(T)[:, None, :], (T, N, T))
    spikes, gradient = layer(rule, x, np.zeros((N, N)), g, once)
    return spikes, gradient.T
