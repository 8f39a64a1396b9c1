"""Reservoirs: wired as the formula says, wired so after training, and learned through by every rule. Dropout with one mask a sample."""

import copy
import math
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional

import snn_rules
from snn_rules.activity import watch
from snn_rules.data import load
from snn_rules.network import network, parse
from snn_rules.reservoir import connection_probability
from snn_rules.train import Config, fit

RULES: dict[str, dict[str, Any]] = {"surrogate": {}, "tssl": {}, "strsbp": {"v_threshold": 1.0}, "stdbp": {}}
every_rule = pytest.mark.parametrize("rule", RULES)
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")
DIGITS = load("digits").limit(60)


def made(rule: str = "tssl", grid: tuple[int, ...] = (2, 3, 2), **more: Any) -> snn_rules.Reservoir:
    torch.manual_seed(0)
    return snn_rules.Reservoir(grid, rule, **RULES[rule], **more)


# ---- wiring ----------------------------------------------------------------------------------------------------------


def test_the_probability_of_a_connection() -> None:
    grid, inhibitory = (2, 3, 2), torch.tensor([False, True, False, False, True, False, False, True, True, False, False, False])
    found = connection_probability(grid, inhibitory)
    c = {("E", "E"): 0.45, ("E", "I"): 0.30, ("I", "E"): 0.60, ("I", "I"): 0.15}  # (from, to)
    places = [(x, y, z) for x in range(2) for y in range(3) for z in range(2)]
    for to, here in enumerate(places):
        for begin, there in enumerate(places):
            distance2 = sum((a - b) ** 2 for a, b in zip(here, there, strict=True))
            want = c["EI"[int(inhibitory[begin])], "EI"[int(inhibitory[to])]] * math.exp(-distance2 / 4)
            assert found[to, begin].item() == pytest.approx(want, rel=1e-5)


def test_connections_are_as_likely_as_that() -> None:
    torch.manual_seed(0)
    masks = torch.stack([snn_rules.Reservoir((5, 5, 16), "strsbp").mask for _ in range(20)])
    kinds = [(0.8, "E"), (0.2, "I")]
    c = {("E", "E"): 0.45, ("E", "I"): 0.30, ("I", "E"): 0.60, ("I", "I"): 0.15}
    mean = sum(p * q * c[a, b] for p, a in kinds for q, b in kinds)  # over the kinds, of two neurons
    alone = sum(p * c[a, a] for p, a in kinds)  # and of one, which is of one kind
    decay = connection_probability((5, 5, 16), torch.zeros(400, dtype=torch.bool)) / 0.45
    want = mean * (decay.sum() - 400) + alone * 400
    assert masks.sum((1, 2)).mean().item() == pytest.approx(want.item(), rel=0.02)
    near, far = decay > 0.7, decay < 0.01
    assert masks[:, near].mean() > 0.3 and masks[:, far].mean() < 0.004 and masks.unique().tolist() == [0, 1]


def test_weights_are_those_of_the_paper_and_repeat_with_the_seed() -> None:
    torch.manual_seed(1)
    node = snn_rules.Reservoir((5, 5, 16), "strsbp", v_threshold=20.0)
    there = node.weight[node.mask > 0]
    assert node.features == 400 and 0.98 < there.abs().max() <= 1 and abs(there.mean()) < 0.05 and not node.weight[node.mask == 0].any()
    torch.manual_seed(1)
    assert torch.equal(snn_rules.Reservoir((5, 5, 16), "strsbp").mask, node.mask)
    assert list(node.state_dict()) == ["weight", "mask"] and f"5 x 5 x 16, {int(node.mask.sum())} connections, 400" in repr(node)


# ---- learning --------------------------------------------------------------------------------------------------------


@every_rule
def test_a_reservoir_is_a_recurrent_layer_with_these_weights(rule: str) -> None:
    node, same = made(rule).double(), snn_rules.RecurrentNode(12, rule, **RULES[rule]).double()
    node.weight.data.mul_(10)
    same.weight.data.copy_(node.weight)
    x, g = (2 * torch.rand(10, 3, 12, dtype=torch.float64)).requires_grad_(), torch.randn(10, 3, 12, dtype=torch.float64)
    outs, grads = zip(*((out := layer(x), torch.autograd.grad((out * g).sum(), (x, layer.weight))) for layer in (node, same)), strict=True)
    assert torch.equal(*outs) and outs[0].any()
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1] * node.mask)
    assert grads[0][1].any() and grads[1][1][node.mask == 0].any()  # and that is not nothing


