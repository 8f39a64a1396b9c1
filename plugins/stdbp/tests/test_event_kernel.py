"""The compiled event layer: the very spikes of the walk on tensors, its gradients, and what happens without a compiler."""

import copy
import platform
import warnings

import pytest
import torch
from snn_rules_stdbp import first_spikes as layer
from snn_rules_stdbp.event_cpp import source
from snn_rules_stdbp.rule import STDBP
from spikingjelly.activation_based import neuron
from torch import nn

import snn_rules
from snn_rules.kernels import build
from snn_rules.ops import where

RULE = snn_rules.get_rule("stdbp", mode="event", t_max=3.0)
LOOSE = {torch.float64: 1e-12, torch.float32: 2e-5}
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])

try:
    build.compiler()
except build.NoCompiler as reason:
    pytest.skip(str(reason), allow_module_level=True)


@pytest.fixture(autouse=True)
def _free_to_compile(monkeypatch):
    monkeypatch.setattr("snn_rules.kernels.FORCED", "")


def both(times, weight, rule=RULE):
    """Forward and backward, compiled and on tensors: the results of each."""
    found = []
    g = torch.linspace(-1.0, 2.0, len(times) * len(weight), dtype=times.dtype).view(len(times), len(weight))
    for runner in (layer.Compiled(rule, times.dtype), layer.Eager()):
        out, slope = runner.forward(rule, times, weight)
        found.append((out, slope, *runner.backward(rule, times, weight, out, slope, g)))
    return found


def agree(times, weight, rule=RULE):
    compiled, eager = both(times, weight, rule)
    for mine, want in zip(compiled[:2], eager[:2], strict=True):
        assert torch.equal(mine, want)
    for mine, want in zip(compiled[2:], eager[2:], strict=True):
        assert mine.shape == want.shape and mine.dtype == want.dtype
        scale = float(want.abs().max()) if want.numel() else 1.0
        torch.testing.assert_close(mine, want, rtol=0.0, atol=LOOSE[times.dtype] * max(scale, 1.0))
    return compiled


def case(seed, batch, inputs, outputs, dtype, active=0.7):
    torch.manual_seed(seed)
    times = torch.where(torch.rand(batch, inputs) < active, 2 * torch.rand(batch, inputs), 3.0).to(dtype)
    weight = torch.randn(outputs, inputs, dtype=dtype) / max(inputs, 1) ** 0.5 + 3.0 / max(inputs, 1)
    return times, weight


@BOTH
@pytest.mark.parametrize(
    ("batch", "inputs", "outputs"),
    [(5, 9, 7), (1, 1, 1), (3, 1, 20), (4, 17, 64), (2, 40, 65), (7, 100, 130), (2, 33, 16), (0, 4, 3), (3, 0, 2), (3, 4, 0)],
)
def test_equals_the_walk_on_tensors(batch, inputs, outputs, dtype):
    agree(*case(batch, batch, inputs, outputs, dtype))


@BOTH
@pytest.mark.parametrize("options", [{"revive": 0.7}, {"v_threshold": 0.3}, {"paper": True}, {"revive": 1.0, "v_threshold": 2.5, "t_max": 1.5}])
def test_every_option_reaches_the_kernels(options, dtype):
    agree(*case(1, 6, 30, 40, dtype), snn_rules.get_rule("stdbp", mode="event", **{"t_max": 3.0, **options}))


@BOTH
@pytest.mark.parametrize("inputs", [50, 300])  # few are sorted by insertion, many by radix
def test_ties_order_and_signs(inputs, dtype):
    times, weight = case(2, 6, inputs, 33, dtype)
    agree((times * 2).round() / 2, weight)
    agree(torch.zeros_like(times), weight)
    agree(torch.where(times < 1.0, -0.0, 0.0).to(dtype), weight)
    agree(times - 1.0, weight)  # a spike before the window
    agree(times.sort(dim=1, descending=True).values, weight)
    agree(times, -weight)
    agree(times, weight.sub(weight.mean()))


@BOTH
def test_all_silent(dtype):
    times, weight = case(3, 4, 20, 18, dtype)
    out, slope, d_times, d_weight = agree(torch.full_like(times, 3.0), weight)
    assert (out == 3.0).all() and not slope.any() and not d_times.any() and not d_weight.any()
    agree(torch.full_like(times, float("inf")), weight)
    out, *_ = agree(times, torch.zeros_like(weight))
    assert (out == 3.0).all()


@BOTH
def test_memory_that_is_not_contiguous(dtype):
    times, weight = case(4, 12, 30, 20, dtype)
    want = both(times, weight)[0]
    for t, w in [(times.t().contiguous().t(), weight), (times, weight.t().contiguous().t()), (times.repeat(1, 2)[:, :30], weight.repeat(2, 1)[::2])]:
        for mine, same in zip(agree(t, w), both(t.contiguous(), w.contiguous())[0], strict=True):
            assert torch.equal(mine, same)
    times, weight = times.requires_grad_(), weight.requires_grad_()
    layer._FirstSpikes.apply(times, weight, RULE, lambda *_: None).sum().backward()  # a gradient of stride 0
    assert times.grad.shape == want[2].shape and weight.grad.is_contiguous()


