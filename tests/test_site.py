"""What `convert` keeps of the neurons that it finds, and those that no rule can stand for."""

import copy
from dataclasses import dataclass

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import snn_rules
from snn_rules import Capabilities, parameter
from snn_rules.surrogate import Surrogate
from snn_rules.testing.kit import run_checks


@pytest.mark.parametrize("v_reset", [0.0, -0.5])
def test_constants_set_on_a_neuron_stay_with_the_next_rule(v_reset):
    net = snn_rules.convert(nn.Sequential(neuron.LIFNode(tau=3.0, v_threshold=0.7, v_reset=v_reset, decay_input=False)), "tssl", tau_s=4.0)
    net[0].v_threshold, net[0].tau, net[0].tau_s = 0.9, 5.0, 6.0
    snn_rules.convert(net, "surrogate")
    assert (net[0].tau_m, net[0].v_reset) == (5.0, v_reset) and [net[0].v_threshold, net[0].rule.v_threshold] == pytest.approx([0.9, 0.9 - v_reset])


def test_a_reset_that_is_set_or_asked_for_decides_on_v_reset():
    net = nn.Sequential(neuron.LIFNode(v_reset=-0.5, v_threshold=1.0), neuron.LIFNode(v_reset=None))
    first = snn_rules.convert(net, "tssl", reset="subtract")
    assert [(n.v_reset, n.rule.reset) for n in first] == [(None, "subtract")] * 2 and net[0].v_threshold == 1.5  # above rest
    assert [(n.v_reset, n.rule.reset) for n in snn_rules.convert(net, "tssl", reset="zero")] == [(-0.5, "zero"), (0.0, "zero")]
    assert [(n.v_reset, n.rule.reset) for n in snn_rules.convert(net, "surrogate")] == [(-0.5, "zero"), (None, "subtract")]


@pytest.mark.parametrize("rule", ["surrogate", "tssl"])
@pytest.mark.parametrize("v_reset", [0.0, -0.5])
def test_what_a_reset_goes_back_to_is_kept(rule, v_reset):
    stock = nn.Sequential(neuron.IFNode(v_reset=v_reset, step_mode="m"))
    stock[0].set_reset_value("v", 0.5)
    functional.reset_net(stock)
    net = snn_rules.convert(copy.deepcopy(stock), rule, **({"tau_s": 1.0} if rule == "tssl" else {}))
    x = torch.full((6, 1, 1), 0.3)
    for _ in range(2):
        spikes = net(x)
        assert torch.equal(spikes, stock(x)) and spikes[1].any()
        functional.reset_net(stock), functional.reset_net(net)
    assert torch.equal(snn_rules.convert(net, "surrogate")(x), stock(x))


def test_a_warning_that_is_an_error_leaves_a_whole_network():
    net = nn.Sequential(layer.LinearRecurrentContainer(neuron.ParametricLIFNode(), 6, 6))
    functional.set_step_mode(net, "m")
    with pytest.raises(UserWarning, match="stays as it is from now on"):  # warnings are errors here
        snn_rules.convert(net, "tssl")
    assert not net[0].sub_module.w.requires_grad and net(torch.rand(5, 3, 6)).shape == (5, 3, 6)


each = neuron.LIFNode()
each.v_threshold = torch.tensor([0.5, 1.0])


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (
            nn.Sequential(layer.GradwithTrace(nn.Linear(3, 4)), neuron.OTTTLIFNode()),
            r"'0' is a GradwithTrace, which reads the traces",
        ),
        (
            nn.Sequential(neuron.LIFNode(surrogate_function=surrogate.ATan(spiking=False))),
            r"'0' has a surrogate_function with spiking=False",
        ),
        (nn.Sequential(each), r"'0': tssl: v_threshold=tensor\(.*\) should be a number"),
    ],
    ids=["OTTT", "no spikes", "a threshold for each"],
)
def test_what_a_rule_cannot_stand_for_is_refused_by_its_path(net, says):
    with pytest.raises(snn_rules.RuleError, match=f"^convert: {says}"):
        snn_rules.convert(net, "tssl")
    assert not any(isinstance(module, snn_rules.RuleNode) for module in net.modules())


@pytest.mark.parametrize("rule", ["stdbp", "strsbp"])
@pytest.mark.filterwarnings("ignore:'tau' has no meaning")
def test_weights_that_are_made_of_others_cannot_be_initialized(rule):
    net = snn_rules.convert(nn.Sequential(layer.Conv1d(3, 4, 3), neuron.LIFNode(), nn.Linear(4, 4), neuron.LIFNode()), rule)
    weight = net[0].weight.clone()
    snn_rules.get_rule(rule).initialize(net)
    assert not torch.equal(net[0].weight, weight)
    torch.nn.utils.parametrizations.weight_norm(net[2])
    with pytest.raises(snn_rules.RuleError, match=r"initialize: the weight of '2' is made of others \(weight_norm, prune\); initialize first, and"):
        snn_rules.get_rule(rule).initialize(net)


def test_a_rule_that_resets_by_subtraction_alone():
    @dataclass(frozen=True)
    class Subtracting(Surrogate):
        name = "subtracting"
        reset: str = parameter("subtract", "", "of the potential", choices=("subtract",))
        capabilities = Capabilities(resets=("subtract",))

    rule = Subtracting()
    with pytest.raises(snn_rules.RuleError, match=r"'0' has v_reset=0.0 \(reset to a value\), which rule 'subtracting' does not know; "):
        snn_rules.convert(nn.Sequential(neuron.LIFNode()), rule)
    assert snn_rules.convert(nn.Sequential(neuron.LIFNode(v_reset=None)), rule)[0].v_reset is None
    results = run_checks(rule, only=["conversion_keeps_the_network", "unsupported_layers_are_refused"])
    assert [result.outcome for result in results] == ["passed"] * 2, [result.why for result in results]