def test_only_connections_learn() -> None:
    rule = snn_rules.get_rule("strsbp", tau_m=16.0, tau_s=4.0, v_threshold=2.0)
    torch.manual_seed(0)
    net = network("R3x3x4-10", rule, DIGITS.shape, 10)
    mask, before = net.neuron1.mask.clone(), net.neuron1.weight.detach().clone()
    settings = {"epochs": 8, "T": 40, "lr": 5e-3, "batch_size": 20, "weight_decay": 0.01, "clamp": 0.3}
    losses = [epoch.loss for epoch in fit(net, rule, DIGITS, Config.of(rule, **settings)).epochs]
    weight = net.neuron1.weight.detach()
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(net.neuron1.mask, mask) and not weight[mask == 0].any()
    assert ((weight != before) == (mask > 0)).all()  # every connection has learned, and no other has come


def test_a_liquid_state_machine_keeps_its_weights() -> None:
    rule = snn_rules.get_rule("tssl")
    torch.manual_seed(0)
    net = network("R2x3x2-10", rule, DIGITS.shape, 10)
    net.neuron1.weight.requires_grad_(False)
    before = net.neuron1.weight.clone()
    fit(net, rule, DIGITS, Config.of(rule, epochs=1, lr=0.1))
    assert torch.equal(net.neuron1.weight, before) and not made(trained=False).weight.requires_grad


def test_checkpoints_copies_and_operations() -> None:
    node, other = made(), snn_rules.Reservoir((2, 3, 2), "tssl")
    assert not torch.equal(node.mask, other.mask)
    other.load_state_dict(node.state_dict())
    x = torch.rand(6, 2, 12)
    assert torch.equal(other(x), node(x)) and torch.equal(copy.deepcopy(node).mask, node.mask)
    functional.reset_net(node)
    with torch.no_grad(), watch(torch.nn.Sequential(node), node.rule) as activity:
        out = node(x)
    activity.samples = 2
    reached = sum(float(out[..., j].sum()) * int(node.mask[:, j].sum()) for j in range(12))
    assert activity.synops["0"] == pytest.approx(reached / 2) and reached > 0


@pytest.mark.parametrize("grid", [(5, 5), (5, 5, 0), (5, 5, 1.5)])
def test_a_grid_that_is_none(grid: Any) -> None:
    with pytest.raises(snn_rules.RuleError, match=r"Reservoir: grid=\(5, 5.*\) should be three whole numbers, at least 1, such as \(5, 5, 16\)"):
        snn_rules.Reservoir(grid, "tssl")


# ---- in network strings ----------------------------------------------------------------------------------------------


def test_parts() -> None:
    reservoir, dropout, dense = parse("R5x5x16-D0.2-10")
    assert (reservoir.kind, reservoir.size, reservoir.grid) == ("recurrent", 400, (5, 5, 16))
    assert (dropout.kind, dropout.rate, dense.size) == ("dropout", 0.2, 10)
    for word in ("R5x5", "R5x5x", "5x5x16", "R0x5x5", "D", "D1", "D0", "D1.2", "D0.2.1", "d0.2"):
        with pytest.raises(snn_rules.RuleError, match=f"network '8-{word}-10': '{word}' "):
            parse(f"8-{word}-10")
    with pytest.raises(snn_rules.RuleError, match="part 1, 'R2x2x2', is recurrent, but 'stdbp' sends each spike time forward, once; write '8', or"):
        network("R2x2x2-10", snn_rules.get_rule("stdbp", mode="event"), (4,))
    with pytest.raises(snn_rules.RuleError, match=r"the last part is 'D0.2', but the data has 10 classes"):
        network("10-D0.2", "tssl", (4,), 10)


@pytest.mark.parametrize("text", ["12-D0.25-10", "4C3-D0.25-10"])
def test_dropout_keeps_its_mask_for_all_steps(text: str) -> None:
    torch.manual_seed(0)
    net = network(text, "surrogate", (1, 6, 6), 10)
    seen: list[torch.Tensor] = []
    net.dropout2.register_forward_hook(lambda _, args, out: seen.append(out))
    ones = torch.ones(7, 200, *((12,) if "C" not in text else (4, 4, 4)))
    net.dropout2(ones)
    functional.reset_net(net)
    net.dropout2(ones)
    net.eval()(torch.rand(7, 3, 1, 6, 6))
    first, second, tested = seen
    assert (first == first[:1]).all() and not torch.equal(first, second) and sorted(first.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.03) and tested.max() <= 1


@pytest.mark.parametrize("rule", ["tssl", "strsbp", "stdbp mode=event"])
def test_a_training_with_dropout_goes_on_to_the_bit(rule: str, tmp_path: Any) -> None:
    name, *options = rule.split()
    chosen = snn_rules.get_rule(name, **dict(option.split("=") for option in options))

    def losses(epochs: int, folder: Any = None, resume: bool = False) -> list[float]:
        torch.manual_seed(0)
        net = network("12-D0.5-10", chosen, DIGITS.shape, 10)
        config = Config.of(chosen, epochs=epochs, batch_size=20, T=6)
        return [epoch.loss for epoch in fit(net, chosen, DIGITS, config, folder, resume).epochs]

    whole = losses(3)
    losses(1, tmp_path)
    assert losses(3, tmp_path, resume=True) == whole
