"""PyTorch's own tools on whole networks: copies, mixed precision, accumulated and partial gradients."""

import copy
import io
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import snn_rules

RULES = {"surrogate": {}, "tssl": {}, "strsbp": {}, "stdbp": {}, "event": {"mode": "event", "revive": 1.0}}
every_rule = pytest.mark.parametrize("rule", RULES)
on_a_grid = pytest.mark.parametrize("rule", [name for name in RULES if name != "event"])
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")
T = 16


def network(rule, dtype=torch.float64):
    torch.manual_seed(0)
    first, second = (neuron.LIFNode(v_threshold=v, decay_input=False) for v in (0.5, 0.25))
    net = nn.Sequential(layer.Linear(8, 12), first, layer.Linear(12, 4), second).to(dtype)
    functional.set_step_mode(net, "m")
    net = snn_rules.convert(net, rule_of(rule), **RULES[rule])
    return net[1].rule.initialize(net) if rule_of(rule) == "stdbp" else net


def rule_of(name):
    return "stdbp" if name == "event" else name


def batch(rule, n=6, dtype=torch.float64, seed=0):
    """Inputs in the rule's own code, and targets."""
    torch.manual_seed(seed)
    images = torch.rand(n, 8, dtype=dtype)
    x = snn_rules.get_rule(rule_of(rule), **RULES[rule]).encode(images, T) if rule in ("stdbp", "event") else 4 * torch.rand(T, n, 8, dtype=dtype)
    return x, torch.arange(n) % 4


def loss_of(net, rule, x, y, reduction="sum"):
    return net[1].rule.loss(net(x), y, reduction)


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


# ---- copies --------------------------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_in_the_middle_of_training(rule, copied):
    """With a live graph and optimiser: the copy goes on as the original does, and shares nothing with it."""
    net, (x, y) = network(rule), batch(rule)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(net, rule, x, y).backward()
        optimizer.step()
        functional.reset_net(net)
    loss = loss_of(net, rule, x, y)  # a live graph
    if copied == "deepcopy":
        twin, twin_optimizer = copy.deepcopy((net, optimizer))
    elif copied == "pickle":
        twin, twin_optimizer = pickle.loads(pickle.dumps((net, optimizer)))
    else:
        torch.save((net, optimizer), file := io.BytesIO())
        file.seek(0)
        twin, twin_optimizer = torch.load(file, weights_only=False)
    assert all(torch.equal(a.v, b.v) and a.v is not b.v for a, b in ((net[k], twin[k]) for k in (1, 3)) if isinstance(a.v, torch.Tensor))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    functional.reset_net(twin)
    twin_optimizer.zero_grad()
    loss_of(twin, rule, x, y).backward()
    twin_optimizer.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert a is not b and a.grad.any() and torch.equal(a, b)


# ---- mixed precision -----------------------------------------------------------------------------------------------


@on_a_grid
def test_autocast_to_bfloat16(rule):
    """Spikes in the dtype that a LIFNode gives, states in float32, finite gradients, parameters that move."""
    net, (x, y) = network(rule, torch.float32), batch(rule, dtype=torch.float32)
    lif = nn.Sequential(layer.Linear(8, 12), neuron.LIFNode())
    functional.set_step_mode(lif, "m")
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        want, spikes = lif(x), net[:2](x)
        functional.reset_net(net)
        out = net(x)
        loss = net[1].rule.loss(out, y)
    assert spikes.dtype == want.dtype == out.dtype == torch.bfloat16
    assert net[1].v.dtype == torch.float32 and set(out.detach().unique().tolist()) <= {0.0, 1.0}
    loss.backward()
    optimizer.step()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in net.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_event_layers_under_autocast_keep_float32():
    net, (x, y) = network("event", torch.float32), batch("event", dtype=torch.float32)
    want = loss_of(net, "event", x, y)
    want.backward()
    grads = gradients(net)
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(net, "event", x, y)
    loss.backward()
    torch.testing.assert_close(loss, want)
    for a, b in zip(gradients(net), grads, strict=True):
        torch.testing.assert_close(a, b)


@on_a_grid
def test_float16_and_a_gradient_scaler(rule):
    net, (x, y) = network(rule, torch.float32), batch(rule, dtype=torch.float32)
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.01), torch.amp.GradScaler("cpu", init_scale=2.0**6)
    grads = []
    for scaled in (False, True):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            out = net(x)
            loss = net[1].rule.loss(out, y)
        assert out.dtype == torch.float16 and net[1].v.dtype == torch.float32
        (scaler.scale(loss) if scaled else loss).backward()
        if scaled:
            scaler.unscale_(optimizer)
        grads.append(gradients(net))
        functional.reset_net(net)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**6  # nothing overflowed
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)


# ---- gradients -----------------------------------------------------------------------------------------------------


