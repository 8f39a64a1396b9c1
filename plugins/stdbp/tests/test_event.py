"""mode="event": exact first-spike layers against the paper's equations; and what `convert` makes of a network."""

import copy
import pickle

import pytest
import torch
from snn_rules_stdbp import reference
from snn_rules_stdbp.event import FirstSpikeConv2d, FirstSpikeLinear, _FirstSpikes
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import snn_rules

RULE = snn_rules.get_rule("stdbp", mode="event", t_max=3.0)


def first_spikes(times, weight, rule=RULE):
    return _FirstSpikes.apply(times, weight, rule, lambda *_: None)


def case(seed, batch=5, inputs=9, outputs=7, mean=0.4, dtype=torch.float64):
    torch.manual_seed(seed)
    times = torch.rand(batch, inputs, dtype=dtype)
    return times, torch.randn(outputs, inputs, dtype=dtype) * 0.8 + mean


def against_reference(times, weight, tolerance=1e-10):
    times, weight = times.clone().requires_grad_(), weight.clone().requires_grad_()
    out = first_spikes(times, weight)
    g = torch.randn_like(out)
    out.backward(g)
    d_weight = torch.zeros_like(weight)
    silent = 0
    for n in range(len(times)):
        row, w = times[n].tolist(), weight.tolist()
        spikes = reference.layer(row, w, RULE.v_threshold, RULE.window)
        silent += sum(spike.slope == 0 for spike in spikes)
        torch.testing.assert_close(out[n].detach(), torch.tensor([s.time for s in spikes], dtype=out.dtype), rtol=tolerance, atol=tolerance)
        d_times, d_w = reference.layer_gradient(row, w, spikes, g[n].tolist())
        scale = max(1.0, float(times.grad[n].abs().max()))
        torch.testing.assert_close(times.grad[n], torch.tensor(d_times, dtype=out.dtype), rtol=tolerance, atol=tolerance * scale)
        d_weight += torch.tensor(d_w, dtype=out.dtype)
    torch.testing.assert_close(weight.grad, d_weight, rtol=tolerance, atol=tolerance * max(1.0, float(d_weight.abs().max())))
    return silent, out.numel()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mean", [-0.05, 0.1, 0.6])
def test_equals_the_paper(seed, mean):
    silent, all_ = against_reference(*case(seed, mean=mean))
    assert silent < all_


def test_float32():
    against_reference(*case(0, mean=0.6, dtype=torch.float32), tolerance=2e-4)


def test_ties_enter_as_one_group():
    times, weight = case(1)
    against_reference((times * 4).round() / 4, weight)
    simultaneous = first_spikes(torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[4.0, -3.0]]).double())
    assert simultaneous.item() == pytest.approx(1.5)  # slope 1, not 4


def test_a_neuron_may_fire_although_its_weights_sum_to_less_than_zero():
    times, weight = torch.tensor([[0.0, 2.0]]).double(), torch.tensor([[1.0, -5.0]]).double()
    assert first_spikes(times, weight).item() == 1.0
    torch.manual_seed(0)
    weight = torch.randn(2000, 30, dtype=torch.float64)
    out = first_spikes(torch.rand(1, 30, dtype=torch.float64), weight)[0]
    assert ((out < RULE.window) & (weight.sum(1) < 0)).any()


