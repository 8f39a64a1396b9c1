"""What goes wrong in a training, done on purpose to every rule, on kernels and on torch: see docs/reliability.md."""

import warnings

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import snn_rules
from snn_rules.network import network as from_text

RULES = {"surrogate": {}, "tssl": {}, "strsbp": {"v_threshold": 1.0}, "stdbp": {}, "stdbp event": {"mode": "event"}}
TRAINS = [name for name in RULES if name != "stdbp event"]  # rules that send spike trains
every_rule = pytest.mark.parametrize("name", RULES)
every_train = pytest.mark.parametrize("name", TRAINS)
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient of exactly zero")


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def executor(request, monkeypatch):
    monkeypatch.setattr("snn_rules.kernels.FORCED", "eager" if request.param == "torch" else "")
    return request.param


def rule_of(name):
    return snn_rules.get_rule(name.split()[0], **RULES[name])


def network(name, inputs=5, outputs=6):
    """A synapse and its neurons, weights from which they fire."""
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(inputs, outputs, bias=False), neuron.LIFNode(decay_input=False))
    functional.set_step_mode(net, "m")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tau has no meaning for stdbp
        snn_rules.convert(net, rule_of(name))
    return rule_of(name).initialize(net)


def signal(name, T=12, N=3, inputs=5):
    """What the network is sent: samples in the rule's own code."""
    torch.manual_seed(1)
    return rule_of(name).encode(torch.rand(N, inputs), T)


def learn(net, x, g=None):
    """Output, and the gradients of the input and the weights; the state is left as it is."""
    leaf = x.detach().requires_grad_()
    out = net(leaf)
    net.zero_grad()
    out.backward(torch.linspace(-1, 2, out.numel()).view(out.shape) if g is None else g)
    return out.detach(), leaf.grad, net[0].weight.grad


# ---- shapes, dtypes, devices ---------------------------------------------------------------------------------------


@every_rule
def test_batches_of_none_and_of_one(name):
    for N in (0, 1):
        out, dx, dw = learn(network(name), signal(name, N=N))
        assert out.shape[1:] == (N, 6) and dx.shape[1:] == (N, 5)
        assert torch.isfinite(dw).all() and bool(dw.any()) == bool(N)


@every_rule
def test_an_empty_batch_of_images(name):
    rule = rule_of(name)
    net = from_text("2C3-P2-4", rule, (1, 6, 6))
    out = net(rule.encode(torch.rand(0, 1, 6, 6), 6))
    rule.loss(out, torch.zeros(0, dtype=torch.long), reduction="sum").backward()
    assert out.shape[1:] == (0, 4) and not any(p.grad.any() for p in net.parameters())


@every_train
def test_trains_of_one_step(name):
    out, dx, dw = learn(network(name), signal(name, T=1))
    assert out.shape == (1, 3, 6) and torch.isfinite(dx).all() and torch.isfinite(dw).all()


@every_train
def test_trains_of_two_thousand_steps_silent_busy_and_saturated(name):
    torch.manual_seed(2)
    busy = 0.02 * torch.rand(2000, 2, 5) if name == "stdbp" else (torch.rand(2000, 2, 5) < 0.3).float()
    for level, x in ("silent", torch.zeros(2000, 2, 5)), ("busy", busy), ("saturated", torch.full((2000, 2, 5), 1e3)):
        out, dx, dw = learn(network(name), x)
        assert torch.isfinite(dx).all() and torch.isfinite(dw).all(), level
        assert level != "silent" or not out.any()
        assert level != "busy" or (out.any() and dx.any())


@every_rule
def test_inputs_and_gradients_that_are_not_contiguous(name):
    x = signal(name)
    want = learn(network(name), x.contiguous())
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    g = torch.linspace(-1, 2, want[0].numel()).view(want[0].shape)
    for got in (learn(network(name), turned), learn(network(name), x, g.transpose(1, 2).contiguous().transpose(1, 2))):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@every_rule
def test_expanded_inputs_and_gradients(name):
    x = signal(name)[:, :1]
    want = learn(network(name), x.repeat(1, 3, 1), torch.full_like(network(name)(x.repeat(1, 3, 1)), 0.5))
    got = learn(network(name), x.expand(-1, 3, -1), torch.tensor(0.5).expand(want[0].shape))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@every_train
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8], ids=str)
def test_a_dtype_without_fractions_is_refused(name, dtype):
    with pytest.raises(snn_rules.RuleError, match=rf"^neuron '1' \({name}\): the input is dtype {dtype}; pass a floating-point tensor, e.g. x.float"):
        network(name)[1](torch.ones(4, 2, 6, dtype=dtype))


