"""Swapping the rule of networks that exist: what is kept, what is refused, by which path."""

import copy
import functools
import math

import pytest
import torch
from spikingjelly.activation_based import functional, layer, monitor, neuron, surrogate
from spikingjelly.activation_based.model import spiking_resnet, spiking_vgg
from torch import nn

import snn_rules

RULES = ["surrogate", "tssl", "strsbp", "stdbp"]
every_rule = pytest.mark.parametrize("rule", RULES)
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")


def network(**options):
    net = nn.Sequential(layer.Linear(8, 12), neuron.LIFNode(**options), layer.Linear(12, 4), neuron.LIFNode(v_threshold=0.5, **options))
    return functional.set_step_mode(net, "m") or net


@every_rule
def test_keys_parameters_and_optimiser_survive(rule):
    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    keys, parameters, modules = list(net.state_dict()), list(net.parameters()), list(net)
    calls = []
    net[1].register_forward_hook(lambda *_: calls.append(1))
    net[1].mark = "the user's own"
    functional.reset_net(net)  # SpikingJelly caches what it will reset
    for name in [rule, "tssl", rule]:
        assert snn_rules.convert(net, name) is net
        assert all(type(net[k]) is snn_rules.RuleNode and net[k].rule.name == name for k in (1, 3))
        assert list(net) == modules and net[1].mark == "the user's own"
        assert list(net.state_dict()) == keys
        assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    before = [p.detach().clone() for p in parameters]
    out = net(torch.rand(10, 4, 8) * 6)
    snn_rules.get_rule(rule).loss(out, torch.arange(4)).backward()
    optimizer.step()
    assert calls and any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert isinstance(net[1].v, torch.Tensor)
    functional.reset_net(net)
    assert net[1].v == 0.0 and net[3].v == 0.0  # the swapped neurons are in the cached list


def test_each_place_keeps_its_constants():
    net = nn.Sequential(
        neuron.LIFNode(tau=3.0, v_threshold=0.7, v_reset=None),
        neuron.IFNode(v_threshold=2.0),
        neuron.ParametricLIFNode(init_tau=4.0, decay_input=False),
        neuron.LIFNode(tau=5.0, v_reset=-0.5, decay_input=False),
    )
    w = net[2].w
    with pytest.warns(UserWarning, match=r"^convert: the tau of '2' stays as it is from now on, for rules learn weights"):
        snn_rules.convert(net, "tssl")
    rules = [n.rule for n in net]
    assert [r.tau_m for r in rules] == [3.0, math.inf, pytest.approx(4.0), 5.0]
    assert [r.v_threshold for r in rules] == [0.7, 2.0, 1.0, 1.5]
    assert [n.v_threshold for n in net] == [0.7, 2.0, 1.0, 1.0]
    assert [r.reset for r in rules] == ["subtract", "zero", "zero", "zero"]
    assert [r.decay_input for r in rules] == [True, False, False, False]
    assert {r.tau_s for r in rules} == {1.0}
    assert net[2].w is w and list(net.state_dict()) == ["2.w"]
    snn_rules.convert(net[1:], "strsbp", v_threshold=3.0, delay=1)
    assert {(n.rule.v_threshold, n.rule.delay, n.rule.t_ref, n.rule.tau_s) for n in net[1:]} == {(3.0, 1, 2, 1.0)}
    snn_rules.convert(net, snn_rules.get_rule("tssl", tau=7.0))  # options of a configured rule were given, too
    assert [n.rule.tau_m for n in net] == [7.0] * 4
    assert [n.rule.v_threshold for n in net] == [0.7, 2.0, 1.0, 1.5]
    default = snn_rules.get_rule("tssl").tau_s
    snn_rules.convert(net, snn_rules.get_rule("tssl", tau_s=default))  # to whatever value
    assert {(n.rule.tau_m, n.rule.tau_s) for n in net[:1]} == {(3.0, default)}


@pytest.mark.filterwarnings("ignore:convert. the tau of")
@pytest.mark.parametrize("options", [{}, {"tau_m": 3.0}], ids=str)
def test_weights_that_are_loaded_bring_their_tau(options):
    first, second = (nn.Sequential(neuron.ParametricLIFNode(init_tau=tau, decay_input=False, step_mode="m")) for tau in (10.0, 2.0))
    x = torch.rand(9, 2, 30)
    snn_rules.convert(second, "surrogate", **options).load_state_dict(first.state_dict())
    assert second[0].tau == (3.0 if options else pytest.approx(10.0)) and not second[0].w.requires_grad
    assert options or torch.equal(second(x), first(x))
    snn_rules.convert(second, "tssl")
    assert second[0].tau == pytest.approx(10.0)


def test_a_rulenode_made_by_hand_has_the_papers_constants():
    net = snn_rules.convert(nn.Sequential(snn_rules.RuleNode("tssl")), "strsbp")
    assert (net[0].rule.tau_m, net[0].rule.delay) == (64.0, 1)
    assert snn_rules.convert(snn_rules.RuleNode("tssl"), "surrogate").rule.name == "surrogate"


def test_recurrent_node_converts():
    node = snn_rules.RecurrentNode(5, "tssl")
    weight = node.weight
    snn_rules.convert(node, "strsbp", v_threshold=1.0)
    assert type(node) is snn_rules.RecurrentNode and node.weight is weight and list(node.state_dict()) == ["weight"]
    assert node(torch.rand(6, 2, 5)).shape == (6, 2, 5)


