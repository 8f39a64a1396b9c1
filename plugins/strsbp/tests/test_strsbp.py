"""The fast rule against the definitions, feed-forward and recurrent; the exactness of its adjoint form; its parts."""

import itertools

import numpy as np
import pytest
import torch
from snn_rules_strsbp import reference, spsp
from spikingjelly.activation_based import functional, layer, neuron

import snn_rules
from snn_rules.testing import parametrize_with_checks

SMALL = {"tau_m": 12.0, "tau_s": 4.0, "v_threshold": 1.0}


@parametrize_with_checks(["strsbp"])
def test_kit(rule, check):
    check(rule)


def stack(rules, sizes, recurrent, seed=0, scale=1.0, T=24, batch=1, dtype=torch.float64):
    """Input trains, a network of `sizes` whose layer `recurrent` is one, and the same as layers of the reference; a rule a layer."""
    torch.manual_seed(seed)
    x = (torch.rand(T, batch, sizes[0], dtype=dtype) < 0.35).to(dtype)
    modules, layers = [], []
    for k, (rule, (below, here)) in enumerate(zip(rules, itertools.pairwise(sizes), strict=True)):
        synapse = torch.nn.Linear(below, here, bias=False, dtype=dtype)
        torch.nn.init.normal_(synapse.weight, 0.5 * scale, 1.2 * scale)
        node = snn_rules.RecurrentNode(here, rule=rule).to(dtype) if recurrent == k else snn_rules.RuleNode(rule=rule, step_mode="m")
        if recurrent == k:
            torch.nn.init.normal_(node.weight, 0.0, 0.6)
        modules += [synapse, node]
        layers.append({"w": synapse.weight.tolist(), "back": node.weight.tolist() if recurrent == k else None})
    return x, torch.nn.Sequential(*modules), layers


def compare(options, sizes=(7, 6, 5, 4), recurrent=None, seed=0, scale=1.0, tolerance=1e-10, dtype=torch.float64, thresholds=(1.0, 1.0, 1.0)):
    rules = [snn_rules.get_rule("strsbp", **{**SMALL, **options, "v_threshold": nu}) for nu in thresholds]
    x, net, layers = stack(rules, sizes, recurrent, seed, scale, dtype=dtype)
    wanted = [3.0] + [1.0] * (sizes[-1] - 1)
    out = net(x)
    (0.5 * (out.sum(0)[0] - torch.tensor(wanted, dtype=dtype)).square().sum()).backward()
    trains = x[:, 0].T.tolist()
    for rule, item in zip(rules, layers, strict=True):
        trains = reference.run(rule, item, trains)
    assert out[:, 0].T.tolist() == trains
    for k, item in enumerate(reference.gradients(rules, layers, wanted)):
        synapse, node, rule = net[2 * k], net[2 * k + 1], rules[k]
        if rule.gradient == "adjoint" or recurrent != k:  # Eq. 26's weights of the layer *before* a RecurrentNode: see the container
            close(synapse.weight.grad, item["w"], tolerance)
        if item["back"] is not None:
            close(node.weight.grad, item["back"], tolerance)
    return net, layers


def close(got, want, tolerance):
    want = torch.as_tensor(want, dtype=got.dtype)
    assert want.abs().max() > 0
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


@pytest.mark.parametrize("silent", ["expected", "zero"])
@pytest.mark.parametrize("timing", [{}, {"delay": 0}, {"t_ref": 0}, {"delay": 3, "t_ref": 4}, {"tau_s": 1.0, "tau_m": 2.0, "delay": 0}], ids=str)
def test_feed_forward_equals_eq_28(silent, timing):
    _, layers = compare({"silent": silent, **timing})
    counts = [sum(train) for item in layers for train in item["spikes"]]
    assert max(counts) > 2


