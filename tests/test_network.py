"""Network strings: what they make, and what is refused."""

import pytest
import torch
from torch import nn

import snn_rules
from snn_rules import RuleError, get_rule
from snn_rules.network import network, parse
from snn_rules.pooling import AvgPool2d

RULES = ("surrogate", "tssl", "strsbp", "stdbp")


def kinds(net: nn.Module) -> list[str]:
    return [type(module).__name__ for module in net]


def test_parse() -> None:
    parts = parse("15C5-P2-40C3p1-R300-10")
    assert [part.kind for part in parts] == ["conv", "pool", "conv", "recurrent", "dense"]
    assert [part.size for part in parts] == [15, 2, 40, 300, 10]
    assert [(part.kernel, part.padding) for part in parts if part.kind == "conv"] == [(5, 0), (3, 1)]


@pytest.mark.parametrize("word", ["", "abc", "5R", "R", "C5", "15C", "15C5p", "P", "P0", "0", "15c5", "1e3", " 10", "\uff15", "R0", "3C0"])
def test_a_part_that_is_no_layer_is_quoted(word: str) -> None:
    with pytest.raises(snn_rules.RuleError) as refusal:
        parse(f"400-{word}-10")
    message = str(refusal.value)
    assert f"network '400-{word}-10': {word!r}" in message and "write layers joined by '-'" in message and "\n" not in message


@pytest.mark.parametrize("rule", RULES)
def test_dense_layers_on_images_are_flattened(rule: str) -> None:
    net = network("7-10", rule, (1, 4, 4), classes=10)
    assert kinds(net) == ["Flatten", "Linear", "RuleNode", "Linear", "RuleNode"]
    assert list(net.state_dict()) == ["dense1.weight", "dense2.weight"]  # no bias
    out = net(snn_rules.get_rule(rule).encode(torch.rand(3, 1, 4, 4), 6))
    assert out.shape == (6, 3, 10)


@pytest.mark.parametrize(("rule", "pool"), [("tssl", "AvgPool2d"), ("stdbp", "MaxPool2d")])
def test_convolution_pooling_and_shapes(rule: str, pool: str) -> None:
    net = network("4C3-P2-6C3p1-P2-12-10", rule, (2, 10, 10), classes=10)
    assert kinds(net) == ["Conv2d", "RuleNode", pool, "Conv2d", "RuleNode", pool, "Flatten", "Linear", "RuleNode", "Linear", "RuleNode"]
    assert net.dense5.in_features == 6 * 2 * 2
    assert net(torch.rand(5, 3, 2, 10, 10)).shape == (5, 3, 10)
    assert all(module.step_mode == "m" for module in net if hasattr(module, "step_mode"))


def test_recurrent_layers() -> None:
    net = network("R8-10", "strsbp", (5,), classes=10)
    assert kinds(net) == ["Linear", "RecurrentNode", "Linear", "RuleNode"]
    assert net(torch.rand(6, 2, 5)).shape == (6, 2, 10)


def test_the_rule_sets_the_weights_and_knows_where_its_neurons_stand() -> None:
    torch.manual_seed(0)
    net = network("50-10", snn_rules.get_rule("strsbp", v_threshold=20.0), (784,))
    assert 1.0 < net.dense1.weight.max() <= 1.5 * 20 / 28
    assert [net.neuron1.path, net.neuron2.path] == ["neuron1", "neuron2"]


