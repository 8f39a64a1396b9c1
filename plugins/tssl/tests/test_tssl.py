"""The fast rule against the definitions, over its options; and what the design claims of it."""

import itertools

import pytest
import torch
from snn_rules_tssl import reference
from spikingjelly.activation_based import neuron

import snn_rules
from snn_rules.coding import psc
from snn_rules.testing import parametrize_with_checks

OPTIONS = {
    "reset": ["zero", "subtract"],
    "dadt": ["code", "shift", "continuous"],
    "warmup": ["element", "layer", "off"],
    "psc": ["input", "output"],
}
CASES = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
CASES += [{"intra": False}, {"leak": False}, {"intra": False, "leak": False}, {"bound": 0.7}, {"fire": ">"}, {"tau_m": 1.0, "tau_s": 1.0}]
TIGHT = {torch.float64: 1e-10, torch.float32: 2e-4}


@parametrize_with_checks(["tssl"])
def test_kit(rule, check):
    check(rule)


def against_reference(options, T, drive, dtype=torch.float64, neurons=6):
    torch.manual_seed(T)
    x = (drive * torch.randn(T, 1, neurons, dtype=dtype) + 0.3 * drive).requires_grad_()
    weight = torch.randn(T, 1, neurons, dtype=dtype)
    node = snn_rules.RuleNode(rule="tssl", step_mode="m", **options)
    out = node(x)
    with_psc = out if node.rule.psc == "output" else psc(out, node.rule.tau_s)
    (with_psc * weight).sum().backward()
    spikes = 0.0
    columns = [[float(v) for v in x[:, 0, j].detach()] for j in range(neurons)]
    traces = [reference.forward(node.rule, column) for column in columns]
    silent = not any(sum(trace.s) for trace in traces)
    for j, (column, trace) in enumerate(zip(columns, traces, strict=True)):
        want = torch.tensor(trace.a if node.rule.psc == "output" else trace.s, dtype=dtype)
        torch.testing.assert_close(out[:, 0, j].detach(), want, rtol=TIGHT[dtype], atol=TIGHT[dtype])
        grad = torch.tensor(reference.gradient(node.rule, column, [float(v) for v in weight[:, 0, j]], silent), dtype=dtype)
        torch.testing.assert_close(x.grad[:, 0, j], grad, rtol=TIGHT[dtype], atol=TIGHT[dtype] * float(grad.abs().max() + 1e-300))
        spikes += sum(trace.s)
    return spikes / (T * neurons), node


@pytest.mark.parametrize("options", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_gradient_equals_the_definition(options):
    rate, _ = against_reference(options, T=14, drive=1.5)
    assert 0.05 < rate < 0.95


@pytest.mark.parametrize("T", [1, 2, 5, 30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lengths_and_dtypes(T, dtype):
    against_reference({}, T, drive=2.0, dtype=dtype)


@pytest.mark.filterwarnings("ignore:.*gradient of exactly zero")  # a silent layer with warmup="off"
@pytest.mark.parametrize("warmup", ["element", "layer", "off"])
def test_silent_and_saturated_neurons(warmup):
    silent, _ = against_reference({"warmup": warmup}, T=8, drive=0.01)
    saturated, _ = against_reference({"warmup": warmup, "tau_s": 1.0, "v_threshold": -50.0}, T=8, drive=1.0)
    assert (silent, saturated) == (0.0, 1.0)


def test_warmup_is_counted():
    torch.manual_seed(0)
    x = torch.randn(10, 3, 7, requires_grad=True)
    for warmup in ("element", "off"):
        node = snn_rules.RuleNode(rule="tssl", warmup=warmup, step_mode="m")
        assert node.warmup_fraction is None
        spikes = node(x)
        spikes.sum().backward()
        cold = (psc(spikes.detach(), 3.0) < 1 / 12).float().mean() if warmup == "element" else torch.tensor(0.0)
        assert node.warmup_fraction == pytest.approx(float(cold))


def test_spikes_on_the_wire_equal_currents_on_the_wire():
    """Over synapses without bias, the filter may sit at either end (design, section 3): outputs and every gradient."""
    torch.manual_seed(1)
    T, sizes = 12, (9, 8, 6)
    x, target = torch.rand(T, 4, 9, dtype=torch.float64) * 3, torch.randint(0, 6, (4,))
    weights = [torch.randn(b, a, dtype=torch.float64) for a, b in itertools.pairwise(sizes)]
    grads, outs = [], []
    for wiring in ("input", "output"):
        ws = [w.clone().requires_grad_() for w in weights]
        first, second = (snn_rules.RuleNode(rule="tssl", psc=wiring, step_mode="m") for _ in ws)
        start = x if wiring == "input" else psc(x, 3.0)  # the network's input takes the same filter
        out = second(first(start @ ws[0].T) @ ws[1].T)
        out = psc(out, 3.0) if wiring == "input" else out
        wanted = psc(snn_rules.get_rule("tssl").train(T).double(), 3.0).view(-1, 1, 1) * torch.eye(6, dtype=torch.float64)[target]
        (0.5 * (out - wanted).square().sum()).backward()
        outs.append(out.detach())
        grads.append([w.grad for w in ws])
    assert outs[0].count_nonzero() > 0
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-10, atol=1e-12)
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("v_reset", [0.0, None, -0.25])
@pytest.mark.parametrize("decay_input", [True, False])
def test_converted_neuron_fires_as_lifnode_does(v_reset, decay_input):
    torch.manual_seed(2)
    x = 2 * torch.randn(50, 8, 40)
    net = torch.nn.Sequential(neuron.LIFNode(tau=4.0, v_threshold=0.75, v_reset=v_reset, decay_input=decay_input, step_mode="m"))
    want = net(x)
    got = snn_rules.convert(net, "tssl")(x)
    assert 0.01 < want.mean() < 0.9
    assert torch.equal(got, want)


def test_target_trains():
    assert snn_rules.get_rule("tssl").train(7).tolist() == [0, 1, 0, 1, 1, 0, 1]
    assert snn_rules.get_rule("tssl", target="code").train(5).tolist() == [0, 1, 1, 1, 1]
    assert snn_rules.get_rule("tssl").train(1).tolist() == [1]


def test_loss_is_eq_7_by_hand():
    rule, target = snn_rules.get_rule("tssl"), torch.tensor([1])
    out = torch.zeros(5, 1, 2, dtype=torch.float64)
    out[1, 0, 0] = 1.0  # one wrong spike, and the class silent
    eps = [(2 / 3) ** k / 3 for k in range(5)]
    wrong = [sum(eps[t - f] for f in [1] if f <= t) for t in range(5)]
    missed = [sum(eps[t - f] for f in [1, 3, 4] if f <= t) for t in range(5)]
    want = 0.5 * (sum(a * a for a in wrong) + sum(a * a for a in missed))
    assert float(rule.loss(out, target)) == pytest.approx(want, rel=1e-12)
    assert rule.predict(out).tolist() == [0]
