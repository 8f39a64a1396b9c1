"""What a training says of its costs: synaptic operations, memory."""

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import nn

from snn_rules import RecurrentNode, convert, get_rule
from snn_rules.activity import watch
from snn_rules.memory import peak_memory, reset_peak
from snn_rules.network import network


def test_synaptic_operations() -> None:
    torch.manual_seed(0)
    net, spikes = network("R9-7-10", "surrogate", (6,)).eval(), (torch.rand(5, 4, 6) < 0.5).float()
    with torch.no_grad(), watch(net, get_rule("surrogate")) as activity, DispatchCounterMode([counter := SynOpCounter()]):
        net(spikes)
    activity.samples = 4
    firing, synops = activity.firing, activity.synops
    assert synops["dense1"] == spikes.sum() * 9 / 4 and synops["dense2"] == pytest.approx(5 * 9 * firing["neuron1"] * 7)
    assert synops["neuron1"] == pytest.approx(5 * 9 * firing["neuron1"] * 9)  # recurrent
    assert sum(synops.values()) - synops["neuron1"] == pytest.approx(counter.get_total() / 4)
    conv = network("4C3-10", "surrogate", (2, 6, 6))
    with torch.no_grad(), watch(conv, get_rule("surrogate")) as activity:
        conv(torch.ones(1, 3, 2, 6, 6))
    activity.samples = 3
    assert activity.synops["conv1"] == 2 * 6 * 6 * 4 * 9


@pytest.mark.parametrize("rule", ["surrogate", "tssl", "strsbp"])
def test_a_converted_container_is_counted_as_the_recurrent_layer_that_it_is(rule: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(layer.LinearRecurrentContainer(neuron.LIFNode(v_threshold=0.3), 6, 6, bias=False, step_mode="m"))
    container = convert(net, rule)[0]
    same = nn.Sequential(nn.Linear(6, 6, bias=False), RecurrentNode(6, container.sub_module.rule))
    same[0].weight, same[1].weight = (nn.Parameter(part.detach()) for part in container.rc.weight.split([6, 6], 1))
    spikes, found = (torch.rand(8, 4, 6) < 0.7).float(), []
    for each in (net, same):
        with torch.no_grad(), watch(each, get_rule(rule)) as activity:
            each(spikes)
        activity.samples = 4
        assert activity.mean > 0.02
        found.append((activity.firing, activity.synops))
    (firing, synops), (as_node, as_synapses) = found
    assert firing == {"0": as_node["1"]} and synops == {"0.rc": as_synapses["0"], "0": as_synapses["1"]}


def test_spikes_of_half_precision_are_counted_one_by_one() -> None:
    net = network("R300-10", "surrogate", (6,)).eval().bfloat16()
    with torch.no_grad(), watch(net, get_rule("surrogate")) as activity:
        net[0].weight.fill_(9.0)
        net(torch.ones(3, 5, 6, dtype=torch.bfloat16))
    activity.samples = 5
    assert activity.firing["neuron1"] == 1.0 and activity.synops["neuron1"] == 3 * 300 * 300


def test_synaptic_operations_of_spike_times() -> None:
    rule = get_rule("stdbp", mode="event")
    net = network("7-10", rule, (6,))
    times = torch.tensor([[[0.1, 0.2, rule.window, rule.window, 0.5, 0.9]]])
    with torch.no_grad(), watch(net, rule) as activity:
        net(times)
    activity.samples = 1
    assert activity.synops["dense1"] == 4 * 7 and activity.synops["dense2"] == pytest.approx(activity.firing["neuron1"] * 7 * 10)
    assert isinstance(net.dense1, nn.Linear)


def test_peak_memory() -> None:
    reset_peak()
    before = peak_memory()
    held = torch.ones(50_000_000 // 4)
    assert 30 < peak_memory() - before < 200
    del held
    reset_peak()
    assert peak_memory() < before + 30