@pytest.mark.parametrize("silent", ["expected", "zero"])
@pytest.mark.parametrize("solver", ["exact", "taylor"])
@pytest.mark.parametrize("gradient", ["adjoint", "paper"])
@pytest.mark.parametrize("delay", [0, 1])
def test_recurrent_equals_eq_28(silent, solver, gradient, delay):
    compare({"silent": silent, "solver": solver, "gradient": gradient, "delay": delay}, recurrent=1, seed=4)


@pytest.mark.parametrize("recurrent", [None, 0, 1])
@pytest.mark.parametrize("thresholds", [(1.0, 0.7, 0.4), (0.4, 0.9, 1.0)])
def test_thresholds_by_layer(thresholds, recurrent):
    """Phi has the threshold of the layer below, Omega and Theta that of their own (Eq. 19)."""
    compare({}, recurrent=recurrent, seed=4, thresholds=thresholds)


@pytest.mark.parametrize("silent", ["expected", "zero"])
def test_silent_neurons(silent):
    """Some neurons of every layer never fire; what they send and receive follows the option."""
    _, layers = compare({"silent": silent}, seed=5, scale=0.55)
    counts = [sum(train) for train in layers[0]["spikes"]]
    assert min(counts) == 0 < max(counts)


def test_float32():
    compare({}, tolerance=2e-4, dtype=torch.float32)
    compare({}, tolerance=2e-4, dtype=torch.float32, recurrent=1)


@pytest.mark.parametrize("gradient", ["adjoint", "paper"])
def test_container_of_spikingjelly(gradient):
    """Converted, a LinearRecurrentContainer is a recurrent layer whose two weights both get the gradient of Eq. 26."""
    torch.manual_seed(6)
    rule = snn_rules.get_rule("strsbp", **SMALL, gradient=gradient, delay=0)
    container = layer.LinearRecurrentContainer(neuron.LIFNode(decay_input=False), 6, 6, bias=False).double()
    torch.nn.init.normal_(container.rc.weight, 0.3, 0.8)
    readout = torch.nn.Linear(6, 3, bias=False, dtype=torch.float64)
    torch.nn.init.normal_(readout.weight, 0.5, 1.0)
    net = torch.nn.Sequential(container, readout, neuron.LIFNode(decay_input=False))
    weight = container.rc.weight
    functional.set_step_mode(net, "m")
    container.sub_module.step_mode = "s"
    snn_rules.convert(net, rule, **SMALL)
    assert container.rc.weight is weight
    x = (torch.rand(20, 1, 6, dtype=torch.float64) < 0.4).double()
    wanted = [4.0, 1.0, 1.0]
    out = net(x)
    (0.5 * (out.sum(0)[0] - torch.tensor(wanted).double()).square().sum()).backward()
    w = container.rc.weight.detach()
    layers = [{"w": w[:, :6].tolist(), "back": w[:, 6:].tolist()}, {"w": readout.weight.tolist(), "back": None}]
    trains = x[:, 0].T.tolist()
    for item in layers:
        trains = reference.run(container.sub_module.rule, item, trains)
    assert out[:, 0].T.tolist() == trains
    first, second = reference.gradients([container.sub_module.rule] * 2, layers, wanted)
    close(weight.grad[:, :6], first["w"], 1e-10)
    close(weight.grad[:, 6:], first["back"], 1e-10)
    close(readout.weight.grad, second["w"], 1e-10)


