"""What ST-RSBP adds to a training: exponential weight regularisation, and lateral inhibition in the output layer."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional

import snn_rules
from snn_rules.config import Config
from snn_rules.data import load
from snn_rules.network import network
from snn_rules.regularize import penalty
from snn_rules.train import fit

RULES: dict[str, dict[str, Any]] = {"surrogate": {}, "tssl": {}, "strsbp": {"v_threshold": 1.0, "delay": 0}, "stdbp": {}}
every_rule = pytest.mark.parametrize("rule", RULES)
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")
DIGITS = load("digits").limit(60)


def small(text: str = "4C3-P2-R5-3") -> torch.nn.Module:
    torch.manual_seed(0)
    return network(text, "tssl", (2, 6, 6)).double()


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_the_cost_is_that_of_the_paper() -> None:
    net, config = small(), Config(regularize="sum", exp_lambda=0.7, exp_beta=0.3)
    want = 0.0
    for name in ("conv1", "dense3", "neuron3", "dense4"):  # the recurrent weights by themselves
        for row in getattr(net, name).weight.flatten(1).tolist():
            want += 0.5 * 0.7 * math.exp(0.3 * (sum(w * w for w in row) - 1))
    assert penalty(net, config).item() == pytest.approx(want, rel=1e-12)
    assert penalty(net, Config()) is None


def test_the_gradient_is_that_of_the_authors_code() -> None:
    net, config = small("3"), Config(regularize="mean")
    net.dense1.weight.data.mul_(20)
    penalty(net, config).backward()
    weight = net.dense1.weight.detach() / 8
    s = weight.square().sum(1, keepdim=True) / weight.shape[1]
    torch.testing.assert_close(net.dense1.weight.grad, 10 * 0.04 * weight * torch.exp(0.04 * (s - 1)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_training_follows_it(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a step is the one without it, plus that of the cost for each sample that is summed."""
    seen: list[torch.Tensor] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: (seen.append(self.param_groups[0]["params"][0].grad.clone()), step(self, *a))[1])
    rule, losses = snn_rules.get_rule("tssl"), []
    config = Config(epochs=1, batch_size=60, T=5, reduction=reduction)
    for chosen in (config, replace(config, regularize="sum", exp_lambda=0.1, exp_beta=0.5)):
        torch.manual_seed(0)
        net = network("12-10", rule, DIGITS.shape)
        want = torch.autograd.grad(penalty(net, replace(chosen, regularize="sum", exp_lambda=0.1, exp_beta=0.5)), net.dense1.weight)[0]
        losses.append(fit(net, rule, DIGITS, chosen).last.loss)
    plain, regularized = seen
    torch.testing.assert_close(regularized, plain + want * (60 if reduction == "sum" else 1))
    assert losses[0] == losses[1] and plain.any()  # the curve shows the rule's loss alone


def signal(rule: str) -> torch.Tensor:
    """Spikes come one after the other: under stdbp, too, where each neuron has one."""
    torch.manual_seed(0)
    return torch.rand(12, 3, 5, dtype=torch.float64) * (0.1 if rule == "stdbp" else 1.5)


# ---- lateral inhibition ----------------------------------------------------------------------------------------------


@every_rule
def test_a_spike_inhibits_the_others_one_step_later(rule: str) -> None:
    x = signal(rule)
    node = snn_rules.InhibitedNode(5, rule, inhibition=0.3, **RULES[rule]).double()
    alone = snn_rules.RuleNode(rule, step_mode="s", **RULES[rule])
    y, want = torch.zeros(3, 5, dtype=torch.float64), []
    with torch.no_grad():
        for x_t in x:
            y = alone(x_t - 0.3 * alone.v_threshold * (y.sum(-1, keepdim=True) - y))
            want.append(y)
    assert torch.equal(node(x).detach(), torch.stack(want))
    free = snn_rules.RuleNode(rule, step_mode="m", **RULES[rule])(x)
    assert torch.stack(want).sum() <= free.sum() and not torch.equal(torch.stack(want), free)


@every_rule
def test_errors_go_through_the_inhibition_as_through_recurrent_weights(rule: str) -> None:
    x, g = signal(rule), torch.randn(12, 3, 5, dtype=torch.float64)
    node, same = (kind(5, rule, **RULES[rule]).double() for kind in (snn_rules.InhibitedNode, snn_rules.RecurrentNode))
    same.weight.data.copy_(node.wiring())
    found = [torch.autograd.grad((layer(x.requires_grad_()) * g).sum(), x)[0] for layer in (node, same)]
    assert torch.equal(*found) and found[0].any()
    assert not list(node.parameters()) and not node.state_dict() and not node.weight.requires_grad

    alone = snn_rules.RuleNode(rule, step_mode="m", **RULES[rule])
    unaware = torch.autograd.grad((alone(x) * g).sum(), x)[0]
    assert not torch.allclose(found[0], unaware)


def test_the_inhibition_is_of_the_threshold_that_the_neuron_has_now() -> None:
    node = snn_rules.InhibitedNode(3, "strsbp", inhibition=0.5)
    assert node.wiring()[0, 1] == -0.5 * node.v_threshold == -0.5 * 10.0
    node.v_threshold = 4.0
    assert node.wiring()[0, 1] == -2.0
    other = snn_rules.convert(torch.nn.Sequential(node), "tssl", v_threshold=1.0)[0]
    assert isinstance(other, snn_rules.InhibitedNode) and other.wiring()[0, 1] == -0.5


def test_inhibition_in_a_network() -> None:
    rule = snn_rules.get_rule("strsbp", v_threshold=15.0)
    torch.manual_seed(0)
    net = network("8-10", rule, DIGITS.shape, 10, inhibition=1 / 15)
    assert type(net.neuron1) is snn_rules.RuleNode and isinstance(net.neuron2, snn_rules.InhibitedNode)
    assert list(net.state_dict()) == ["dense1.weight", "dense2.weight"] and "inhibition=0.0666667" in repr(net)
    torch.testing.assert_close(net.neuron2.wiring(), torch.eye(10) - 1)  # the authors' weight of -1 at their threshold
    before = net.neuron2.wiring().clone()
    history = fit(net, rule, DIGITS, Config.of(rule, epochs=2, T=20, batch_size=20, clamp=0.5))
    assert torch.equal(net.neuron2.wiring(), before) and math.isfinite(history.last.loss) and history.last.synops["neuron2"] >= 0
    functional.reset_net(net)


REFUSALS = [
    ("8-R10", "tssl", {}, "network '8-R10': part 2, 'R10', is no dense part, and has no lateral inhibition; pass inhibition=0"),
    (
        "8-10",
        "stdbp",
        {"mode": "event"},
        "network '8-10': part 2, '10', sends spike times, each once, under 'stdbp', and has no lateral inhibition; pass",
    ),
    ("8-10", "tssl", {"warmup": "layer"}, "network '8-10': part 2, '10': rule 'tssl' cannot train recurrent weights"),
]


@pytest.mark.parametrize(("text", "rule", "options", "says"), REFUSALS)
def test_where_there_is_none(text: str, rule: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(snn_rules.RuleError) as refusal:
        network(text, snn_rules.get_rule(rule, **options), (4,), inhibition=0.1)
    assert str(refusal.value).startswith(says) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, "much", True])
def test_an_impossible_inhibition(value: Any) -> None:
    with pytest.raises(snn_rules.RuleError, match=f"InhibitedNode: inhibition={value!r} should be a fraction of the threshold, at least 0"):
        snn_rules.InhibitedNode(3, "tssl", inhibition=value)