@pytest.mark.parametrize(
    ("net", "rule", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "tssl", r"Sequential holds no spiking neuron"),
        (nn.Sequential(nn.Sequential(neuron.LIFNode(), neuron.QIFNode())), "tssl",
         r"'0.1' is a QIFNode, which no rule can stand in for; use LIFNode"),
        (nn.Sequential(neuron.LIFNode(), neuron.LIFNode(v_reset=None)), "strsbp",
         r"'1' has v_reset=None \(reset by subtraction\).*build it with v_reset=0.0"),
        (nn.Sequential(neuron.LIFNode(), layer.LinearRecurrentContainer(nn.Sequential(nn.Linear(2, 2), neuron.LIFNode()), 2, 2)), "tssl",
         r"'1' is a LinearRecurrentContainer around a Sequential"),
        (nn.Sequential(neuron.LIFNode(), layer.ElementWiseRecurrentContainer(neuron.LIFNode(), torch.add)), "tssl",
         r"'1' is an ElementWiseRecurrentContainer, which runs step by step"),
        (nn.Sequential(neuron.LIFNode()), "nope", r"unknown rule 'nope'"),
    ],
)  # fmt: skip
def test_refusals_name_the_path_and_change_nothing(net, rule, message):
    classes = [type(m) for m in net.modules()]
    with pytest.raises(snn_rules.RuleError, match=message):
        snn_rules.convert(net, rule)
    assert [type(m) for m in net.modules()] == classes


def test_messages_name_the_place():
    net = snn_rules.convert(network(), "tssl")
    with pytest.raises(snn_rules.RuleError, match=r"neuron '1' \(tssl\): the input holds nan"):
        net(torch.full((3, 2, 8), float("nan")))


@every_rule
def test_build_by_name_by_object_and_by_keyword(rule):
    options = {"num_classes": 3, "norm_layer": None}
    net = snn_rules.build("spiking_resnet18", rule=rule, **options)
    nodes = [m for m in net.modules() if isinstance(m, snn_rules.RuleNode)]
    assert len(nodes) == 17 and {m.step_mode for m in nodes} == {"m"} and {m.rule.decay_input for m in nodes} == {False}
    assert nodes[0].path == "sn1"
    stock = spiking_resnet.spiking_resnet18(spiking_neuron=neuron.LIFNode, num_classes=3)
    assert list(net.state_dict()) == list(stock.state_dict())
    given = snn_rules.build(
        spiking_vgg.spiking_vgg11,
        rule=rule,
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        num_classes=3,
        rule_options={"v_threshold": 0.5},
    )
    assert {m.rule.v_threshold for m in given.modules() if isinstance(m, snn_rules.RuleNode)} == {0.5}
    direct = spiking_vgg.spiking_vgg11_bn(spiking_neuron=snn_rules.RuleNode, rule=rule, num_classes=3)
    assert sum(isinstance(m, snn_rules.RuleNode) for m in direct.modules()) == 10


def test_build_refuses_an_unknown_factory():
    with pytest.raises(snn_rules.RuleError, match=r"SpikingJelly has no model factory 'resnet99'"):
        snn_rules.build("resnet99", rule="tssl")


def test_build_says_where_an_option_of_the_rule_belongs():
    says = r"^build: tau_s is no keyword of the model, but an option of the rule; pass rule_options=\{'tau_s': 3.0\}$"
    with pytest.raises(snn_rules.RuleError, match=says):
        snn_rules.build("spiking_resnet18", rule="tssl", tau_s=3.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'quux'"):  # Python's own
        snn_rules.build("spiking_resnet18", rule="tssl", quux=3.0)


@every_rule
def test_resnet18_learns_five_steps(rule):
    torch.manual_seed(0)
    net = snn_rules.build("spiking_resnet18", rule=rule, num_classes=4)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    configured = snn_rules.get_rule(rule)
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    start = copy.deepcopy(net.state_dict())
    for _ in range(5):
        optimizer.zero_grad()
        loss = configured.loss(net(coding_of(x)), y)
        loss.backward()
        assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in net.parameters())
        optimizer.step()
        functional.reset_net(net)
    assert not torch.equal(start["fc.weight"], net.fc.weight)
    assert not torch.equal(start["layer4.1.conv2.weight"], net.layer4[1].conv2.weight)


coding_of = functools.partial(snn_rules.get_rule("surrogate").encode, T=4)


def test_monitors_stay_attached():
    net = network()
    watch = monitor.OutputMonitor(net, neuron.LIFNode)
    snn_rules.convert(net, "tssl")
    net(torch.rand(5, 2, 8))
    assert len(watch.records) == 2


def test_citation():
    net = snn_rules.convert(network(), "tssl")
    assert snn_rules.citation(net) == f"tssl: {net[1].rule.cite}"
    assert "Zhang" in snn_rules.citation(net)


def test_what_runs_step_by_step_is_refused():
    net = nn.Sequential(layer.MultiStepContainer(nn.Linear(3, 2), neuron.LIFNode()))
    with pytest.raises(snn_rules.RuleError, match=r"^convert: '0' is a MultiStepContainer, which runs step by step, but 'tssl' .*; use SeqToANN"):
        snn_rules.convert(net, "tssl")
    assert type(net[0][1]) is neuron.LIFNode


def test_a_name_is_no_network():
    with pytest.raises(snn_rules.RuleError, match=r"^convert: 'spiking_resnet18' is no network; .* snn_rules.build make one"):
        snn_rules.convert("spiking_resnet18", "tssl")
