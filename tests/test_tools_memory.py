"""What saves memory in training runs a layer twice: the gradients stay, and no state is counted twice."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, memopt, neuron
from spikingjelly.activation_based.base import memories
from spikingjelly.activation_based.memopt import pipeline
from torch import nn
from torch.utils.checkpoint import checkpoint

import snn_rules

RULES = ["surrogate", "tssl", "strsbp", "stdbp"]
every_rule = pytest.mark.parametrize("rule", RULES)
pytestmark = [pytest.mark.filterwarnings(f"ignore:{text}") for text in ("'tau' has no meaning", ".*gave a gradient of exactly zero")]  # of its trials
T = 9


class Root(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def block(n_in, n_out):
    return nn.Sequential(layer.Linear(n_in, n_out), layer.BatchNorm1d(n_out), neuron.LIFNode(v_threshold=0.4, decay_input=False))


def network(rule):
    torch.manual_seed(0)
    net = Root(nn.Sequential(block(8, 12), block(12, 12)), block(12, 9), layer.Linear(9, 4))
    functional.set_step_mode(net, "m")
    return snn_rules.convert(net.double(), rule)


def train(net, forward=None, steps=2):
    """Some training steps: outputs, gradients and potentials of each."""
    found = []
    for k in range(steps):
        torch.manual_seed(k)
        x, w = 4 * torch.rand(T, 3, 8, dtype=torch.float64), torch.randn(T, 3, 4)
        net.zero_grad()
        out = (forward or net)(x)
        (out * w).sum().backward()
        assert any(p.grad.any() for p in net.parameters())
        potentials = [node.v for node in net.modules() if isinstance(node, snn_rules.RuleNode)]
        found.append([out.detach(), *(p.grad.clone() for p in net.parameters()), *potentials])
        functional.reset_net(net)
    return found


def equal(a, b):
    for one, other in zip(a, b, strict=True):
        for left, right in zip(one, other, strict=True):
            torch.testing.assert_close(left, right)


@pytest.fixture
def measured(monkeypatch):
    """Levels 2 to 4 measure peaks of CUDA memory, and time layers there: here each change helps, and the first layer is the slowest."""
    peaks = iter(range(10_000, 0, -1))

    def measure(model, example_forward):
        state = pipeline._capture_runtime(model)
        pipeline._execute_example(model, example_forward, backward=True)
        pipeline._restore_runtime(model, state)
        return float(next(peaks))

    monkeypatch.setattr(pipeline, "_measure_peak", measure)
    monkeypatch.setattr(pipeline, "_forward_costs", lambda model, *_: {path: 1.0 for path, _ in pipeline._checkpoint_leaves(model)[:1]})


def optimized(rule, targets, level, can_chunk):
    net = memopt.optimize_memory(
        network(rule),
        targets,
        lambda net: net(torch.rand(T, 3, 8, dtype=torch.float64)),  # inputs that look like spikes are packed to bits
        level=level,
        split_fn=lambda m: list(m.children()) if isinstance(m, nn.Sequential) else [],
        can_chunk=can_chunk,
    )
    functional.invalidate_reset_cache(net)
    return net


@every_rule
@pytest.mark.parametrize("targets", [neuron.BaseNode, (nn.Sequential, layer.Linear)], ids=["neurons", "blocks"])
@pytest.mark.parametrize("level", range(5))
def test_memopt_of_every_level(rule, targets, level, measured):
    net = optimized(rule, targets, level, can_chunk=lambda m: isinstance(m, layer.Linear))
    wrapped = [m for m in net.modules() if type(m).__name__ == "CheckpointWrapper"]
    assert bool(wrapped) == (level > 0)
    assert list(net.state_dict()) == list(network(rule).state_dict())
    equal(train(net), train(network(rule)))


@every_rule
def test_memopt_may_not_cut_a_train(rule, measured):
    """SpikingJelly's neurons learn through the cut; a rule that needs the whole train would learn something else."""
    with pytest.raises(
        snn_rules.RuleError, match=r"neuron 'layers.*its state comes from a train.*let nothing cut a train, such as memopt's can_chunk"
    ):
        optimized(rule, neuron.BaseNode, 3, can_chunk=lambda m: isinstance(m, neuron.BaseNode))


