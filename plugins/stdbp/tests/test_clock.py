"""mode="clock" against the definitions."""

import pytest
import torch
from snn_rules_stdbp import reference

import snn_rules
import snn_rules.coding
from snn_rules.testing import parametrize_with_checks

TIGHT = {torch.float64: 1e-10, torch.float32: 2e-4}


@parametrize_with_checks(["stdbp", snn_rules.get_rule("stdbp", mode="event")])
def test_kit(rule, check):
    check(rule)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("T", "mean"), [(1, 1.0), (2, 1.5), (20, 0.05), (60, 0.01)])
def test_equals_the_definition(T, mean, dtype):
    torch.manual_seed(T)
    x = (0.1 * torch.randn(T, 1, 12, dtype=dtype) + mean).requires_grad_()
    weight = torch.randn(T, 1, 12, dtype=dtype)
    out = snn_rules.RuleNode(rule="stdbp", step_mode="m")(x)
    (out * weight).sum().backward() if T > 1 else None
    fired = 0
    for j in range(12):
        column, g = x[:, 0, j].tolist(), weight[:, 0, j].tolist()
        spikes, _ = reference.clock(column, 1.0)
        fired += sum(spikes)
        assert out[:, 0, j].tolist() == spikes
        want = torch.tensor(reference.clock_gradient(column, 1.0, g), dtype=dtype)
        if T > 1:
            torch.testing.assert_close(x.grad[:, 0, j], want, rtol=TIGHT[dtype], atol=TIGHT[dtype] * float(want.abs().max() + 1e-300))
    assert (fired > 0) == (T > 1)  # the first step has heard nothing yet


def test_at_most_one_spike_also_over_two_calls():
    node = snn_rules.RuleNode(rule="stdbp", step_mode="m")
    x = torch.full((10, 1, 3), 0.2)
    first, second = node(x), node(x)
    assert first.sum(0).tolist() == [[1.0, 1.0, 1.0]]
    assert second.count_nonzero() == 0
    node.reset()
    assert torch.equal(node(x), first)


def test_a_rate_loss_teaches_nothing_and_says_so():
    x = torch.full((20, 2, 3), 0.1, requires_grad=True)
    out = snn_rules.RuleNode(rule="stdbp", step_mode="m")(x)
    with pytest.warns(UserWarning, match=r"RuleNode \(stdbp\): a backward pass gave a gradient of exactly zero .*use rule.loss"):
        out.sum().backward()
    assert x.grad.count_nonzero() == 0


def test_spike_times_move_as_the_gradient_says():
    """The gradient of the exact crossing: nudge an input, the crossing (by the reference) moves by it."""
    rule = snn_rules.get_rule("stdbp")
    x = torch.full((30, 1, 1), 0.02, dtype=torch.float64, requires_grad=True)
    out = snn_rules.RuleNode(rule=rule, step_mode="m")(x)
    steps = rule.times(out) * rule.unit
    steps.sum().backward()
    base = x.detach().flatten().tolist()
    for k in (0, 3, 7):
        moved = [v + (1e-6 if i == k else 0) for i, v in enumerate(base)]
        change = (reference.clock(moved, 1.0)[1].time - reference.clock(base, 1.0)[1].time) / 1e-6
        assert float(x.grad[k]) == pytest.approx(change, rel=1e-4)


def test_code_loss_and_prediction():
    rule = snn_rules.get_rule("stdbp", unit=8)
    sample = torch.tensor([[1.0, 0.5, 0.0]])
    spikes = rule.encode(sample, 32)
    assert spikes.shape == (32, 1, 3)
    assert spikes.argmax(0).tolist() == [[0, 4, 0]] and spikes.sum(0).tolist() == [[1, 1, 0]]
    out = torch.zeros(32, 1, 2)
    out[8, 0, 1] = 1  # class 1 fires at step 8 = time 1, class 0 counts as firing at time 4
    assert rule.times(out).tolist() == [[4.0, 1.0]]
    assert rule.predict(out).tolist() == [1]
    want = torch.nn.functional.cross_entropy(torch.tensor([[-16.0, -4.0]]), torch.tensor([1]))
    assert float(rule.loss(out, torch.tensor([1]))) == pytest.approx(float(want))


@pytest.mark.filterwarnings("ignore:.*gradient of exactly zero")
@pytest.mark.parametrize("revive", [0.0, 0.5])
def test_revive_pulls_silent_neurons_that_should_fire_earlier(revive):
    x = torch.full((6, 1, 2), 0.01, dtype=torch.float64, requires_grad=True)
    node = snn_rules.RuleNode(rule="stdbp", step_mode="m", revive=revive, v_threshold=2.0, unit=4)
    out = node(x)
    assert out.count_nonzero() == 0
    steps = snn_rules.coding.first_spike_steps(out)  # both count as firing at step 6
    (3.0 * steps[0, 0] - 3.0 * steps[0, 1]).backward()
    want = [3.0 * revive * 4 / 2.0 * (t - 6) for t in range(6)]
    assert x.grad[:, 0, 0].tolist() == pytest.approx(want)
    assert x.grad[:, 0, 1].count_nonzero() == 0


def test_the_loss_reads_a_last_layer_without_neurons():
    """Models that end in a synapse (spiking_resnet18) give no spikes; a class whose output is large early is early, and all learns."""
    rule = snn_rules.get_rule("stdbp", unit=4)
    out = torch.zeros(8, 2, 3)
    out[1, 0, 2] = out[2, 1, 0] = 5.0
    out[6, :, 1] = 5.0
    assert rule.predict(out).tolist() == [2, 0]
    values = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradient = torch.autograd.grad(rule.loss(values, torch.tensor([0, 1])), values)[0]
    assert gradient.ne(0).all()