@every_rule
def test_a_sparse_tensor_is_refused(name):
    where = "layer '0'" if name == "stdbp event" else "neuron '1'"
    net = network(name) if name == "stdbp event" else network(name)[1]
    with pytest.raises(snn_rules.RuleError, match=rf"^{where} \({name.split()[0]}\): the input has the layout torch.sparse_coo; pass a "):
        net(signal(name).to_sparse())


@every_rule
def test_a_device_without_numbers_is_refused(name):
    net = network(name).to("meta")
    where = "layer '0'" if name == "stdbp event" else "neuron '1'"
    with pytest.raises(snn_rules.RuleError, match=rf"^{where} \({name.split()[0]}\): the input is on device 'meta', which holds no values; "):
        net(signal(name).to("meta"))


def test_weights_on_another_device_are_refused():
    event = network("stdbp event")
    event[0].weight = nn.Parameter(event[0].weight.to("meta"))
    with pytest.raises(snn_rules.RuleError, match=r"^layer '0' \(stdbp\): the input is on cpu, its weights on meta; move both to one device"):
        event(signal("stdbp event"))
    with pytest.raises(Exception, match=r"the layers of 'stdbp': the input is on cpu, the weights on meta; move both to one device"):  # torch's own
        torch.compile(event, backend="aot_eager")(signal("stdbp event"))
    with pytest.raises(snn_rules.RuleError, match=r"RecurrentNode \(tssl\): the input is on cpu, its recurrent weights on meta; move both to one"):
        snn_rules.RecurrentNode(3, "tssl").to("meta")(torch.ones(4, 2, 3))


# ---- states ----------------------------------------------------------------------------------------------------------


@every_train
def test_a_changed_batch_size_without_a_reset_starts_from_rest(name):
    net, few, many = network(name), signal(name, N=2), signal(name, N=4)
    want = learn(network(name), few)
    with torch.no_grad():
        net(many)
    assert all(torch.equal(a, b) for a, b in zip(learn(net, few), want, strict=True))
    with pytest.raises(snn_rules.RuleError, match=r"^neuron '1' .*call functional.reset_net\(net\) after each training step"):
        learn(net, many)  # after a backward pass that is a forgotten reset


@every_rule
def test_spike_times_need_no_reset_and_trains_say_that_they_do(name):
    net, x = network(name), signal(name)
    learn(net, x)
    if name == "stdbp event":
        assert all(torch.equal(a, b) for a, b in zip(learn(net, x), learn(network(name), x), strict=True))
    else:
        with pytest.raises(snn_rules.RuleError, match=r"its state comes from a train that .*call functional.reset_net"):
            learn(net, x)
        functional.reset_net(net)
        assert all(torch.equal(a, b) for a, b in zip(learn(net, x), learn(network(name), x), strict=True))


# ---- gradients -------------------------------------------------------------------------------------------------------


@every_rule
def test_double_backward_is_refused(name, executor):
    x = signal(name).detach().requires_grad_()
    out = network(name)(x)
    (grad,) = torch.autograd.grad((out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum() ** 2, x, create_graph=True)
    if (name, executor) == ("surrogate", "torch"):  # its steps are torch's own
        grad.sum().backward()
        return
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@every_rule
def test_a_second_backward_through_the_same_graph_is_refused(name):
    out = network(name)(signal(name))
    out.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.sum().backward()


@every_rule
def test_nan_that_reaches_the_weights_is_seen_in_the_next_step(name):
    net = network(name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    out = net(signal(name))
    out.backward(torch.full_like(out, float("nan")))
    optimizer.step()
    functional.reset_net(net)
    assert torch.isnan(net[0].weight).any()
    with pytest.raises(snn_rules.RuleError, match=r"(neuron '1'|layer '0') \(\w+\): .*nan"):
        net(signal(name))


@every_rule
@pytest.mark.parametrize("sign", [-1.0, 1.0], ids=["silent", "saturated"])
def test_thousand_training_steps(name, sign, executor):
    """Weights that keep a layer silent, or let it fire all the time, and the rule's own loss, which wants something else."""
    rule, net = rule_of(name), network(name)
    steps = 1000 if executor == "kernels" else 50
    with torch.no_grad():
        net[0].weight.copy_(sign * 50 * net[0].weight.abs())
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    x, y = signal(name, T=6), torch.arange(3)
    for _ in range(steps):
        loss = rule.loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        functional.reset_net(net)
    assert torch.isfinite(loss) and torch.isfinite(net[0].weight).all()


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@every_rule
def test_weights_of_another_rule_load(name, tmp_path):
    net = network(name)
    learn(net, signal(name))
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    for other in RULES:
        heir = network(other)
        with torch.no_grad():
            heir[0].weight.zero_()
        assert not any(heir.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True)))  # neither missing nor unexpected
        assert torch.equal(heir[0].weight, net[0].weight)