@every_rule
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_of_torch(rule, use_reentrant):
    """With SpikingJelly's own neurons, it starts the second run from the state that the first one left."""
    net = network(rule)

    def forward(x):
        h = x.requires_grad_()
        for part in net.layers[:-1]:
            h = checkpoint(part, h, use_reentrant=use_reentrant)
        return net.layers[-1](h)

    equal(train(net, forward), train(network(rule)))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_runs_several_trains_again_that_began_at_rest(use_reentrant):
    node, trains, w = snn_rules.RuleNode("tssl", step_mode="m"), torch.rand(3, T, 3, 5), torch.randn(3, T, 3, 5)
    grads = []
    for run in (node, lambda x: checkpoint(node, x, use_reentrant=use_reentrant)):
        leaf = trains.clone().requires_grad_()
        loss = 0.0
        for x, weight in zip(leaf, w, strict=True):
            loss = loss + (run(x) * weight).sum()
            node.reset()
        loss.backward()
        grads.append(leaf.grad)
    assert grads[0].any() and torch.equal(*grads)


REFUSED = r"a checkpoint runs it again, and not all trains since the last backward pass began at rest.*memopt.checkpoint_module"


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("then", [lambda node, x: None, lambda node, x: node.reset(), lambda node, x: (node.reset(), node(x))])
def test_a_checkpoint_is_refused_where_the_train_went_on(use_reentrant, then):
    """Whatever comes between it and its backward pass: its first state is lost."""
    node, x = snn_rules.RuleNode("tssl", step_mode="m"), torch.rand(2, T, 3, 5)
    with torch.no_grad():
        node(2 * x[0])
    node.detach()
    out = checkpoint(node, x[1].clone().requires_grad_(), use_reentrant=use_reentrant)
    then(node, x[1] + 0.01)
    with pytest.raises(snn_rules.RuleError, match=REFUSED):
        out.sum().backward()


def test_a_checkpoint_is_refused_where_another_train_went_on():
    node = snn_rules.RuleNode("tssl", step_mode="m")
    x = torch.rand(T, 3, 5, requires_grad=True)
    out = checkpoint(node, x, use_reentrant=True)
    with torch.no_grad():
        node(x)
    with pytest.raises(snn_rules.RuleError, match=REFUSED):
        out.sum().backward()


def test_a_checkpoint_may_follow_a_train_that_went_on():
    """A backward pass through that one has told that nothing of it is left."""
    node, x = snn_rules.RuleNode("tssl", step_mode="m"), torch.rand(T, 3, 5, requires_grad=True)
    with torch.no_grad():
        node(x)
    node.detach()
    node(x).sum().backward()
    node.reset()
    x.grad = None
    node(x).sum().backward()
    node.reset()
    want, x.grad = x.grad, None
    checkpoint(node, x, use_reentrant=True).sum().backward()
    assert want.any() and torch.equal(x.grad, want)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("end", ["detach", "reset"])
def test_a_checkpoint_comes_back_after_the_train_has_ended(use_reentrant, end):
    node, x, w = snn_rules.RuleNode("tssl", step_mode="m"), torch.rand(T, 3, 5), torch.randn(T, 3, 5)
    found = []
    for run in (node, lambda x: checkpoint(node, x, use_reentrant=use_reentrant)):
        leaf = x.clone().requires_grad_()
        out = (run(leaf) * w).sum()
        getattr(node, end)()
        out.backward()
        found += [(leaf.grad, node(x))]  # and the next train starts where that end left the neuron
        node.reset()
    assert found[0][0].any() and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def container():
    inner = neuron.LIFNode(v_threshold=0.5, decay_input=False)
    return layer.LinearRecurrentContainer(inner, 5, 5, step_mode="m")


@pytest.mark.parametrize("rule", ["surrogate", "tssl", "strsbp", "stdbp"])
@pytest.mark.parametrize("make", [lambda rule: snn_rules.RecurrentNode(5, rule, v_threshold=0.5), lambda rule: snn_rules.convert(container(), rule)])
@pytest.mark.filterwarnings("ignore:recurrent layers run on torch")
def test_recurrent_layers(rule, make):
    torch.manual_seed(0)
    net, x, w = make(rule), torch.rand(T, 3, 5), torch.randn(T, 3, 5)
    grads = []
    for run in (net, memopt.checkpoint_module(net)):
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        (out * w).sum().backward()
        grads.append([out.detach(), leaf.grad, *(p.grad for p in net.parameters()), *memories(net)])
        net.zero_grad()
        functional.reset_net(net)
    assert grads[0][2].any()
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(snn_rules.RuleError, match="a checkpoint runs a recurrent layer again"):
        checkpoint(net, x.clone().requires_grad_(), use_reentrant=True).sum().backward()
