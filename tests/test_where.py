"""`where=`: two rules in one network."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import snn_rules

pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")


def network():
    block = lambda n: nn.Sequential(layer.Linear(n, 6), neuron.LIFNode(v_threshold=0.5))  # noqa: E731
    net = nn.Sequential()
    for name, width in (("block1", 8), ("block10", 6), ("head", 6)):
        net.add_module(name, block(width))
    return functional.set_step_mode(net, "m") or net


def rules_of(net):
    return {path: module.rule.name for path, module in net.named_modules() if isinstance(module, snn_rules.RuleNode)}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("block1", ["block1.1"]),  # a path is no prefix of a name: block10 stays
        ("block1.1", ["block1.1"]),
        ("block*", ["block1.1", "block10.1"]),
        ("*.1", ["block1.1", "block10.1", "head.1"]),
        (["head", "block10"], ["block10.1", "head.1"]),
        (("head.?",), ["head.1"]),
        (lambda path, module: path != "head.1", ["block1.1", "block10.1"]),
        (lambda path, module: module.v_threshold == 0.5, ["block1.1", "block10.1", "head.1"]),
        (None, ["block1.1", "block10.1", "head.1"]),
    ],
)
def test_what_where_selects(where, expected):
    net = snn_rules.convert(network(), "tssl", where=where)
    assert list(rules_of(net)) == expected
    assert sum(type(module) is neuron.LIFNode for module in net.modules()) == 3 - len(expected)


def test_a_second_rule_leaves_the_first_and_its_options():
    net = network()
    keys, parameters = list(net.state_dict()), list(net.parameters())
    snn_rules.convert(net, "strsbp", where="block*", t_ref=0)
    first = net.block1[1].rule
    snn_rules.convert(net, "tssl", where="head", tau_m=7.0)
    snn_rules.convert(net, "surrogate", where="block10")
    assert rules_of(net) == {"block1.1": "strsbp", "block10.1": "surrogate", "head.1": "tssl"}
    assert net.block1[1].rule is first and first.t_ref == 0
    assert net.head[1].rule.tau_m == 7.0
    assert {module.rule.v_threshold for module in net.modules() if isinstance(module, snn_rules.RuleNode)} == {0.5}  # each place's own
    assert list(net.state_dict()) == keys and all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    cited = snn_rules.citation(net).splitlines()
    assert [line.partition(":")[0] for line in cited] == ["strsbp", "surrogate", "tssl"]


def test_two_rules_learn_together():
    """The head learns from the loss of its rule; what arrives below is what that rule sends down, and the rule there takes it."""
    torch.manual_seed(0)
    net = snn_rules.convert(snn_rules.convert(network(), "surrogate"), "tssl", where="head")
    rule = net.head[1].rule
    x, y = torch.rand(5, 4, 8) * 6, torch.arange(4)
    rule.loss(net(x), y).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())

    functional.reset_net(net)
    below = net[:2](x)
    alone = snn_rules.RuleNode(rule, step_mode="m")
    sent = below.detach().requires_grad_()
    rule.loss(alone(net.head[0](sent)), y).backward()
    expected = torch.autograd.grad(below, net.block1[0].weight, sent.grad)[0]
    torch.testing.assert_close(net.block1[0].weight.grad, expected)


def test_what_is_not_selected_is_not_refused():
    net = nn.Sequential(neuron.QIFNode(), neuron.LIFNode(), layer.ElementWiseRecurrentContainer(neuron.LIFNode(), torch.add))
    with pytest.raises(snn_rules.RuleError, match="'0' is a QIFNode"):
        snn_rules.convert(net, "tssl")
    with pytest.raises(snn_rules.RuleError, match="'2' is an ElementWiseRecurrentContainer"):
        snn_rules.convert(net, "tssl", where="2")
    assert rules_of(snn_rules.convert(net, "tssl", where="1")) == {"1": "tssl"}


def test_build_passes_it_on():
    net = snn_rules.build("spiking_resnet18", rule="tssl", where=["layer4", "sn1"], rule_options={"bound": 2.0}, num_classes=3)
    assert {path.split(".")[0] for path in rules_of(net)} == {"layer4", "sn1"}
    assert {module.rule.bound for module in net.modules() if isinstance(module, snn_rules.RuleNode)} == {2.0}
    assert {module.step_mode for module in net.modules() if isinstance(module, neuron.BaseNode)} == {"m"}


@pytest.mark.parametrize(
    ("rule", "where", "message"),
    [
        ("tssl", "bloc1.1", r"where='bloc1.1' selects none of the 3 neurons \(did you mean 'block1.1'\?\): 'block1.1', 'block10.1', 'head.1'$"),
        ("tssl", ["head", "no"], r"where='no' selects none of the 3 neurons: 'block1.1'"),
        ("tssl", [], r"where=\[\] selects no neuron; leave it out"),
        ("tssl", lambda path, module: False, r"where=<lambda> selects none of the 3 neurons"),
        (snn_rules.get_rule("stdbp", mode="event"), "head", r"where='head' leaves out 'block1.1'.* leave out where="),
    ],
)
def test_refusals(rule, where, message):
    net = network()
    with pytest.raises(snn_rules.RuleError, match=message):
        snn_rules.convert(net, rule, where=where)
    assert not rules_of(net)


def test_a_network_of_spike_times_is_converted_as_a_whole():
    net = snn_rules.convert(network(), "stdbp", mode="event")
    with pytest.raises(snn_rules.RuleError, match=r"where='head' leaves out 'block1.1'"):
        snn_rules.convert(net, "tssl", where="head")
    assert rules_of(snn_rules.convert(net, "tssl", where="*")) == dict.fromkeys(["block1.1", "block10.1", "head.1"], "tssl")


@pytest.mark.parametrize("name", ["strsbp", "stdbp"])
def test_initialize_sets_the_weights_of_its_own_neurons_for_their_thresholds(name):
    torch.manual_seed(0)
    net = network()
    net.head[1].v_threshold = 5.0
    below, alike = net.block1[0].weight.detach().clone(), nn.Sequential(layer.Linear(6, 6), snn_rules.RuleNode(name, v_threshold=5.0))
    rule = snn_rules.get_rule(name)
    snn_rules.convert(net, "surrogate", where="block1")
    snn_rules.convert(net, rule, where=["block10", "head"], **({"decay_input": False} if name == "strsbp" else {}))
    torch.manual_seed(1)
    rule.initialize(net)
    assert torch.equal(net.block1[0].weight, below)
    torch.manual_seed(1)
    snn_rules.get_rule(name, v_threshold=0.5).initialize(net.block10)  # the first that is drawn
    snn_rules.get_rule(name, v_threshold=5.0).initialize(alike)
    assert torch.equal(net.head[0].weight, alike[0].weight)


@pytest.mark.parametrize(("where", "what"), [(3, "3"), ([3], "3"), (["head", None], "None")])
def test_where_of_another_kind_is_refused(where, what):
    with pytest.raises(snn_rules.RuleError, match=rf"^convert: where=.* holds {what}; pass paths or patterns of neurons, or a function "):
        snn_rules.convert(network(), "tssl", where=where)
