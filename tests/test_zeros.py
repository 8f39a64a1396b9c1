"""Products without the zeros of spike trains: those of `torch.nn.functional.linear`, to round-off."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import snn_rules
from snn_rules import kernels as executors
from snn_rules import trained
from snn_rules import zeros as skipping
from snn_rules.kernels import build, zeros
from snn_rules.network import network

WIDTHS = (1, 2, 15, 16, 17, 33, 200, 400)


@pytest.fixture
def taken(monkeypatch):
    """How many products have left out zeros; of layers of any size."""
    monkeypatch.setattr(skipping, "LARGE", 0)
    seen = []
    real = zeros.product
    monkeypatch.setattr(zeros, "product", lambda *given: seen.append(given[0].dtype) or real(*given))
    return seen


def spikes(*shape, density=0.05, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return (torch.rand(shape) < density).to(dtype)


def close(found, wanted, terms):
    """To round-off: a few last bits for each term of a sum, of the largest that there is."""
    wanted = wanted.to(torch.float64)
    most = 2 * torch.finfo(found.dtype).eps * terms * wanted.abs().max().clamp(min=1)
    assert (found.to(torch.float64) - wanted).abs().max() <= most, ((found - wanted).abs().max(), most)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("outputs", WIDTHS)
def test_products_are_those_of_linear(outputs, density, dtype):
    for inputs in WIDTHS:
        x = spikes(40, inputs, density=density) * torch.randint(-3, 4, (40, inputs))  # not of ones alone
        weight, g, bias = (
            torch.randn(outputs, inputs, dtype=torch.float64),
            torch.randn(40, outputs, dtype=torch.float64),
            torch.randn(outputs).double(),
        )
        few = x.to(dtype), weight.to(dtype), bias.to(dtype), g.to(dtype)
        close(zeros.product(*few[:3]), F.linear(*(each.double() for each in few[:3])), 20)
        close(zeros.product(*few[:2], None), F.linear(*(each.double() for each in few[:2])), 20)
        close(zeros.weight_gradient(few[3], few[0]), few[3].double().t() @ few[0].double(), 20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_input_gives_the_bits_of_float32(dtype):
    x, weight, g = spikes(300, 250, dtype=torch.float32), torch.randn(70, 250), torch.randn(300, 70)
    x[5, 7], x[6, 249] = -2.5, 6e-5  # a number below float16's normal ones, too
    half = x.to(dtype)
    assert torch.equal(zeros.product(half, weight, None), zeros.product(half.float(), weight, None))
    assert torch.equal(zeros.weight_gradient(g, half), zeros.weight_gradient(g, half.float()))


@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx2 -mno-avx512f"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"])
def test_threads_and_narrower_vectors_give_the_same_bits(dtype, flags, monkeypatch):
    real = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight, g = spikes(500, 201, dtype=dtype), torch.randn(130, 201, dtype=real), torch.randn(500, 130, dtype=real)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append((zeros.product(x, weight, None), zeros.weight_gradient(g, x)))
    monkeypatch.setenv("SNN_RULES_CXXFLAGS", flags)
    zeros._kernels.cache_clear()
    found.append((zeros.product(x, weight, None), zeros.weight_gradient(g, x)))
    zeros._kernels.cache_clear()
    assert x.numel() >= zeros.PARALLEL
    assert all(torch.equal(found[0][k], other[k]) for other in found[1:] for k in (0, 1))


def test_what_is_not_finite_goes_through():
    x, weight = spikes(50, 40, dtype=torch.float32), torch.ones(3, 40)
    x[2, 3], x[4, 5] = float("nan"), float("inf")
    out = zeros.product(x, weight, None)
    assert out[2].isnan().all() and out[4].isinf().all() and out[[0, 1, 3]].isfinite().all()
    assert zeros.product(x * 0 + 0, weight, None)[0].isfinite().all()


def both(make, x):
    """Output and gradients without and with zeros skipped, for the same module."""
    found = []
    for how in (False, True):
        net, given = make(), x.clone().requires_grad_()
        with snn_rules.skip_zeros() if how else torch.enable_grad():
            out = net(given)
        torch.manual_seed(1)
        out.backward(torch.randn(out.shape, dtype=torch.float64).to(out.dtype))
        found.append((out.detach(), given.grad, *(each.grad for each in net.parameters())))
        functional.reset_net(net)
    return zip(*found, strict=True)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("kind", [nn.Linear, layer.Linear])
@pytest.mark.parametrize("lead", [(12,), (3, 4), (2, 3, 2)])
def test_a_linear_layer(lead, kind, bias, taken):
    torch.manual_seed(0)
    made = kind(40, 30, bias=bias).double()
    if kind is layer.Linear:
        made.step_mode = "m"
    for dense, skipped in both(lambda: copy.deepcopy(made), spikes(*lead, 40)):
        close(skipped, dense, 40)
    assert taken == [torch.float64]


@pytest.mark.parametrize("rule", ["surrogate", "tssl", "strsbp", "stdbp"])
def test_a_network_learns_the_same(rule, taken):
    def make():
        torch.manual_seed(0)
        return network("30-R20-10", rule, (50,)).double()

    for dense, skipped in both(make, spikes(12, 8, 50, density=0.1)):
        close(skipped, dense, 1000)  # of whole trains, and layers
    assert taken


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_autocast_has_its_dtypes(dtype, taken):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 9)), spikes(70, 60, dtype=torch.float32).requires_grad_()
    wanted = net(x)
    wanted.sum().backward()
    dense = [x.grad, *(each.grad for each in net.parameters())]
    x.grad = None
    net.zero_grad()
    with torch.autocast("cpu", dtype), snn_rules.skip_zeros():
        first = net[0](x)
        out = net[2](first.relu() * (first > 0.7))
        assert first.dtype == out.dtype == dtype
        whole = net(x)
    whole.float().sum().backward()
    assert torch.allclose(whole.float(), wanted, atol=0.05)
    for found, gradient in zip([x.grad, *(each.grad for each in net.parameters())], dense, strict=True):
        assert found.dtype == torch.float32 and torch.allclose(found, gradient, rtol=0.05, atol=0.05 * float(gradient.abs().max()))
    assert taken[0] == torch.float32


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, of forward_ad
def test_what_goes_its_usual_way(taken, monkeypatch):
    torch.manual_seed(0)
    net, x = nn.Linear(40, 30).double(), spikes(60, 40)
    with snn_rules.skip_zeros():
        net(torch.rand(60, 40).double())  # no spikes
        net(x.t().contiguous().t())  # not in order
        net(x[0])  # one step of one sample
        vmap(lambda some: functional_call(net, dict(net.named_parameters()), (some,)))(x.view(2, 30, 40))
        torch.compile(net, backend="aot_eager", fullgraph=True)(x)
        make_fx(net)(x)
        with torch.autograd.forward_ad.dual_level():
            net(torch.autograd.forward_ad.make_dual(x, x))
        F.linear(x, torch._neg_view(net.weight))
        F.linear(x, net.weight, net.bias[:1])  # for all neurons
        with pytest.raises(RuntimeError, match="dtype"):
            net(x.float())
        with pytest.raises(RuntimeError, match="dtype"):
            F.linear(x, net.weight, net.bias.float())
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            net(spikes(60, 41))
        monkeypatch.setattr(executors, "FORCED", "eager")
        net(x)
    net(x)
    assert not taken
    monkeypatch.setattr(executors, "FORCED", "")
    monkeypatch.setattr(skipping, "LARGE", 60 * 40 * 30 + 1)
    with snn_rules.skip_zeros():
        net(x)
        assert not taken
        monkeypatch.setattr(skipping, "LARGE", 60 * 40 * 30)
        net(x)
    assert taken


def test_without_a_compiler_it_says_so_once(taken, monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: (_ for _ in ()).throw(build.NoCompiler("neither g++ nor clang++ is installed")))
    zeros._kernels.cache_clear()
    zeros._failure.cache_clear(), build.say_once.cache_clear()
    net, x = nn.Linear(40, 30).double(), spikes(60, 40)
    try:
        with snn_rules.skip_zeros():
            with pytest.warns(UserWarning, match="go over the zeros of spike trains, too, several times slower: neither g"):
                net(x)
            assert torch.equal(net(x), F.linear(x, net.weight, net.bias)) and not taken  # a second warning would be an error here
    finally:
        zeros._failure.cache_clear()


def test_a_gradient_of_the_gradient_is_refused(taken):
    net, x = nn.Linear(40, 30).double(), spikes(60, 40).requires_grad_()
    with snn_rules.skip_zeros():
        (dx,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_checkpoints_are_told_of_it(taken):
    net, x = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)).double(), spikes(60, 40).requires_grad_()
    both = snn_rules.skip_zeros
    checkpoint(net, x, use_reentrant=False, context_fn=lambda: (both(), both())).sum().backward()
    found, x.grad = x.grad, None
    net(x).sum().backward()
    close(found, x.grad, 40)
    assert len(taken) == 2


def test_hooks_may_give_saved_tensors_other_strides(taken):
    torch.manual_seed(0)
    net, x, found = nn.Linear(40, 30).double(), spikes(60, 40), []
    turned = lambda each: each.t().contiguous().t() if each.dim() == 2 else each  # noqa: E731
    for hook in (lambda each: each, turned):
        net.weight.grad = None
        with snn_rules.skip_zeros(), torch.autograd.graph.saved_tensors_hooks(hook, lambda each: each):
            net(x).square().sum().backward()
        found.append(net.weight.grad)
    assert torch.equal(*found) and found[0].any() and len(taken) == 2


def test_weights_that_are_parts_of_others(taken):
    torch.manual_seed(0)
    whole = torch.randn(30, 90, dtype=torch.float64, requires_grad=True)
    x = spikes(60, 40)
    with snn_rules.skip_zeros():
        out = F.linear(x, whole[:, :40])
    assert taken
    out.sum().backward()
    found, whole.grad = whole.grad, None
    F.linear(x, whole[:, :40]).sum().backward()
    close(found, whole.grad, 60)


def test_it_ends_with_its_block():
    outer, seen = snn_rules.skip_zeros(), []
    with pytest.raises(KeyError), outer:
        with outer, snn_rules.skip_zeros():
            seen.append(zeros.wanted.get())
        seen.append(zeros.wanted.get())
        raise KeyError
    assert seen == [True, True] and not zeros.wanted.get()


def test_training_takes_it_where_inputs_are_large(taken, monkeypatch):
    net, x = network("30-10", "strsbp", (50,)), spikes(12, 8, 50, dtype=torch.float32)
    trained.output(net, x, "float32")
    functional.reset_net(net)
    assert not taken
    monkeypatch.setattr(trained, "MANY", x.numel())
    trained.output(net, x, "float32")
    assert taken
