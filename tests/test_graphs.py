"""The neuron where a graph is made of it other than by `torch.compile`: values are those of the run, or it says no."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import snn_rules

every_rule = pytest.mark.parametrize("rule", ["surrogate", "tssl", "strsbp", "stdbp"])
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return 3 * torch.rand(5, 3, 6, generator=draw), 3 * torch.rand(5, 3, 6, generator=draw)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@every_rule
def test_a_trace_has_the_spikes_of_another_input(rule: str) -> None:
    (x, y), node = inputs(), snn_rules.RuleNode(rule, step_mode="m", v_threshold=1.0)
    want = node(y)
    assert want.any() and not want.all()
    for trace in (lambda: torch.jit.trace(node, x, check_trace=False), lambda: make_fx(lambda given: node(given))(x)):
        node.reset()
        with torch.no_grad():
            traced = trace()
        node.reset()
        assert torch.equal(traced(y), want)


@every_rule
def test_a_fake_tensor_has_the_shape(rule: str) -> None:
    with FakeTensorMode():
        assert snn_rules.RuleNode(rule, step_mode="m")(torch.empty(5, 3, 6)).shape == (5, 3, 6)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")  # of the shapes that are looked at
def test_layers_of_spike_times_are_traced_alike() -> None:
    torch.manual_seed(0)
    net = snn_rules.convert(nn.Sequential(nn.Linear(6, 5), neuron.IFNode()), "stdbp", mode="event")
    net[0].rule.initialize(net)
    with torch.no_grad():
        x, y = torch.rand(4, 6), torch.rand(4, 6)
        want = net(y)
        assert (want < net[0].rule.window).any()
        assert torch.equal(torch.jit.trace(net, x, check_trace=False)(y), want) and torch.equal(make_fx(lambda given: net(given))(x)(y), want)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert net(torch.empty(4, 6)).shape == (4, 5)


def test_a_recurrent_layer_is_refused() -> None:
    node, (x, _) = snn_rules.RecurrentNode(6, "tssl"), inputs()
    with pytest.raises(snn_rules.RuleError, match=r"^RecurrentNode \(tssl\): a recurrent layer has no values to run on while a graph is made"):
        make_fx(lambda given: node(given))(x)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.0._memories")
def test_an_exported_program_is_read_back(tmp_path: object) -> None:
    (x, y), net = inputs(), snn_rules.convert(nn.Sequential(neuron.LIFNode(step_mode="m", decay_input=False)), "tssl")
    want = net(y)
    functional.reset_net(net)
    torch.export.save(torch.export.export(copy.deepcopy(net), (x,)), f"{tmp_path}/net.pt2")
    assert torch.equal(torch.export.load(f"{tmp_path}/net.pt2").module()(y), want)


@every_rule
@pytest.mark.parametrize("recurrent", [False, True])
def test_hooks_may_give_saved_tensors_other_strides(rule: str, recurrent: bool) -> None:
    torch.manual_seed(0)
    node = snn_rules.RecurrentNode(6, rule) if recurrent else snn_rules.RuleNode(rule, step_mode="m")
    (x, _), found = inputs(), []

    def turned(saved: torch.Tensor) -> torch.Tensor:
        return saved.transpose(0, -1).contiguous().transpose(0, -1)

    for back in (torch.clone, turned):
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, back):
            (node(leaf) * torch.linspace(-1, 1, 90).view(5, 3, 6)).sum().backward()
        node.reset()
        found.append(leaf.grad)
    assert found[0].any()
    torch.testing.assert_close(*found)
