"""Convolutions without the zeros of spike trains: those of `torch.nn.functional.conv2d`, to round-off."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import snn_rules
from snn_rules import kernels as executors
from snn_rules import zeros as skipping
from snn_rules.kernels import build, zeros, zeros_conv
from snn_rules.network import network

from .test_zeros import both, close, spikes

SHAPES = [  # input channels, height, width, output channels, kernel, stride, padding
    (1, 28, 28, 15, (5, 5), (1, 1), (0, 0)),
    (15, 12, 12, 40, (5, 5), (1, 1), (0, 0)),
    (3, 9, 7, 16, (3, 3), (1, 1), (1, 1)),
    (4, 10, 11, 33, (3, 2), (2, 3), (1, 0)),
    (2, 8, 8, 5, (1, 1), (2, 2), (0, 0)),
    (2, 5, 6, 3, (7, 7), (2, 2), (3, 3)),  # a kernel larger than the image
    (2, 4, 4, 3, (3, 3), (1, 1), (4, 4)),  # and places that reach none of it
    (1, 3, 3, 1, (3, 3), (1, 1), (0, 0)),
    (2, 6, 40, 130, (3, 3), (4, 1), (1, 2)),
]
shapes = pytest.mark.parametrize(("channels", "height", "width", "outputs", "kernel", "stride", "padding"), SHAPES)


@pytest.fixture
def taken(monkeypatch):
    """How many convolutions have left out zeros; of any size."""
    monkeypatch.setattr(skipping, "LARGE", 0)
    seen = []
    real = zeros_conv.product
    monkeypatch.setattr(zeros_conv, "product", lambda *given: seen.append(given[0].dtype) or real(*given))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("density", [0.0, 0.08, 1.0])
@shapes
def test_they_are_those_of_torch(channels, height, width, outputs, kernel, stride, padding, density, dtype, monkeypatch):
    x = spikes(21, channels, height, width, density=density) * torch.randint(-3, 4, (21, channels, height, width))
    weight, bias = torch.randn(outputs, channels, *kernel).double(), torch.randn(outputs).double()
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    wide, turned = x.double(), weight.double().requires_grad_()
    wanted = F.conv2d(wide, turned, bias.double(), stride, padding)
    g = torch.randn(wanted.shape, dtype=torch.float64).to(dtype)
    wanted.backward(g.double())
    for band in ("256 * 1024", "1"):  # bytes: whole images, and row by row
        monkeypatch.setattr(zeros_conv, "TEXT", zeros_conv.TEXT.replace("CACHE = 256 * 1024", f"CACHE = {band}"))
        zeros_conv._kernels.cache_clear()
        close(zeros_conv.product(x, weight, bias, stride, padding), wanted.detach(), 100)
        close(zeros_conv.product(x, weight, None, stride, padding), wanted.detach() - bias.double().view(-1, 1, 1), 100)
        close(zeros_conv.weight_gradient(g, x, weight, stride, padding), turned.grad, 500)
    zeros_conv._kernels.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=["float32", "float64", "bfloat16", "float16"])
def test_threads_and_narrower_vectors_give_the_same_bits(dtype, monkeypatch):
    real = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight, how = spikes(18, 3, 66, 66, dtype=dtype), torch.randn(20, 3, 3, 3, dtype=real), ((1, 1), (1, 1))  # larger than a band of rows
    g, found = torch.randn(18, 20, 66, 66, dtype=real), []

    def run(x=x):
        found.append((zeros_conv.product(x, weight, None, *how), zeros_conv.weight_gradient(g, x, weight, *how)))

    for threads in (1, 2, 3, 17):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        run()
    run(x.to(real))
    for flags in ("-mno-avx512f", "-mno-avx2 -mno-avx512f"):
        monkeypatch.setenv("SNN_RULES_CXXFLAGS", flags)
        zeros_conv._kernels.cache_clear()
        run()
    zeros_conv._kernels.cache_clear()
    assert all(torch.equal(found[0][k], other[k]) for other in found[1:] for k in (0, 1)) and found[0][1].any()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@shapes
def test_a_layer(channels, height, width, outputs, kernel, stride, padding, bias, taken):
    torch.manual_seed(0)
    made = layer.Conv2d(channels, outputs, kernel, stride=stride, padding=padding, bias=bias, step_mode="m").double()
    x = spikes(3, 4, channels, height, width, density=0.03)
    for dense, skipped in both(lambda: copy.deepcopy(made), x):
        close(skipped, dense, 500)
    assert taken == [torch.float64]


def test_a_network_learns_the_same(taken):
    def make():
        torch.manual_seed(0)
        return network("6C3-P2-8C3p1-10", "strsbp", (2, 12, 12)).double()

    x = spikes(12, 4, 2, 12, 12, density=0.04)
    for dense, skipped in both(make, x):
        close(skipped, dense, 2000)  # of whole trains, and layers
    assert taken


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_autocast_has_its_dtypes(dtype, taken):
    torch.manual_seed(0)
    net, x = nn.Conv2d(3, 8, 3), spikes(6, 3, 9, 9, dtype=torch.float32).requires_grad_()
    wanted = net(x)
    wanted.sum().backward()
    dense = [x.grad, *(each.grad for each in net.parameters())]
    x.grad = None
    net.zero_grad()
    with torch.autocast("cpu", dtype), snn_rules.skip_zeros():
        out = net(x)
    assert out.dtype == dtype and torch.allclose(out.float(), wanted, atol=0.02)
    out.float().sum().backward()
    for found, gradient in zip([x.grad, *(each.grad for each in net.parameters())], dense, strict=True):
        assert found.dtype == torch.float32 and torch.allclose(found, gradient, rtol=0.02, atol=0.02 * float(gradient.abs().max()))
    assert taken == [torch.float32]


def test_what_goes_its_usual_way(taken, monkeypatch):
    torch.manual_seed(0)
    x, weight = spikes(12, 4, 9, 9), torch.randn(8, 4, 3, 3, dtype=torch.float64)
    with snn_rules.skip_zeros():
        for how in ({"groups": 2}, {"dilation": 2}, {"dilation": (2, 1)}, {"padding": "same"}, {"padding": "valid"}):
            F.conv2d(x, weight[:, :2] if "groups" in how else weight, **how)
        F.conv2d(x[0], weight)  # one image
        F.conv2d(x.to(memory_format=torch.channels_last), weight)
        F.conv2d(torch.rand_like(x), weight)  # no spikes
        make_fx(F.conv2d)(x, weight)
        torch.compile(lambda x: F.conv2d(x, weight), backend="aot_eager", fullgraph=True)(x)
        for bad, says in ((spikes(12, 5, 9, 9), "channels"), (spikes(12, 4, 2, 2), "Kernel size"), (x.float(), "type")):
            with pytest.raises(RuntimeError, match=says):
                F.conv2d(bad, weight)
        monkeypatch.setattr(executors, "FORCED", "eager")
        F.conv2d(x, weight)
        monkeypatch.setattr(executors, "FORCED", "")
        monkeypatch.setattr(skipping, "LARGE", 12 * 7 * 7 * weight.numel() + 1)
        F.conv2d(x, weight)
        assert not taken
        monkeypatch.setattr(skipping, "LARGE", 12 * 7 * 7 * weight.numel())
        close(F.conv2d(x, weight, stride=[1], padding=[0]), F.conv2d(x.clone(memory_format=torch.preserve_format), weight), 40)
    assert len(taken) == 2


def test_without_a_compiler_it_says_so_and_torch_convolves(taken, monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: (_ for _ in ()).throw(build.NoCompiler("neither g++ nor clang++ is installed")))
    zeros_conv._kernels.cache_clear()
    zeros._failure.cache_clear(), build.say_once.cache_clear()
    x, weight = spikes(12, 4, 9, 9), torch.randn(8, 4, 3, 3, dtype=torch.float64)
    wanted = F.conv2d(x, weight)
    try:
        with snn_rules.skip_zeros(), pytest.warns(UserWarning, match="several times slower: neither g"):
            assert torch.equal(F.conv2d(x, weight), wanted) and not taken
    finally:
        zeros._failure.cache_clear()


def test_hooks_may_give_saved_tensors_other_strides(taken):
    torch.manual_seed(0)
    net, x, found = nn.Conv2d(2, 3, 3).double(), spikes(6, 2, 9, 9), []
    for hook in (lambda each: each, lambda each: each.to(memory_format=torch.channels_last) if each.dim() == 4 else each):
        net.weight.grad = None
        with snn_rules.skip_zeros(), torch.autograd.graph.saved_tensors_hooks(hook, lambda each: each):
            net(x).square().sum().backward()
        found.append(net.weight.grad)
    assert torch.equal(*found) and found[0].any() and len(taken) == 2


def test_a_factorys_network_takes_part(taken):
    torch.manual_seed(0)
    net, x = snn_rules.build("spiking_resnet18", rule="tssl", num_classes=10).eval(), (torch.rand(2, 1, 3, 32, 32) < 0.05).float()
    with torch.no_grad(), snn_rules.skip_zeros():
        net(x)
    functional.reset_net(net)
    assert taken
