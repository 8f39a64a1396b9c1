"""The kit; and the gradient on a fine grid against finite differences of spike times in continuous time."""

import itertools

import numpy as np
import pytest
import torch
from snn_rules_eventprop import reference
from torch import nn

import snn_rules
from snn_rules.testing import check_rule, parametrize_with_checks

TAU_M, TAU_S, UNTIL = 20.0, 5.0, 60.0  # ms


@parametrize_with_checks(["eventprop"])
def test_kit(rule, check):
    check(rule)


def test_with_the_options_it_trains_with():
    """A bound, and silent neurons that are revived."""
    rule = snn_rules.get_rule("eventprop", bound=2.0, revive=5.0, decay_input=True)
    check_rule(rule, only=["equals_its_reference", "silent_neurons_learn", "cpu_kernels_equal_eager"])


def network(sizes):
    """Input spike times, and weights with which neurons fire a few times."""
    draw = np.random.default_rng(0)
    arrivals = [sorted(draw.uniform(0, 25, 3).tolist()) for _ in range(sizes[0])]
    return arrivals, [draw.normal(6.5 / below, 4 / below, (here, below)) for below, here in itertools.pairwise(sizes)]


def times(weights, arrivals):
    """Spike times of the last layer in continuous time, neuron by neuron."""
    for weight in weights:
        heard = [[(t, w) for w, train in zip(row, arrivals, strict=True) for t in train] for row in weight]
        arrivals = [reference.spike_times(TAU_M, TAU_S, 1.0, spikes, UNTIL) for spikes in heard]
    return arrivals


def cost(trains):
    return sum((t / 10) ** 2 for train in trains for t in train)


def on_the_grid(weights, arrivals, h):
    """The same network in steps of h ms: its spike times, and dL/dW by the rule."""
    T = round(UNTIL / h)
    x = torch.zeros(T, 1, len(arrivals), dtype=torch.float64)
    for k, train in enumerate(arrivals):
        for t in train:
            x[round(t / h), 0, k] += 1
    modules = []
    for weight in weights:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        linear.weight.data = torch.from_numpy(weight.copy())
        modules += [linear, snn_rules.RuleNode("eventprop", tau_m=TAU_M / h, tau_s=TAU_S / h, decay_input=True, step_mode="m")]
    out = nn.Sequential(*modules)(x)
    at = (h * torch.arange(T, dtype=torch.float64) / 10) ** 2  # the cost of a spike at each step
    (at.view(-1, 1, 1) * out).sum().backward()
    found = [(h * out[:, 0, j].detach().nonzero().flatten()).tolist() for j in range(out.shape[2])]
    return found, [linear.weight.grad.numpy() for linear in modules[::2]]


@pytest.mark.parametrize("sizes", [(6, 3), (6, 5, 3)], ids=["one layer", "two layers"])
def test_the_gradient_is_that_of_spike_times(sizes):
    """The error is that of the steps: it shrinks with them."""
    arrivals, weights = network(sizes)
    exact = times(weights, arrivals)
    assert all(len(train) > 1 for train in exact)  # a neuron's spikes act on its later ones, too
    wanted = [np.zeros_like(weight) for weight in weights]
    for k, weight in enumerate(weights):
        for index in np.ndindex(weight.shape):
            sides = []
            for side in (1e-5, -1e-5):
                moved = [w.copy() for w in weights]
                moved[k][index] += side
                sides.append(times(moved, arrivals))
            assert [len(a) for a in sides[0]] == [len(a) for a in sides[1]]
            wanted[k][index] = (cost(sides[0]) - cost(sides[1])) / 2e-5
    errors = []
    for h in (0.04, 0.01, 0.0025):
        found, gradients = on_the_grid(weights, arrivals, h)
        assert [len(train) for train in found] == [len(train) for train in exact]
        assert max(abs(a - b) for mine, true in zip(found, exact, strict=True) for a, b in zip(mine, true, strict=True)) < 25 * h
        errors.append([float(np.abs(got - want).max() / np.abs(want).max()) for got, want in zip(gradients, wanted, strict=True)])
    assert all(error < 0.005 for error in errors[-1])
    assert all(fine < 0.2 * coarse for fine, coarse in zip(errors[-1], errors[0], strict=True))


def test_the_bound_holds_spikes_that_barely_cross():
    """Just over the threshold, V' is next to nothing, and 1 / V' without bound."""
    x = torch.zeros(30, 1, 1, dtype=torch.float64, requires_grad=True)
    quiet = snn_rules.RuleNode("eventprop", v_threshold=1e6, step_mode="m", store_v_seq=True)
    quiet(x + torch.eye(30, 1, dtype=torch.float64).view(30, 1, 1))
    threshold = float(quiet.v_seq.max()) * (1 - 1e-9)
    sizes = []
    for bound in (float("inf"), 10.0):
        leaf = torch.eye(30, 1, dtype=torch.float64).view(30, 1, 1).requires_grad_()
        spikes = snn_rules.RuleNode("eventprop", v_threshold=threshold, bound=bound, step_mode="m")(leaf)
        assert spikes.sum() == 1
        (spikes * torch.arange(30.0, dtype=torch.float64).view(30, 1, 1)).sum().backward()
        sizes.append(float(leaf.grad.abs().max()))
    assert sizes[0] > 3 * sizes[1] > 0
