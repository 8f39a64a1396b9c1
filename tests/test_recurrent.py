"""Recurrent layers under every rule: forward by hand, gradients by back-propagation through time where that is the rule."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import snn_rules

RULES = {"surrogate": {}, "tssl": {}, "strsbp": {"v_threshold": 1.0}, "stdbp": {}}
every_rule = pytest.mark.parametrize("rule", RULES)
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")


def signal(T=12, n=3, features=5, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.rand(T, n, features, dtype=dtype) * 1.5


@every_rule
def test_forward_is_the_neuron_fed_by_its_own_last_spikes(rule):
    options = {**RULES[rule], **({"delay": 0} if rule == "strsbp" else {})}
    x, node = signal(), snn_rules.RecurrentNode(5, rule, **options).double()
    alone = snn_rules.RuleNode(rule, step_mode="s", **options)
    y, want = torch.zeros(3, 5, dtype=torch.float64), []
    with torch.no_grad():
        for x_t in x:
            y = alone(x_t + y @ node.weight.T)
            want.append(y)
    assert torch.equal(node(x).detach(), torch.stack(want))
    functional.reset_net(node)
    first = node(x[:5])
    functional.detach_net(node)
    assert torch.equal(torch.cat([first, node(x[5:])]).detach(), torch.stack(want))  # two calls are one train


def test_tssl_runs_through_the_recurrent_weights():
    """Against the feed-forward rule, unrolled by hand: dL/ds[t] of a step holds weight^T dL/dx[t+1]."""
    x = signal().requires_grad_()
    node = snn_rules.RecurrentNode(5, "tssl").double()
    nn.init.normal_(node.weight, 0.0, 0.7)
    g = torch.randn(12, 3, 5, dtype=torch.float64)
    out = node(x)
    (out * g).sum().backward()
    s_before = torch.cat([torch.zeros(1, 3, 5, dtype=torch.float64), out.detach()[:-1]])
    alone = snn_rules.RuleNode("tssl", step_mode="m")
    drive = (x.detach() + s_before @ node.weight.detach().T).requires_grad_()
    total = g.clone()
    for t in reversed(range(12)):  # each round fixes one more step, from the last to the first
        functional.reset_net(alone)
        (dx,) = torch.autograd.grad((alone(drive) * total).sum(), drive)
        if t:
            total[t - 1] = g[t - 1] + dx[t] @ node.weight.detach()
    functional.reset_net(alone)
    (dx,) = torch.autograd.grad((alone(drive) * total).sum(), drive)
    assert out.sum() > 0
    torch.testing.assert_close(x.grad, dx, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(node.weight.grad, torch.einsum("tni,tnj->ij", dx, s_before), rtol=1e-10, atol=1e-12)


def test_surrogate_equals_spikingjelly_s_own_container():
    torch.manual_seed(0)
    container = layer.LinearRecurrentContainer(neuron.LIFNode(v_threshold=0.3), 5, 5, step_mode="m").double()
    x = signal().requires_grad_()
    grads = []
    for net in (container, snn_rules.convert(nn.Sequential(copy.deepcopy(container)), "surrogate")[0]):
        x.grad = None
        out = net(x)
        (out * signal()).sum().backward()
        grads.append((out.detach(), x.grad, net.rc.weight.grad, net.rc.bias.grad))
    assert grads[0][0].sum() > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@every_rule
def test_a_network_with_a_container_learns(rule):
    torch.manual_seed(1)
    net = nn.Sequential(layer.Linear(5, 6), layer.LinearRecurrentContainer(neuron.LIFNode(), 6, 6), layer.Linear(6, 3), neuron.LIFNode())
    functional.set_step_mode(net, "m")
    net[1].sub_module.step_mode = "s"
    keys = list(net.state_dict())
    snn_rules.convert(net, rule)
    snn_rules.get_rule("stdbp").initialize(net)  # weights with which every neuron fires
    assert list(net.state_dict()) == keys
    for _ in range(2):
        out = net(signal(dtype=torch.float32))
        snn_rules.get_rule(rule).loss(out, torch.arange(3)).backward()
        assert net[1].rc.weight.grad.abs().sum() > 0 and net[1].rc.bias.grad.abs().sum() > 0
        functional.reset_net(net)


@every_rule
def test_every_parameter_of_a_recurrent_node_learns(rule):
    node = snn_rules.RecurrentNode(5, rule, **RULES[rule])
    x = signal(dtype=torch.float32).requires_grad_()
    (node(x) * signal(dtype=torch.float32)).sum().backward()
    assert node.weight.grad.abs().sum() > 0 and x.grad.abs().sum() > 0


def test_bad_input():
    node = snn_rules.RecurrentNode(5, "tssl")
    with pytest.raises(snn_rules.RuleError, match=r"RecurrentNode \(tssl\): the input has shape \[4, 2, 6\]; pass \[T, N, 5\]"):
        node(torch.rand(4, 2, 6))
    node.step_mode = "s"
    with pytest.raises(snn_rules.RuleError, match=r"RecurrentNode \(tssl\): a recurrent layer runs in step mode 'm'"):
        node(torch.rand(2, 5))
    with pytest.raises(snn_rules.RuleError, match=r"features=0 should be a whole number"):
        snn_rules.RecurrentNode(0, "tssl")
    with pytest.raises(snn_rules.RuleError, match=r"mode='event'"):
        snn_rules.RecurrentNode(5, "stdbp", mode="event")


def test_forgotten_reset_although_the_input_needs_no_gradient():
    node, x = snn_rules.RecurrentNode(5, "tssl"), signal(dtype=torch.float32)
    (node(x) * signal(dtype=torch.float32)).sum().backward()
    with pytest.raises(snn_rules.RuleError, match=r"call functional.reset_net"):
        node(x)


def test_convert_refuses_what_cannot_train_recurrent_weights():
    net = nn.Sequential(snn_rules.RecurrentNode(5, "tssl"))
    with pytest.raises(snn_rules.RuleError, match=r"convert: '0': rule 'tssl' cannot train recurrent weights"):
        snn_rules.convert(net, "tssl", warmup="layer")
