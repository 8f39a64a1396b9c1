"""The transforms of `torch.func`: the gradients are those of `backward()`, and what a rule does not have is refused."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

import snn_rules

RULES = {"surrogate": {}, "tssl": {}, "strsbp": {"delay": 1}, "stdbp": {}}
every_rule = pytest.mark.parametrize("rule", RULES)
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")
T = 9


@pytest.fixture(params=["", "eager"], ids=["kernels", "eager"])
def executor(request, monkeypatch):
    monkeypatch.setattr("snn_rules.kernels.FORCED", request.param)


def network(rule):
    torch.manual_seed(0)
    first, second = (neuron.LIFNode(v_threshold=v, decay_input=False) for v in (0.5, 0.25))
    net = nn.Sequential(layer.Linear(8, 12), first, layer.Linear(12, 4), second).double()
    functional.set_step_mode(net, "m")
    return snn_rules.convert(net, rule, **RULES[rule])


def signal():
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.rand(T, 3, 8, dtype=torch.float64, generator=generator)
    return x, torch.randn(T, 3, 4, dtype=torch.float64, generator=generator)


def by_backward(net, x, w):
    """dL/dparameters of each sample, by `backward()`."""
    found = []
    for k in range(x.shape[1]):
        net.zero_grad()
        (net(x[:, k : k + 1]) * w[:, k : k + 1]).sum().backward()
        functional.reset_net(net)
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
    assert all(any(g[name].any() for g in found) for name in found[0])
    return {name: torch.stack([g[name] for g in found]) for name in found[0]}


@every_rule
def test_grad_vjp_and_vmap(rule, executor):
    net, (x, w) = network(rule), signal()
    want, parameters = by_backward(net, x, w), dict(net.named_parameters())

    def loss(parameters, x, w):
        return (functional_call(net, parameters, (x,)) * w).sum()

    def sample(parameters, x, w):
        return loss(parameters, x.unsqueeze(1), w.unsqueeze(1))

    plain = torch.autograd.grad(loss(parameters, x, w), list(parameters.values()))
    functional.reset_net(net)
    whole = grad(loss)(parameters, x, w)
    (pulled,) = vjp(lambda p: loss(p, x, w), parameters)[1](torch.tensor(2.0, dtype=torch.float64))
    per_sample = vmap(grad(sample), in_dims=(None, 1, 1))(parameters, x, w)
    summed = grad(lambda p: vmap(sample, in_dims=(None, 1, 1))(p, x, w).sum())(parameters)
    for (name, wanted), by_autograd in zip(want.items(), plain, strict=True):
        torch.testing.assert_close(per_sample[name], wanted)
        for found, times in ((by_autograd, 1), (whole[name], 1), (pulled[name], 2), (summed[name], 1)):
            torch.testing.assert_close(found, times * wanted.sum(0))
    assert net[1].v == 0.0  # no side effects


@every_rule
def test_a_train_starts_from_the_states_at_hand(rule):
    node, (x, w) = snn_rules.RuleNode(rule, step_mode="m", **RULES[rule]), signal()
    x, w = x[:, :, :4], w
    with torch.no_grad():
        node(x[:1] / 8)  # under stdbp too, most neurons have yet to fire
    node.detach()
    held, found = node.v, grad(lambda x: (node(x) * w).sum())(x)
    mapped = vmap(grad(lambda x, w: (node(x) * w).sum()), in_dims=(0, None))(torch.stack([x, 2 * x]), w)
    assert node.v is held
    leaf = x.clone().requires_grad_()
    (node(leaf) * w).sum().backward()
    torch.testing.assert_close(found, leaf.grad)
    torch.testing.assert_close(mapped[0], leaf.grad)


def test_ensembles_of_networks():
    nets, (x, w) = [network("tssl") for _ in range(3)], signal()
    for k, net in enumerate(nets):
        torch.manual_seed(k)
        for p in net.parameters():
            nn.init.normal_(p)
    stacked, _ = torch.func.stack_module_state(nets)
    found = vmap(grad(lambda p: (functional_call(nets[0], p, (x,)) * w).sum()))(stacked)
    for k, net in enumerate(nets):
        for name, wanted in zip(found, torch.autograd.grad((net(x) * w).sum(), list(net.parameters())), strict=True):
            torch.testing.assert_close(found[name][k], wanted)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # in torch's own jacfwd
def test_jacobians():
    node, (x, _) = snn_rules.RuleNode("tssl", step_mode="m"), signal()
    x = x[:4, :1, :2]
    jacobian = jacrev(node)(x)
    leaf = x.clone().requires_grad_()
    out = node(leaf)
    for index in ((0, 0, 0), (3, 0, 1), (2, 0, 0)):
        torch.testing.assert_close(jacobian[index], torch.autograd.grad(out[index], leaf, retain_graph=True)[0])

    def dual(x):
        with forward_ad.dual_level():
            node(forward_ad.make_dual(x.clone(), torch.ones_like(x)))

    for forward in (lambda: jvp(node, (x,), (x,)), lambda: jacfwd(node)(x), lambda: dual(x), lambda: dual(leaf)):
        node.reset()
        with pytest.raises(snn_rules.RuleError, match=r"no derivative forward: use vjp or jacrev in the place of jvp"):
            forward()


@every_rule
def test_second_derivatives_are_refused(rule):
    node, (x, w) = snn_rules.RuleNode(rule, step_mode="m", **RULES[rule]), signal()
    with pytest.raises(snn_rules.RuleError, match=rf"rule '{rule}' gives first derivatives"):
        grad(lambda x: (grad(lambda x: (node(x) ** 2 * w).sum())(x) ** 2).sum())(x[:, :, :4])


def test_what_stays_outside_says_so():
    x = torch.rand(T, 3, 5)
    with pytest.raises(snn_rules.RuleError, match=r"RecurrentNode \(tssl\): torch.func cannot transform recurrent layers; call backward\(\)"):
        grad(lambda x: snn_rules.RecurrentNode(5, "tssl")(x).sum())(x)
    net = snn_rules.convert(nn.Sequential(layer.Linear(5, 4), neuron.LIFNode()), "stdbp", mode="event")
    with pytest.raises(snn_rules.RuleError, match=r"layer '0' \(stdbp\): torch.func cannot transform layers of spike times"):
        grad(lambda x: net(x).sum())(x)