def test_silent_neurons_and_the_window():
    times, weight = torch.tensor([[0.5, 3.0, 99.0]]).double(), torch.tensor([[1.0, 9.0, 9.0], [0.39, 9.0, 9.0], [-1.0, 9.0, 9.0]]).double()
    times.requires_grad_(), weight.requires_grad_()
    out = first_spikes(times, weight)
    assert out.tolist() == [[1.5, 3.0, 3.0]]  # inputs from t_max on are silent; 0.39 reaches theta only at 3.06
    out.sum().backward()
    assert times.grad.tolist() == [[1.0, 0.0, 0.0]]
    assert weight.grad.tolist() == [[-1.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3]
    assert first_spikes(torch.full((2, 3), 3.0), torch.ones(4, 3)).tolist() == [[3.0] * 4] * 2
    assert first_spikes(torch.empty(0, 3), torch.ones(4, 3)).shape == (0, 4)


def test_revive_pulls_silent_neurons_that_should_fire_earlier():
    rule = snn_rules.get_rule("stdbp", mode="event", t_max=3.0, revive=0.5, v_threshold=2.0)
    times, weight = torch.tensor([[0.5, 1.0, 9.0]]).double().requires_grad_(), torch.full((2, 3), 0.1).double().requires_grad_()
    out = first_spikes(times, weight, rule)
    assert out.tolist() == [[3.0, 3.0]]
    (4.0 * out[0, 0] - 4.0 * out[0, 1]).backward()
    assert weight.grad.flatten().tolist() == pytest.approx([0.5 * 4.0 / 2.0 * (0.5 - 3.0), 0.5 * 4.0 / 2.0 * (1.0 - 3.0), 0.0, 0.0, 0.0, 0.0])
    assert times.grad.tolist() == [pytest.approx([0.1, 0.1, 0.0])]


@pytest.mark.parametrize("seed", range(4))
def test_gradcheck(seed):
    times, weight = case(seed, batch=3, inputs=6, outputs=4)
    assert torch.autograd.gradcheck(first_spikes, (times.requires_grad_(), weight.requires_grad_()))


def test_gradcheck_of_a_network_with_convolution_pooling_and_bias():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), neuron.LIFNode(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3), neuron.LIFNode()).double()
    with pytest.warns(UserWarning, match="'tau' has no meaning"):
        snn_rules.rule._warned.discard(("stdbp", "tau"))
        snn_rules.convert(net, "stdbp", mode="event")
    RULE.initialize(net)
    for module in (net[0], net[4]):
        nn.init.uniform_(module.bias, 0.0, 0.3)
    times = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert (net(times) < RULE.window).any()
    assert torch.autograd.gradcheck(net, (times,))
    assert torch.autograd.gradcheck(
        lambda w, b: torch.func.functional_call(net, {"4.weight": w, "4.bias": b}, (times.detach(),)), tuple(net[4].parameters())
    )


def test_a_neuron_without_leak_loses_nothing():
    snn_rules.rule._warned.discard(("stdbp", "tau"))
    net = snn_rules.convert(nn.Sequential(nn.Linear(6, 4), neuron.IFNode(v_threshold=2.0)), "stdbp", mode="event")  # warnings are errors here
    assert net[1].rule.v_threshold == 2.0


@pytest.mark.filterwarnings("ignore:'tau' has no meaning")
def test_convolution_is_the_linear_layer_of_its_patches():
    torch.manual_seed(3)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False).double()
    net = snn_rules.convert(nn.Sequential(conv, neuron.LIFNode()), "stdbp", mode="event")
    nn.init.normal_(conv.weight, 0.4, 0.5)
    x = torch.rand(1, 2, 2, 6, 5, dtype=torch.float64)  # [1, N, C, H, W]
    out = net(x)
    assert out.shape == (1, 2, 3, 3, 3)
    padded = nn.functional.pad(x[0], (1, 1, 1, 1), value=99.0)
    rule = net[0].rule
    for n, i, j in [(0, 0, 0), (1, 1, 2), (1, 2, 1)]:
        patch = padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten()
        want = [s.time for s in reference.layer(patch.tolist(), conv.weight.flatten(1).tolist(), rule.v_threshold, rule.window)]
        assert out[0, n, :, i, j].tolist() == pytest.approx(want, rel=1e-12)


def network():
    net = nn.Sequential(
        layer.Conv2d(1, 4, 3, bias=False), neuron.IFNode(), layer.MaxPool2d(2),
        layer.Flatten(), layer.Dropout(0.5), layer.Linear(36, 5, bias=False), neuron.IFNode(),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.filterwarnings("ignore:'tau' has no meaning")
def test_convert_keeps_keys_and_parameters_and_goes_back():
    net = network()
    keys, parameters = list(net.state_dict()), [id(p) for p in net.parameters()]
    classes = [type(m) for m in net]
    snn_rules.convert(net, "stdbp", mode="event")
    assert isinstance(net[0], FirstSpikeConv2d) and isinstance(net[5], FirstSpikeLinear)
    rule = snn_rules.get_rule("stdbp", mode="event")
    x = torch.rand(2, 1, 8, 8)
    before = rule.initialize(net).eval()(rule.encode(x, 1))
    assert before.shape == (1, 2, 5)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(rule.encode(x, 1)), before)
    assert (list(net.state_dict()), [id(p) for p in net.parameters()]) == (keys, parameters)
    snn_rules.convert(net, "surrogate")
    assert [type(net[k]) for k in (0, 2, 3, 4, 5)] == [classes[k] for k in (0, 2, 3, 4, 5)]
    snn_rules.convert(net, "stdbp", mode="event")
    assert torch.equal(net(rule.encode(x, 1)), before)
    assert (list(net.state_dict()), [id(p) for p in net.parameters()]) == (keys, parameters)


