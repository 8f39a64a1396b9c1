"""`plain(net)` gives SpikingJelly's classes back; with it, networks go to NIR, and those that come from it convert."""

import copy
import math

import nir
import pytest
import torch
from spikingjelly.activation_based import functional, layer, monitor, neuron, nir_exchange, op_counter
from torch import nn

import snn_rules

pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")
pytestmark = pytest.mark.filterwarnings("ignore:convert. the tau of")  # of the ParametricLIFNode
STOCK = {"surrogate": {}, "tssl": {}, "strsbp": {"t_ref": 0}}  # rules, and options with which SpikingJelly has a neuron for them
every_rule = pytest.mark.parametrize("rule", STOCK)


def network(**options):
    torch.manual_seed(0)
    neurons = neuron.LIFNode(3.0, v_threshold=0.5, **options), neuron.ParametricLIFNode(v_threshold=0.2, **options), neuron.IFNode(v_threshold=0.7)
    net = nn.Sequential(layer.Linear(8, 12), neurons[0], layer.Linear(12, 9), neurons[1], layer.Linear(9, 4), neurons[2])
    functional.set_step_mode(net.double(), "m")
    return net


def signal(*shape):
    return 4 * torch.rand(shape or (20, 3, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@every_rule
@pytest.mark.parametrize("decay_input", [True, False])
def test_the_stock_classes_are_back_with_their_constants(rule, decay_input):
    net, was = snn_rules.convert(network(decay_input=decay_input), rule, **STOCK[rule]), network(decay_input=decay_input)
    x, modules = signal(), list(net.modules())
    spikes = net(x)
    state, keys, attributes = net[1].v, list(net.state_dict()), [dict(vars(m)) for m in net.modules()]
    with snn_rules.plain(net) as same:
        assert same is net
        assert [type(m) for m in net] == [type(m) for m in was]
        assert repr(net) == repr(was)
        assert list(net.state_dict()) == keys and net[1].v == 0.0
        torch.testing.assert_close(net(x), spikes)
    assert list(net.modules()) == modules and net[1].v is state
    assert [dict(vars(m)) for m in net.modules()] == attributes


def test_a_synapse_becomes_that_of_cubalif():
    for rule, options in (
        ("tssl", {}),
        ("tssl", {"decay_input": True, "reset": "subtract"}),
        ("strsbp", {"v_threshold": 2.0, "t_ref": 0, "delay": 0}),
    ):
        node, x = snn_rules.RuleNode(rule, step_mode="m", **options), signal(60, 4, 30) - 1.0
        spikes = node(x)
        assert 0.01 < spikes.mean() < 0.9
        with snn_rules.plain(node):
            assert type(node) is neuron.CUBALIFNode and node.step_mode == "m"
            assert torch.equal(node(x), spikes)
    node = snn_rules.RuleNode("tssl", tau_m=1.0, tau_s=1.0)
    with snn_rules.plain(node):
        assert (type(node), node.v_decay, node.c_decay, node.v_threshold) == (neuron.CUBALIFNode, 0.0, 0.0, 1.0)


def test_other_constants_than_the_neuron_had():
    net = snn_rules.convert(network(), "tssl", tau_m=4.0, v_threshold=0.25)
    with snn_rules.plain(net):
        assert [type(net[k]) for k in (1, 3, 5)] == [neuron.LIFNode] * 3  # the parameter of the second has another tau
        assert [(net[k].tau, net[k].v_threshold) for k in (1, 3, 5)] == [(4.0, 0.25)] * 3
    shifted = snn_rules.convert(neuron.LIFNode(v_threshold=1.0, v_reset=-0.5), "tssl")
    with snn_rules.plain(shifted):
        assert (shifted.v_threshold, shifted.v_reset, shifted.v) == (1.0, -0.5, -0.5)
    soft = snn_rules.convert(neuron.LIFNode(v_reset=None), "surrogate", surrogate="atan", alpha=2.0, detach_reset=True)
    with snn_rules.plain(soft):
        assert soft.v_reset is None and soft.detach_reset and repr(soft.surrogate_function) == "ATan(alpha=2.0, spiking=True)"
    assert not list(soft.children())


def test_hooks_stay_and_what_is_done_meanwhile():
    net = snn_rules.convert(network(), "tssl")
    watch = monitor.OutputMonitor(net, neuron.BaseNode)
    net[1].mark = "the user's own"
    with snn_rules.plain(net):
        net.eval()
        functional.set_step_mode(net, "s")
        net(signal(3, 8))
        late = monitor.OutputMonitor(net, neuron.BaseNode)
        assert net[1].mark == "the user's own"
        functional.reset_net(net)
        frozen = copy.deepcopy(net)
    functional.set_step_mode(net, "m")
    net(signal())
    assert len(watch.records) == 6 and len(late.records) == 3 and not net[1].training
    assert type(frozen[1]) is neuron.LIFNode  # a copy stays plain
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    functional.reset_net(net)
    net(signal()).sum().backward()
    optimizer.step()


def test_a_container_is_given_back():
    net = nn.Sequential(layer.LinearRecurrentContainer(neuron.LIFNode(v_threshold=0.5, decay_input=False), 5, 5))
    functional.set_step_mode(net.double(), "m")
    snn_rules.convert(net, "surrogate")
    x = signal(12, 3, 5)
    spikes, y = net(x), net[0].y
    functional.reset_net(net)
    with snn_rules.plain(net):
        assert type(net[0]) is layer.LinearRecurrentContainer and type(net[0].sub_module) is neuron.LIFNode
        assert torch.equal(net(x), spikes) and torch.equal(net[0].y, y)
    assert type(net[0]) is snn_rules.recurrent.RuleRecurrentContainer and net[0].y is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: snn_rules.convert(network(), "strsbp"), r"plain: '1' \(strsbp\) has t_ref=2, which no neuron .* convert with delay=0 and t_ref=0"),
        (lambda: snn_rules.convert(network(), "strsbp", delay=1), r"plain: '1' \(strsbp\) has delay=1"),
        (lambda: snn_rules.convert(network(), "stdbp"), r"plain: '1' \(stdbp\) has no counterpart among SpikingJelly's neurons"),
        (lambda: snn_rules.convert(network(), "stdbp", mode="event"), r"plain: '0' \(FirstSpikeLinear\) is a layer of spike times, and SpikingJelly"),
        (lambda: snn_rules.convert(network(), "tssl", fire=">"), r"plain: '1' \(tssl\) has fire='>', which no neuron .*; convert with fire='>='"),
        (lambda: snn_rules.convert(network(), "tssl", psc="output"), r"plain: '1' \(tssl\) has psc='output'"),
        (lambda: nn.Sequential(snn_rules.RuleNode("tssl"), snn_rules.RecurrentNode(3, "tssl")), r"plain: '1' is a RecurrentNode"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_path(make, message):
    net = make()
    classes = [type(m) for m in net.modules()]
    with pytest.raises(snn_rules.RuleError, match=message), snn_rules.plain(net):
        pytest.fail("it was let in")
    assert [type(m) for m in net.modules()] == classes


def test_an_exception_leaves_all_as_it_was():
    net = snn_rules.convert(network(), "tssl")
    with pytest.raises(ZeroDivisionError), snn_rules.plain(net):
        raise ZeroDivisionError
    assert [type(net[k]) for k in (1, 3, 5)] == [snn_rules.RuleNode] * 3 and net[5].rule.tau_m == math.inf


# ---- NIR -----------------------------------------------------------------------------------------------------------


@every_rule
def test_export_to_nir_and_back(rule, tmp_path):
    net, x = snn_rules.convert(network(), rule, **STOCK[rule]), signal()
    spikes = net(x)
    functional.reset_net(net)
    with snn_rules.plain(net):
        graph = nir_exchange.export_to_nir(net, x, save_path=tmp_path / "net.nir", dt=1e-3)
    assert [type(node) for node in graph.nodes.values() if isinstance(node, (nir.LIF, nir.IF))] == [nir.LIF, nir.LIF, nir.IF]
    first = next(node for node in graph.nodes.values() if isinstance(node, nir.LIF))
    assert (first.tau == 3e-3).all() and (first.v_threshold == 0.5).all() and first.v_threshold.shape == (12,)
    back = nir_exchange.import_from_nir(tmp_path / "net.nir", dt=1e-3, dtype=torch.float64, step_mode="m")
    torch.testing.assert_close(back(x)[0], spikes)
    snn_rules.convert(back, rule, **STOCK[rule])  # what comes from NIR converts
    out, _ = back(x)
    torch.testing.assert_close(out, spikes)
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad.any() for p in back.parameters())
    back(x)[0].sum().backward()  # NIR's states are handed over, not kept: there is nothing to reset


def test_the_paper_s_tssl_goes_to_nir_as_a_cubalif():
    net = nn.Sequential(layer.Linear(8, 12), snn_rules.RuleNode("tssl")).double()
    functional.set_step_mode(net, "m")
    with snn_rules.plain(net):
        graph = nir_exchange.export_to_nir(net, signal(), dt=1e-3)
    (node,) = (node for node in graph.nodes.values() if isinstance(node, nir.CubaLIF))
    assert [float(value[0]) for value in (node.tau_mem, node.tau_syn, node.v_threshold)] == pytest.approx([5e-3, 3e-3, 3.0])


def test_estimators_that_know_stock_neurons_only():
    net = snn_rules.convert(network()[:2], "tssl")
    with snn_rules.plain(net):
        report = op_counter.estimate_lemaire_energy(net, signal(), config=op_counter.LemaireEnergyConfig())
    assert report.total_pj > 0