def test_adjoint_is_the_total_derivative_of_the_papers_model():
    """A smooth model with the paper's assumptions, o = a/nu + const and e_ij = e0_ij o_j/o0_j + q_i o_j (o_i - o0_i):
    central differences of E by every weight equal the rule's gradients. A delay, a refractory time and recurrence are in."""
    rule = snn_rules.get_rule("strsbp", **SMALL, silent="zero", solver="exact")
    for seed in range(20):  # a start at which every neuron fires, so that all derivatives exist, and Omega is not clamped
        x, net, layers = stack([rule] * 2, (6, 5, 4), recurrent=0, seed=seed, scale=1.2, T=30)
        out = net(x)
        trains = x[:, 0].T.tolist()
        for item in layers:
            trains = reference.run(rule, item, trains)
        if all(sum(train) for item in layers for train in item["spikes"]) and all((abs(reference.omega(rule, i)) > 0.5).all() for i in layers):
            break
    else:
        pytest.fail("no seed gives a network in which every neuron fires")
    wanted = np.array([3.0, 1.0, 1.0, 1.0])
    (0.5 * (out.sum(0)[0] - torch.from_numpy(wanted)).square().sum()).backward()

    def smooth_loss(weights):
        o_below = np.array([sum(train) for train in layers[0]["below"]])
        for item, (w, back), base in zip(layers, weights, bases, strict=True):
            o_below = settle(item, np.array(w), back, base, o_below)
        return 0.5 * ((o_below - wanted) ** 2).sum()

    def settle(item, w, back, base, o_below):
        o0, q, e0, e0_back, constant, o_below0 = base
        o = o0.copy()
        for _ in range(200):  # the fixed point of the layer
            e = e0 * (o_below / np.maximum(o_below0, 1)) + (q * (o - o0))[:, None] * o_below
            a = (w * e).sum(1)
            if back is not None:
                a += (np.array(back) * (e0_back * (o / o0) + (q * (o - o0))[:, None] * o)).sum(1)
            new = a / rule.v_threshold + constant
            if np.abs(new - o).max() < 1e-14:
                break
            o = o + 0.5 * (new - o)
        return o

    bases = []
    for item in layers:
        o0, below0 = (np.array([sum(train) for train in item[key]]) for key in ("spikes", "below"))
        q = rule.spsp_slope(o0, 30)
        e0, e0_back = (
            np.array([[reference.spsp(rule, post, [t for t, s in enumerate(pre) if s], d) for pre in item[key]] for post in item["spikes"]])
            for key, d in (("below", rule.delay), ("spikes", 1))
        )
        a0 = (np.array(item["w"]) * e0).sum(1) + (0 if item["back"] is None else (np.array(item["back"]) * e0_back).sum(1))
        bases.append((o0.astype(float), q, e0, e0_back, o0 - a0 / rule.v_threshold, below0.astype(float)))
    base_weights = [[np.array(item["w"]), None if item["back"] is None else np.array(item["back"])] for item in layers]
    found = {(0, 0): net[0].weight.grad, (0, 1): net[1].weight.grad, (1, 0): net[2].weight.grad}
    for (k, part), grad in found.items():
        numeric = np.zeros_like(base_weights[k][part])
        for index in np.ndindex(numeric.shape):
            sides = []
            for h in (1e-6, -1e-6):
                moved = [[np.array(m) if m is not None else None for m in pair] for pair in base_weights]
                moved[k][part][index] += h
                sides.append(smooth_loss(moved))
            numeric[index] = (sides[0] - sides[1]) / 2e-6
        close(grad, numeric, 1e-5)


def test_spsp_is_eq_6_by_hand():
    """Two spikes before one: e is the sum of two kernels, the second cut at the first firing time."""
    rule = snn_rules.get_rule("strsbp", **SMALL, delay=1, t_ref=2)
    post, sent = [0.0] * 20, [2, 9]
    post[7] = post[15] = 1.0
    want = reference.eps(rule, 7, -(10**9), 2, 1) + reference.eps(rule, 15, 7, 2, 1) + reference.eps(rule, 15, 7, 9, 1)
    assert reference.spsp(rule, post, sent, 1) == pytest.approx(want, rel=1e-14)