@pytest.mark.filterwarnings("ignore:'tau' has no meaning")
def test_pooling_takes_the_earliest_and_dropout_silences():
    net = snn_rules.convert(network(), "stdbp", mode="event", t_max=3.0)
    times = torch.rand(1, 2, 4, 6, 6)
    assert torch.equal(net[2](times), -nn.functional.max_pool2d(-times[0], 2).unsqueeze(0))
    torch.manual_seed(0)
    dropped = net[4](torch.rand(1, 200, 36))
    assert 0.4 < (dropped == 3.0).float().mean() < 0.6
    assert torch.equal(net[4].eval()(times), times)


@pytest.mark.filterwarnings("ignore:.tau. has no meaning")  # said once a process, by whichever test comes first
@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), neuron.LIFNode()), r"'0' \(Linear\) has no neuron right after it"),
        (nn.Sequential(nn.Linear(4, 3), neuron.LIFNode(), nn.Linear(3, 2)), r"'2' \(Linear\) has no neuron right after it"),
        (nn.Sequential(nn.AvgPool2d(2), nn.Linear(4, 3), neuron.LIFNode()), r"'0' \(AvgPool2d\) has no meaning for spike times; use Linear"),
        (nn.Sequential(nn.Linear(4, 3), neuron.LIFNode(), neuron.LIFNode()), r"'2' \(LIFNode\) has no Linear or Conv2d right before it"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), neuron.LIFNode()), r"'0' \(Conv2d\) has groups or a padding"),
        (nn.Sequential(layer.LinearRecurrentContainer(neuron.LIFNode(), 3, 3)), r"'0' \(LinearRecurrentContainer\) is recurrent"),
        (nn.Sequential(nn.Linear(4, 3), snn_rules.RecurrentNode(3, "tssl")), r"'1' \(RecurrentNode\) is recurrent"),
        (
            nn.Sequential(layer.WSConv2d(1, 4, 3), neuron.LIFNode()),
            r"'0' \(WSConv2d\) computes in a way of its own, which mode",
        ),
        (
            nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), neuron.LIFNode()),
            r"'0.parametrizations.weight.0' \(_WeightNorm\) has no",
        ),
        (nn.Sequential(nn.LazyLinear(3), neuron.LIFNode()), r"'0' \(LazyLinear\) has no weight yet; run the network once first"),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 3), neuron.LIFNode()), nn.Tanh()), r"'1' \(Tanh\) has no meaning for spike times"),
    ],
)
def test_refusals_name_the_layer_and_change_nothing(net, message):
    classes = [type(m) for m in net.modules()]
    with pytest.raises(snn_rules.RuleError, match=message):
        snn_rules.convert(net, "stdbp", mode="event")
    assert [type(m) for m in net.modules()] == classes


def test_a_layer_that_was_parametrized_since_does_not_go_back():
    net = snn_rules.convert(nn.Sequential(nn.Linear(4, 3), neuron.IFNode()), "stdbp", mode="event")
    parametrizations.weight_norm(net[0])
    with pytest.raises(snn_rules.RuleError, match=r"^convert: '0' was parametrized as what mode='event' has made of it; call remove"):
        snn_rules.convert(net, "surrogate")
    parametrize.remove_parametrizations(net[0], "weight")
    assert type(snn_rules.convert(net, "surrogate")[0]) is nn.Linear


def test_hooks_may_give_saved_tensors_other_strides():
    net = snn_rules.convert(nn.Sequential(nn.Linear(6, 5), neuron.IFNode()), "stdbp", mode="event", revive=1.0)
    RULE.initialize(net)
    found, times = [], torch.rand(7, 6)
    turned = lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)  # noqa: E731
    for back in (torch.clone, turned):
        leaf = times.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, back):
            net(leaf).sum().backward()
        found.append(leaf.grad)
    assert found[0].any() and torch.equal(*found)


