"""Encoders, readouts and losses, by hand; and what they refuse."""

import math
import re

import pytest
import torch

import snn_rules
from snn_rules import RuleError, coding

RULES = ["surrogate", "tssl", "strsbp", "stdbp"]
every_rule = pytest.mark.parametrize("rule", RULES)


def test_static_is_a_view_of_the_sample() -> None:
    x = torch.rand(2, 1, 3)
    train = coding.static(x, 4)
    assert train.shape == (4, 2, 1, 3) and train.stride(0) == 0
    assert torch.equal(train[3], x)


def test_poisson_has_the_rate_asked_for_and_repeats_for_a_seed() -> None:
    x = torch.tensor([[0.0, 0.5, 1.0]])
    train = coding.poisson(x, 20000, rate=0.4, generator=torch.Generator().manual_seed(0))
    assert set(train.unique().tolist()) == {0.0, 1.0}
    assert train.mean(0)[0].tolist() == [0.0, pytest.approx(0.2, abs=0.015), pytest.approx(0.4, abs=0.015)]
    assert torch.equal(train, coding.poisson(x, 20000, rate=0.4, generator=torch.Generator().manual_seed(0)))


def test_latency_on_the_grid_and_exact() -> None:
    x = torch.tensor([[1.0, 0.75, 0.01]])
    train = coding.latency(x, 5)
    assert train.sum(0).tolist() == [[1, 1, 0]] and train.argmax(0).tolist() == [[0, 1, 0]]
    assert coding.latency_times(x, silent=4.0).tolist() == [[[0.0, 0.25, 4.0]]]


CODES = pytest.mark.parametrize("code", [lambda x: coding.poisson(x, 3), lambda x: coding.latency(x, 3), lambda x: coding.latency_times(x, 4.0)])


@CODES
def test_samples_beyond_the_code_are_refused(code):
    assert code(torch.tensor([[0.0, 1.0005]])).shape[1:] == (1, 2)  # after a resize
    assert code(torch.empty(0, 2)).shape[1:] == (0, 2)
    with pytest.raises(RuleError, match=r"^encode: the samples reach from -0.5 to 255; this code takes values in \[0, 1\]: divide by the largest"):
        code(torch.tensor([[-0.5, 255.0]]))
    with pytest.raises(RuleError, match=r"^encode: the samples are dtype torch.uint8; pass a floating-point tensor .* x.float\(\) / 255"):
        code(torch.zeros(1, 2, dtype=torch.uint8))


def test_samples_that_are_no_tensor_are_refused():
    with pytest.raises(RuleError, match=r"^encode: the samples are a ndarray; pass a floating-point tensor"):
        coding.static(torch.zeros(1, 2).numpy(), 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@CODES
def test_what_is_no_number_is_not_hidden_in_spikes(code, bad) -> None:
    x = torch.rand(2, 1, 3, 3)
    code(x)
    x[1, 0, 2, 0] = bad
    with pytest.raises(RuleError, match=re.escape(f"encode: the samples hold {bad} at [1, 0, 2, 0]; look at the data")):
        code(x)


def test_losses_by_hand() -> None:
    out, target = torch.zeros(4, 2, 3), torch.tensor([0, 2])
    out[1, 0, 0] = out[2, 0, 0] = out[0, 1, 1] = 1.0  # counts: [2, 0, 0] and [0, 1, 0]
    assert float(coding.step_loss(out, target, reduction="sum")) == 0.5 * (2 + (4 + 1))
    assert float(coding.step_loss(out, target)) == 0.5 * 7 / 2
    assert float(coding.count_loss(out, target, 3.0, 1.0, reduction="sum")) == 0.5 * ((1 + 1 + 1) + (1 + 0 + 9))
    assert float(coding.count_loss(out, target, 3.0, 1.0, margin=1.0, reduction="sum")) == 0.5 * 4
    times = torch.tensor([[1.0, 2.0]])
    assert float(coding.first_spike_loss(times, torch.tensor([0]))) == pytest.approx(math.log(1 + math.exp(-1)))


def test_the_first_spike_and_what_moving_a_spike_does() -> None:
    spikes = torch.tensor([[0.0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).t().reshape(5, 1, 4).requires_grad_()
    steps = coding.first_spike_steps(spikes)
    assert steps.tolist() == [[1.0, 0.0, 4.0, 5.0]]
    steps.sum().backward()
    assert spikes.grad is not None
    moved = torch.cat([spikes.grad[1:], torch.zeros(1, 1, 4)]) - spikes.grad  # of a spike that is one step later
    assert [moved[t, 0, 0].item() for t in (1, 2, 4)] == [1.0, 0.0, 0.0] and moved[0, 0, 1] == moved[4, 0, 2] == 1.0


def test_psc_is_the_convolution_with_its_kernel() -> None:
    train = (torch.rand(9, 2, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    eps = [(1 - 1 / 3) ** k / 3 for k in range(9)]
    for t in range(9):
        torch.testing.assert_close(coding.psc(train, 3.0)[t], sum(eps[t - f] * train[f] for f in range(t + 1)))


@every_rule
def test_every_rule_takes_outputs_with_and_without_time(rule: str) -> None:
    configured, target = snn_rules.get_rule(rule), torch.tensor([1, 0])
    out = torch.zeros(8, 2, 3)
    out[2, 0, 1] = out[3, 1, 0] = 1.0
    for shaped in (out, out.mean(0)):
        assert configured.predict(shaped).tolist() == [1, 0]
        loss = configured.loss(shaped.requires_grad_(), target)
        assert loss.dim() == 0 and torch.isfinite(loss)
        torch.testing.assert_close(2 * loss, configured.loss(shaped, target, reduction="sum"))


@every_rule
@pytest.mark.parametrize("steps", [0, -3, 2.0, True])
def test_no_time_steps(rule: str, steps: object) -> None:
    with pytest.raises(RuleError, match=rf"^encode: T={steps} should be a whole number of time steps, at least 1$"):
        snn_rules.get_rule(rule).encode(torch.rand(2, 3), steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["surrogate", "tssl", "strsbp"])
@pytest.mark.parametrize(("shape", "target"), [((5, 2, 3), [0]), ((5, 2, 3, 1), [0, 1])])
def test_an_output_and_a_target_that_do_not_fit(rule: str, shape: tuple[int, ...], target: list[int]) -> None:
    with pytest.raises(RuleError, match=r"^loss: the output has shape \[.*\] and the target \[.\]; pass \[T, N, C\] or \[N, C\] and class indices"):
        snn_rules.get_rule(rule).loss(torch.zeros(shape), torch.tensor(target))


def test_spike_times_with_time() -> None:
    with pytest.raises(RuleError, match=r"^loss: the spike times have shape \[5, 2, 3\]; pass \[N, C\], such as rule.times\(out\)$"):
        coding.first_spike_loss(torch.zeros(5, 2, 3), torch.tensor([0, 1]))


def test_an_unknown_reduction() -> None:
    with pytest.raises(RuleError, match="loss: reduction='none' should be 'mean'"):
        snn_rules.get_rule("tssl").loss(torch.zeros(5, 1, 3), torch.tensor([0]), reduction="none")