@BOTH
def test_threads_change_no_bit(dtype, monkeypatch):
    times, weight = case(5, 64, 70, 90, dtype)
    monkeypatch.setattr(layer, "PARALLEL", 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(both(times, weight)[0])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradcheck_of_the_kernels():
    times, weight = case(6, 3, 12, 18, torch.float64)
    assert isinstance(layer.executor(RULE, times, weight), layer.Compiled)
    assert torch.autograd.gradcheck(
        lambda t, w: layer._FirstSpikes.apply(t, w, RULE, lambda *_: None), (times.requires_grad_(), weight.requires_grad_())
    )


def test_the_rule_is_the_only_place_of_the_mathematics():
    class Leaky(STDBP):
        """A rule of a third party: an arrival counts half, and beyond slope 2 no more."""

        def event(self, m, w, dt):
            after = super().event(m, 0.5 * w, dt)
            return {**after, "slope": where(after["slope"] > 2.0, 2.0 + 0.0 * after["slope"], after["slope"])}

    times, weight = case(7, 5, 20, 19, torch.float64)
    rule = Leaky(mode="event", t_max=3.0)
    assert not torch.equal(agree(times, weight, rule)[0], agree(times, weight)[0])
    assert source(rule, True) != source(RULE, True)


def test_other_dtypes_and_mixed_ones_run_on_tensors_and_say_so_once():
    build.say_once.cache_clear()
    times, weight = case(8, 3, 5, 4, torch.float32)
    with pytest.warns(UserWarning, match=r"run on torch tensors, many times slower: there are no kernels for times of") as said:
        for _ in range(2):
            assert isinstance(layer.executor(RULE, times.half(), weight.half()), layer.Eager)
            assert isinstance(layer.executor(RULE, times, weight.double()), layer.Eager)
    assert len(said) == 2  # one a reason
    assert layer._FirstSpikes.apply(times, weight.double(), RULE, lambda *_: None).shape == (3, 4)
    assert RULE.own_layers(times) == ("compiled for the CPU", "a C++ compiler is installed")


def test_without_a_compiler_it_says_so_once(monkeypatch):
    def fails(text):
        raise build.NoCompiler("neither g++ nor clang++ is installed")

    layer._loaded.cache_clear(), build.say_once.cache_clear()
    monkeypatch.setattr(layer, "build", fails)
    try:
        times, weight = case(9, 3, 5, 4, torch.float64)
        with pytest.warns(UserWarning, match=r"the event layers of 'stdbp' run on torch tensors, many times slower: neither g\+\+"):
            out = layer._FirstSpikes.apply(times, weight, RULE, lambda *_: None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = layer._FirstSpikes.apply(times.float(), weight.float(), RULE, lambda *_: None)
        torch.testing.assert_close(again, out.float())
    finally:
        layer._loaded.cache_clear(), build.say_once.cache_clear()


@pytest.mark.filterwarnings("ignore:.tau. has no meaning")  # said once a process, by whichever test comes first
def test_a_network_learns_the_same_on_either(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), neuron.IFNode(), nn.Flatten(), nn.Linear(27, 5), neuron.IFNode())
    rule = snn_rules.get_rule("stdbp", mode="event", revive=1.0)
    rule.initialize(snn_rules.convert(net, "stdbp", mode="event", revive=1.0))
    x, target, found = torch.rand(4, 1, 8, 8), torch.arange(4), []
    for forced in ("", "eager"):
        monkeypatch.setattr("snn_rules.kernels.FORCED", forced)
        twin = copy.deepcopy(net)
        rule.loss(twin(rule.encode(x, 1)[0])[None], target).backward()
        found.append([p.grad for p in twin.parameters()])
    for mine, want in zip(*found, strict=True):
        torch.testing.assert_close(mine, want, rtol=2e-5, atol=2e-5 * float(want.abs().max()))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are of x86")
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -mno-avx2"], ids=["32 bytes", "16 bytes"])
@BOTH
def test_narrower_vectors_give_the_same_bits(dtype, flags, monkeypatch):
    torch.manual_seed(0)
    times, weight = 2 * torch.rand(4, 30, dtype=dtype), torch.rand(37, 30, dtype=dtype)
    wanted = both(times, weight)[0]
    monkeypatch.setenv("SNN_RULES_CXXFLAGS", flags)
    assert all(torch.equal(a, b) and a.any() for a, b in zip(both(times, weight)[0], wanted, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo itself looks there
def test_torch_compile_goes_around_the_kernels():
    net = nn.Sequential(nn.Linear(30, 20), snn_rules.RuleNode("stdbp"))
    RULE.initialize(snn_rules.convert(net, RULE))
    times, found = 2 * torch.rand(4, 30), []
    for run in (net, torch.compile(net, backend="eager")):
        net.zero_grad()
        out = run(times)
        out.sum().backward()
        found.append((out, net[0].weight.grad.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_one_graph_serves_all_batches():
    net = nn.Sequential(nn.Linear(30, 20), snn_rules.RuleNode("stdbp"))
    RULE.initialize(snn_rules.convert(net, RULE))
    graphs: list[object] = []
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    for batch in (2, 3, 5):
        times = 2 * torch.rand(batch, 30)
        assert torch.equal(compiled(times), net(times))
    assert len(graphs) == 1