def test_layers_of_spike_times() -> None:
    rule = snn_rules.get_rule("stdbp", mode="event", v_threshold=0.5)
    net = network("4C3-P2-10", rule, (1, 8, 8), classes=10)
    out = net(rule.encode(torch.rand(3, 1, 8, 8), 1))
    assert out.shape == (1, 3, 10) and bool((out <= rule.window).all())
    assert net.neuron1.rule.v_threshold == 0.5


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("shape", [(5, 3, 2, 12, 18), (2, 3, 9, 7), (1, 1, 7, 7)])  # with all steps and of one; windows that fit, and that do not
def test_mean_pooling_is_torchs(size: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    pool = AvgPool2d(size, gain=1.7)
    pool.step_mode = "m" if len(shape) == 5 else "s"
    wanted = 1.7 * nn.functional.avg_pool2d(x.reshape(-1, *shape[-3:]), size).reshape(*shape[:-2], shape[-2] // size, shape[-1] // size)
    torch.testing.assert_close(pool(x), wanted)
    g = torch.randn_like(wanted)
    torch.testing.assert_close(torch.autograd.grad(pool(x), x, g), torch.autograd.grad(wanted, x, g))


def test_pooling_by_neurons() -> None:
    net = network("2C3-P2n-10", "strsbp", (1, 6, 6), classes=10, thresholds=[1, 0.1, 5])
    assert kinds(net) == ["Conv2d", "RuleNode", "AvgPool2d", "RuleNode", "Flatten", "Linear", "RuleNode"]
    assert net.neuron2.rule.v_threshold == 0.1 and net.neuron2.path == "neuron2"
    net.conv1.weight.data.abs_()
    x = torch.rand(20, 3, 1, 6, 6)
    spikes: list[torch.Tensor] = []
    net.neuron2.register_forward_hook(lambda _, args, out: spikes.append(out))
    net(x).sum().backward()
    assert set(spikes[0].unique().tolist()) == {0.0, 1.0} and bool((net.conv1.weight.grad != 0).all())
    assert [part.fires for part in parse("2C3-P2-P2n-D0.1-4")] == [True, False, True, False, True]


REFUSALS = [
    ("4C3-P2n-10", {"rule": "stdbp", "mode": "event"}, (1, 8, 8), "part 2, 'P2n', has neurons, but 'stdbp' has none without weights"),
    ("R10-10", {"rule": "stdbp", "mode": "event"}, (4,), "part 1, 'R10', is recurrent, but 'stdbp' sends each spike time forward"),
    ("4C3-10", {"rule": "tssl"}, (16,), "part 1, '4C3', needs feature maps [C, H, W], but what comes in has 16 neurons in a row"),
    ("20-P2-10", {"rule": "tssl"}, (1, 8, 8), "part 2, 'P2', needs feature maps"),
    ("4C9-10", {"rule": "tssl"}, (1, 8, 8), "part 1, '4C9', does not fit on feature maps of 8 x 8"),
    ("4C7-P3-10", {"rule": "tssl"}, (1, 8, 8), "part 2, 'P3', does not fit on feature maps of 2 x 2"),
    ("400-400", {"rule": "tssl"}, (1, 8, 8), "the last part is '400', but the data has 10 classes; end it with '-10'"),
    ("4C3-P2", {"rule": "tssl"}, (1, 8, 8), "the last part is 'P2', but the data has 10 classes"),
]


@pytest.mark.parametrize(("text", "rule", "shape", "says"), REFUSALS)
def test_refusals(text: str, rule: dict, shape: tuple, says: str) -> None:
    configured = snn_rules.get_rule(rule["rule"], **{k: v for k, v in rule.items() if k != "rule"})
    with pytest.raises(snn_rules.RuleError) as refusal:
        network(text, configured, shape, classes=10)
    assert f"network {text!r}: {says}" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_rule_that_cannot_train_recurrent_weights_is_refused() -> None:
    rule = snn_rules.get_rule("tssl", warmup="layer")  # two sweeps, and no mathematics of its own for recurrence
    with pytest.raises(snn_rules.RuleError, match="network 'R5-10': part 1, 'R5': rule 'tssl' cannot train recurrent weights"):
        network("R5-10", rule, (4,))


def test_a_threshold_for_each_layer() -> None:
    (net := network("5C3-P2-R8-10", "strsbp", (1, 6, 6), thresholds=[20, 10, 15.0])).eval()
    assert [net.neuron1.rule.v_threshold, net.neuron3.rule.v_threshold, net.neuron4.rule.v_threshold] == [20, 10, 15]
    assert net.dense4.weight.abs().max().item() == pytest.approx(1.5 * 15 / 8**0.5, rel=0.1)  # what the rule makes of its own layer
    with pytest.raises(RuleError, match=r"network '8-10': thresholds=\[1\] are 1, for 2 layers of neurons; give each its own"):
        network("8-10", "strsbp", (4,), thresholds=[1])
    with pytest.raises(RuleError, match=r"thresholds=\[1, 2\], but 'stdbp' has one for all layers in this mode; leave them out"):
        network("8-10", get_rule("stdbp", mode="event"), (4,), thresholds=[1, 2])


def test_pooling_by_sums() -> None:
    net, x = network("2C3-P2-10", "tssl", (1, 6, 6), pool_gain=1.1), torch.rand(5, 3, 2, 4, 4)
    torch.testing.assert_close(net.pool2(x), 1.1 * x.unfold(3, 2, 2).unfold(4, 2, 2).sum((-2, -1)))
    with pytest.warns(UserWarning, match="pool_gain=1.1 has no meaning under 'stdbp', which pools by the maximum"):
        assert type(network("2C3-P2-10", "stdbp", (1, 6, 6), pool_gain=1.1).pool2).__name__ == "MaxPool2d"


@pytest.mark.parametrize("text", ["12-10", "3C3-P2-10", "R12-10"])
def test_a_static_input_crosses_the_first_layers_once(text: str) -> None:
    torch.manual_seed(0)
    net = network(text, "surrogate", (1, 6, 6)).double()
    for weight in net.parameters():
        weight.data = weight.abs() * 2  # all fire
    x = torch.rand(4, 1, 6, 6, dtype=torch.double).expand(5, 4, 1, 6, 6)
    passed: list[int] = []
    net[0].register_forward_hook(lambda _, args, out: passed.append(len(out)))
    out = net(x)
    (out * torch.arange(5.0).view(5, 1, 1)).sum().backward()
    gradients = [weight.grad for weight in net.parameters()]
    net.zero_grad(), [module.reset() for module in net if hasattr(module, "reset")]
    again = net(x.contiguous())
    (again * torch.arange(5.0).view(5, 1, 1)).sum().backward()
    assert passed == [1, 5] and out.sum() > 0 and torch.equal(out, again)
    for before, weight in zip(gradients, net.parameters(), strict=True):
        torch.testing.assert_close(before, weight.grad)
