"""SpikingJelly's monitors and counters see of a `RuleNode` what they see of a `LIFNode`."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, monitor, neuron, op_counter
from torch import nn

import snn_rules

RULES = ["surrogate", "tssl", "strsbp", "stdbp"]
LIKE_LIF = ["surrogate", "tssl"]  # rules whose converted neuron is LIFNode, spike for spike
every_rule = pytest.mark.parametrize("rule", RULES)
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")
T = 9


def stock():
    torch.manual_seed(0)
    first, second = (neuron.LIFNode(v_threshold=v, decay_input=False) for v in (0.5, 0.25))
    net = nn.Sequential(layer.Linear(8, 12), first, layer.Linear(12, 4), second)
    functional.set_step_mode(net, "m")
    return net


def network(rule):
    return snn_rules.convert(stock(), rule)


def signal():
    return 4 * torch.rand(T, 3, 8, generator=torch.Generator().manual_seed(0))


def weights():
    return torch.randn(T, 3, 4, generator=torch.Generator().manual_seed(1))


def records(net):
    """What each monitor has recorded after one training step, by the monitor's name."""
    nodes = neuron.BaseNode
    watching = {
        "output": monitor.OutputMonitor(net, nodes),
        "input": monitor.InputMonitor(net, nodes),
        "v": monitor.AttributeMonitor("v", False, net, nodes),
        "v before": monitor.AttributeMonitor("v", True, net, nodes),
        "v_seq": monitor.AttributeMonitor("v_seq", False, net, nodes),
        "dL/dx": monitor.GradInputMonitor(net, nodes),
        "dL/ds": monitor.GradOutputMonitor(net, nodes),
    }
    for node in (net[1], net[3]):
        node.store_v_seq = True
    (net(signal()) * weights()).sum().backward()
    return {name: (watch.monitored_layers, watch.records) for name, watch in watching.items()}


@every_rule
def test_monitors_see_shapes_places_and_gradients(rule):
    net, want = network(rule), records(stock())
    seen = records(net)
    assert seen["v before"] == want["v before"] == (["1", "3"], [0.0, 0.0])
    for name in want.keys() - {"v before"}:
        assert seen[name][0] == want[name][0] == ["1", "3"]
        assert [r.shape for r in seen[name][1]] == [r.shape for r in want[name][1]]
    assert seen["output"][1][0].any() and set(seen["output"][1][0].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(seen["input"][1][0], net[0](signal()))
    assert torch.equal(seen["v"][1][1], net[3].v) and torch.equal(seen["v_seq"][1][1][-1], net[3].v)
    assert torch.equal(seen["dL/ds"][1][0], weights()) and seen["dL/dx"][1][1].any()  # backward: the last layer first
    torch.testing.assert_close(net[0].bias.grad, seen["dL/dx"][1][1].sum((0, 1)))


@pytest.mark.parametrize("rule", LIKE_LIF)
def test_monitors_see_the_values_of_a_lifnode(rule):
    seen, want = records(network(rule)), records(stock())
    for name in ("output", "input", "v", "v_seq"):
        torch.testing.assert_close(seen[name][1], want[name][1])
    torch.testing.assert_close(seen["dL/ds"][1][0], want["dL/ds"][1][0])
    if rule == "surrogate":
        torch.testing.assert_close(seen["dL/dx"][1], want["dL/dx"][1], rtol=1e-4, atol=1e-6)


@every_rule
def test_v_seq_by_kernels_is_that_of_torch(rule, monkeypatch):
    found = []
    for executor in ("", "eager"):
        monkeypatch.setattr("snn_rules.kernels.FORCED", executor)
        net = network(rule)
        found.append(records(net)["v_seq"][1])
        assert not net[1].v_seq.requires_grad
        functional.reset_net(net)
        assert net[1].v_seq is None
        net[1].step_mode = "s"
        with torch.no_grad():
            for x_t in net[0](signal()):
                net[1](x_t)
        assert torch.equal(net[1].v_seq, found[-1][0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_monitors_of_event_layers():
    net = snn_rules.convert(stock(), "stdbp", mode="event", revive=1.0)
    rule = net[1].rule
    watch = monitor.OutputMonitor(net, neuron.BaseNode), monitor.GradOutputMonitor(net, neuron.BaseNode)
    out = net(rule.encode(signal()[0] / 4, T=1))
    rule.loss(out, torch.arange(3)).backward()
    assert [r.shape for r in watch[0].records] == [(1, 3, 12), (1, 3, 4)] and torch.equal(watch[0].records[1], out)  # spike times
    assert [r.shape for r in watch[1].records] == [(1, 3, 4), (1, 3, 12)] and watch[1].records[0].any()


# ---- op_counter ----------------------------------------------------------------------------------------------------


def counted(net):
    kinds = op_counter.MACCounter, op_counter.ACCounter, op_counter.SynOpCounter, op_counter.FlopCounter, op_counter.NeuronStateCounter
    counters = [kind() for kind in kinds]
    with torch.no_grad(), op_counter.DispatchCounterMode(counters):
        spikes = net[:2](signal())
        net[2:](spikes)
    functional.reset_net(net)
    return dict(zip((kind.__name__ for kind in kinds), (counter.get_total() for counter in counters), strict=True)), spikes


@every_rule
def test_synapses_are_counted_by_their_spikes(rule):
    found, spikes = counted(network(rule))
    assert found["SynOpCounter"] == 4 * spikes.sum() > 0  # each spike of the first layer goes to four neurons
    assert found["MACCounter"] == T * 3 * 8 * 12  # of the dense input
    if rule in LIKE_LIF:
        stock_counts, _ = counted(stock())
        assert {k: found[k] for k in ("MACCounter", "SynOpCounter")} == {k: stock_counts[k] for k in ("MACCounter", "SynOpCounter")}


@every_rule
def test_what_neurons_do_is_counted_on_torch_operations(rule, monkeypatch):
    """Kernels are no torch operations: a counter of those sees none inside a neuron."""
    assert counted(network(rule))[0]["NeuronStateCounter"] == 0
    monkeypatch.setattr("snn_rules.kernels.FORCED", "eager")
    found, _ = counted(network(rule))
    assert found["NeuronStateCounter"] > 0 and found["FlopCounter"] > found["MACCounter"]


@every_rule
def test_the_energy_estimate(rule):
    found, want = (op_counter.estimate_simple_energy(net, signal()) for net in (network(rule), stock()))
    assert found.energy_total_pj > 0 and not found.warnings
    if rule == "surrogate":
        for name in ("mac", "synop", "weight_read_bytes", "neuron_state_read_bytes"):
            assert found.counts[name] == want.counts[name]
