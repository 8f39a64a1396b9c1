"""Recurrent layers without the zeros of their spikes: what they hear, their weights' gradient, ST-RSBP's sum over spikes."""

import pytest
import torch
from spikingjelly.activation_based import functional

import snn_rules
from snn_rules import zeros as skipping
from snn_rules.kernels import zeros

from .test_zeros import WIDTHS, close, spikes


def test_recurrent_weights_learn_the_same(monkeypatch):
    torch.manual_seed(0)
    node, x = snn_rules.RecurrentNode(40, "strsbp", v_threshold=2.0).double(), torch.rand(50, 4, 40).double() / 4
    found, calls, real = [], [], zeros.weight_gradient
    monkeypatch.setattr(zeros, "weight_gradient", lambda *given: calls.append(1) or real(*given))
    for most in (1 / 8, -1.0):
        monkeypatch.setattr(zeros, "FEW", most)
        node.weight.grad = None
        out = node(x)
        out.sum().backward()
        functional.reset_net(node)
        found.append(node.weight.grad)
    assert out.any() and calls == [1]
    close(found[0], found[1], 200)


def test_recurrent_neurons_hear_spikes_alone(monkeypatch):
    torch.manual_seed(0)
    node, x, found = snn_rules.RecurrentNode(40, "surrogate").double(), torch.randn(50, 4, 40).double(), []
    calls, real = [], zeros.bound
    monkeypatch.setattr(zeros, "bound", lambda *given: calls.append(1) or real(*given))
    for how in (torch.enable_grad, snn_rules.skip_zeros):
        node.weight.grad = None
        with how():
            out = node(x)
            functional.detach_net(node)
            again = node(x)  # from where the first left it
        again.sum().backward()
        functional.reset_net(node)
        found.append((out.detach(), again.detach(), node.weight.grad))
    assert calls == [1, 1] and found[0][0].any()
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    close(found[1][2], found[0][2], 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("features", WIDTHS)
def test_products_at_spikes(features, density, dtype, monkeypatch):
    some, found = spikes(30, 5, features, density=density, dtype=dtype), []
    x, weight = torch.randn(30, 5, features, dtype=dtype), torch.randn(features, features, dtype=dtype)
    wanted = ((x.double() @ weight.double()) * some.double()).sum(0)
    for flags in ("", "-mno-avx512f", "-mno-avx2 -mno-avx512f"):
        monkeypatch.setenv("SNN_RULES_CXXFLAGS", flags)
        zeros._kernels.cache_clear()
        found.append(zeros.at_spikes(x, weight, some))
    zeros._kernels.cache_clear()
    close(found[0], wanted, 30)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    close(skipping.at_spikes(x, weight, some), wanted, 30)  # by either way
    close(skipping.at_spikes(x.transpose(0, 1).contiguous().transpose(0, 1), weight.t().contiguous().t(), some), wanted, 30)