def test_the_euler_kernel_tends_to_eq_5():
    rule = snn_rules.get_rule("strsbp", tau_m=6400.0, tau_s=800.0, t_ref=0, delay=0)
    for since_post, since_pre in [(900, 400), (400, 900), (5000, 3000), (100, 4000)]:
        got = reference.eps(rule, 6000, 6000 - since_post, 6000 - since_pre, 0)
        assert got == pytest.approx(reference.eps_continuous(6400, 800, since_post, since_pre), rel=5e-3)


def test_spsp_slope_is_the_derivative_of_a_measured_mean():
    rule = snn_rules.get_rule("strsbp", **SMALL)
    T = 60
    counts, mean = spsp.mean_spsp(rule.tau_m, rule.tau_s, T, rule.t_ref)
    assert counts.max() == min(T // 4, (T + 2) // 3)
    fitted = np.polyfit(counts, mean, 3)
    np.testing.assert_allclose(rule.spsp_slope(counts.astype(float), T), np.polyval(np.polyder(fitted), counts), rtol=1e-6, atol=1e-9)
    assert rule.spsp_slope(0.0, T) == rule.spsp_slope(1.0, T)
    assert rule.spsp_slope(1000.0, T) == rule.spsp_slope(float(counts.max()), T)
    as_tensor = rule.spsp_slope(torch.tensor([1.0, 4.0, 99.0], dtype=torch.float64), T)
    np.testing.assert_allclose(as_tensor.numpy(), rule.spsp_slope(np.array([1.0, 4.0, 99.0]), T), rtol=1e-12)
    # the mean itself, by pairs of random trains and Eq. 6
    generator, count = np.random.default_rng(1), 5
    pairs = []
    for train in spsp._trains(generator, count, T, rule.t_ref).T[:150]:
        assert train.sum() == count and np.diff(np.flatnonzero(train)).min() > rule.t_ref
        pairs.append(np.mean([reference.spsp(rule, train.tolist(), [int(generator.integers(T))], 0) for _ in range(20)]))
    here = mean[list(counts).index(count)]
    assert abs(np.mean(pairs) - here) < 5 * np.std(pairs) / 150**0.5


def test_clamped_omega_is_counted():
    """Half of the neurons are driven so that Omega falls below its bound."""
    rule = snn_rules.get_rule("strsbp", **SMALL)
    x = torch.zeros(24, 1, 8)
    x[:, :, :4] = 0.5
    x[:, :, 4:] = 9.0
    x.requires_grad_()
    node = snn_rules.RuleNode(rule=rule, step_mode="m")
    out = node(x)
    omega = 1 - rule.spsp_slope(out.sum(0), 24) * x.detach().sum(0)
    share = float((omega.abs() < 0.5).float().mean())
    out.sum().backward()
    assert node.omega_clamped == pytest.approx(share)


def test_a_train_in_two_calls_is_one_train():
    """Synapse, refractory time and the inputs still under way (delay 3) live in the state."""
    torch.manual_seed(8)
    x = (torch.rand(30, 2, 5) < 0.4).float() * 3
    options = {**SMALL, "delay": 3}
    whole = snn_rules.RuleNode(rule="strsbp", **options, step_mode="m")(x)
    node = snn_rules.RuleNode(rule="strsbp", **options, step_mode="m")
    assert whole.sum() > 0
    assert torch.equal(torch.cat([node(x[:11]), node(x[11:13]), node(x[13:])]), whole)


def test_initialize_and_loss():
    rule = snn_rules.get_rule("strsbp", v_threshold=20.0)
    net = rule.initialize(torch.nn.Sequential(torch.nn.Linear(784, 50, bias=False)))
    assert 1.06 < net[0].weight.abs().max() <= 1.5 * 20 / 28
    out = torch.zeros(400, 1, 2)
    assert float(rule.loss(out, torch.tensor([0]))) == pytest.approx(0.5 * (35**2 + 5**2))
    half = snn_rules.get_rule("strsbp", margin=2.0)
    assert float(half.loss(out, torch.tensor([0]))) == pytest.approx(0.5 * (33**2 + 3**2))