@every_rule
def test_accumulated_gradients_are_those_of_the_whole_batch(rule):
    net, (x, y) = network(rule), batch(rule)
    loss_of(net, rule, x, y).backward()
    whole = gradients(net)
    assert all(g.any() for g in whole)
    functional.reset_net(net)
    net.zero_grad()
    for part in (slice(0, 2), slice(2, 6)):
        loss_of(net, rule, x[:, part], y[part]).backward()
        functional.reset_net(net)
    for a, b in zip(whole, gradients(net), strict=True):
        torch.testing.assert_close(a, b)


@every_rule
def test_partial_gradients(rule):
    """What needs no gradient gets none; what needs one gets the same as ever."""
    net, (x, y) = network(rule), batch(rule)
    leaf = x.clone().requires_grad_()
    loss_of(net, rule, leaf, y).backward()
    whole = [leaf.grad, *gradients(net)]
    parameters = [leaf, *net.parameters()]
    for wanted in ([0], [3, 4], [1], [2, 4], [0, 3]):
        functional.reset_net(net)
        for k, p in enumerate(parameters):
            p.grad = None
            p.requires_grad_(k in wanted)
        loss_of(net, rule, leaf, y).backward()
        assert [k for k, p in enumerate(parameters) if p.grad is not None] == wanted
        for k in wanted:
            torch.testing.assert_close(parameters[k].grad, whole[k])


@every_rule
def test_nothing_is_saved_without_a_gradient(rule):
    net, (x, _), saved = network(rule), batch(rule), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        with torch.no_grad():
            net(x)
        functional.reset_net(net)
        net.requires_grad_(False).eval()
        assert net(x).grad_fn is None
        assert not saved
        functional.reset_net(net)
        net.requires_grad_(True)
        net(x)
        assert saved


@every_rule
def test_one_graph_twice_and_a_second_derivative_refused(rule):
    net, (x, y) = network(rule), batch(rule)
    loss = loss_of(net, rule, x, y)
    loss.backward(retain_graph=True)
    once = gradients(net)
    loss.backward()
    for a, b in zip(once, net.parameters(), strict=True):
        torch.testing.assert_close(2 * a, b.grad)
    functional.reset_net(net)
    (grad,) = torch.autograd.grad(loss_of(net, rule, x, y), [net[0].weight], create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice .*once_differentiable"):
        grad.sum().backward()


@on_a_grid
def test_one_step_no_samples_and_strided_inputs(rule):
    net, (x, _) = network(rule), batch(rule)
    want = net(x)
    functional.reset_net(net)
    assert torch.equal(net(x.transpose(0, 2).contiguous().transpose(0, 2)), want)
    functional.reset_net(net)
    out = net(x[:1])
    assert out.shape == (1, 6, 4)
    functional.reset_net(net)
    out = net(x[:, :0])
    out.sum().backward()
    assert out.shape == (T, 0, 4) and not any(p.grad.any() for p in net.parameters())


# ---- SpikingJelly's functions on networks --------------------------------------------------------------------------


@on_a_grid
def test_reset_net_set_step_mode_and_detach_net(rule):
    net, (x, _) = network(rule), batch(rule)
    with torch.no_grad():
        train = net(x)
    functional.detach_net(net)
    assert all(isinstance(net[k].v, torch.Tensor) and not net[k].v.requires_grad for k in (1, 3))
    functional.reset_net(net)
    assert net[1].v == net[3].v == 0.0
    functional.set_step_mode(net, "s")
    assert net[1].step_mode == net[3].step_mode == "s"
    with torch.no_grad():
        assert torch.equal(torch.stack([net(x_t) for x_t in x]), train)
    with pytest.raises(ValueError, match="step_mode can only be"):
        net[1].step_mode = "q"


@on_a_grid
def test_states_follow_shape_and_dtype(rule):
    net, (x, _) = network(rule), batch(rule)
    with torch.no_grad():
        want = net(x[:, :2])
        assert torch.equal(net(x), network(rule)(x))  # another batch size starts from rest, as with LIFNode
        net.to(torch.float32)
        assert net[1].v.dtype == torch.float32
        net(x.float())
        assert net(x.float()).dtype == torch.float32
        net.to(torch.float64)
        functional.reset_net(net)
        assert torch.allclose(net(x[:, :2]), want) and net[1].v.dtype == torch.float64
    assert not [key for key in net.state_dict() if not key.endswith(("weight", "bias"))]


def test_a_subclass_may_pass_whole_numbers_by_keyword():
    class Mine(snn_rules.RuleNode):
        def __init__(self, tau):
            super().__init__(rule="tssl", tau=tau, v_threshold=2, step_mode="m")

    node = Mine(tau=4)
    assert (node.rule.tau_m, type(node.rule.tau_m), node.v_threshold, type(node.v_threshold)) == (4.0, float, 2.0, float)
    assert pickle.loads(pickle.dumps(copy.deepcopy(snn_rules.RuleNode("tssl", tau=4)))).rule == snn_rules.get_rule("tssl", tau=4)