def test_values_whose_sum_is_not_finite_are_good_ones():
    """The checks look at the sum first; it overflows for times, and is nan for weights, that have no nan themselves."""
    layer = snn_rules.convert(nn.Sequential(nn.Linear(3, 2), snn_rules.RuleNode("stdbp")), "stdbp", mode="event")[0]
    layer.weight.data, layer.bias = torch.tensor([[2.0, 3.0, -torch.inf], [2.0, torch.inf, -torch.inf]]), None
    assert torch.equal(layer(torch.tensor([[[0.0, 3e38, 3e38]]])), torch.tensor([[[0.5, 0.5]]]))


@pytest.mark.filterwarnings("ignore:'tau' has no meaning")
def test_bad_input():
    with pytest.raises(snn_rules.RuleError, match=r"snn_rules.convert\(net, rule='stdbp', mode='event'\)"):
        snn_rules.RuleNode(rule="stdbp", mode="event")
    net = snn_rules.convert(network(), "stdbp", mode="event")
    with pytest.raises(snn_rules.RuleError, match=r"layer '0' \(stdbp\): the input holds nan"):
        net(torch.full((1, 2, 1, 8, 8), float("nan")))
    with pytest.raises(snn_rules.RuleError, match=r"layer '0' \(stdbp\): the input has shape \[1, 2, 3, 8, 8\]"):
        net(torch.rand(1, 2, 3, 8, 8))
    with pytest.raises(snn_rules.RuleError, match=r"layer '5' \(stdbp\): the input has shape \[1, 2, 7\]"):
        net[5](torch.rand(1, 2, 7))
    for path, x in (("0", torch.rand(4, 2, 1, 8, 8)), ("5", torch.rand(4, 2, net[5].in_features))):  # T steps
        with pytest.raises(
            snn_rules.RuleError, match=rf"layer '{path}' \(stdbp\): the input has shape \[4, 2, .*; pass times \[1, N, .*, each sent once"
        ):
            net[int(path)](x)
    net[5].bias = nn.Parameter(torch.full((10,), float("nan")))
    with pytest.raises(snn_rules.RuleError, match=r"layer '5' \(stdbp\): its weights hold nan"):
        net(torch.rand(1, 2, 1, 8, 8))
    net[5].bias = None
    net[5].weight.data.fill_(-1.0)
    with pytest.warns(UserWarning) as said:
        net(torch.rand(1, 2, 1, 8, 8)).sum().backward()
    assert [str(w.message).split(":")[0] for w in said] == ["layer '5' (stdbp)"]  # no error comes to layer 0
    assert "gradient of exactly zero" in str(said[0].message)


@pytest.mark.filterwarnings("ignore:'tau' has no meaning")
def test_each_layer_keeps_the_threshold_of_its_neuron():
    def fresh():
        return nn.Sequential(nn.Linear(4, 3), neuron.LIFNode(v_threshold=0.5), nn.Linear(3, 2), neuron.LIFNode(v_threshold=2.0))

    net = snn_rules.convert(fresh(), "stdbp", mode="event")
    assert [net[0].rule.v_threshold, net[2].rule.v_threshold] == [0.5, 2.0]
    net = snn_rules.convert(fresh(), "stdbp", mode="event", v_threshold=1.5)
    assert [net[0].rule.v_threshold, net[2].rule.v_threshold] == [1.5, 1.5]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_refused():
    net = snn_rules.convert(nn.Sequential(nn.Linear(3, 2), neuron.LIFNode(decay_input=False)), RULE)
    nested = torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(1, 3)], layout=torch.strided)
    with pytest.raises(
        snn_rules.RuleError, match=r"^layer '0' \(stdbp\): the input is nested; pass a dense tensor, see torch.nested.to_padded_tensor$"
    ):
        net[0](nested)


def test_paper_mode_has_the_options_off():
    rule = snn_rules.get_rule("stdbp", mode="event", paper=True)
    assert rule.encode(torch.tensor([[0.0, 1.0]]), 1).tolist() == [[[1.0, 0.0]]]
    assert float(rule.loss(torch.tensor([[[1.0, 2.0]]]), torch.tensor([0]))) == pytest.approx(0.3132617)
    assert RULE.encode(torch.tensor([[0.0, 1.0]]), 1).tolist() == [[[3.0, 0.0]]]
