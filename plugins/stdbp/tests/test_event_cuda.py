"""The event layer's CUDA kernels without a GPU: compiled for every architecture, interpreted through the launch code, broken on purpose."""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from snn_rules_stdbp import first_spikes as layer
from snn_rules_stdbp.event_cuda import kernels
from snn_rules_stdbp.rule import STDBP
from torch import nn

import snn_rules
from snn_rules.kernels import build, cuda, launch
from snn_rules.ops import where
from snn_rules.rule import RuleError
from snn_rules.testing import fake_cupy, nvrtc, proof, ptx
from snn_rules.testing.memory import MemoryFault

try:
    nvrtc.architectures(), build.compiler()
except (nvrtc.NoNvrtc, build.NoCompiler, OSError) as cause:
    pytest.skip(f"the proof needs NVRTC and a C++ compiler: {cause}", allow_module_level=True)

RULE = snn_rules.get_rule("stdbp", mode="event", t_max=3.0)
CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])


class Leaky(STDBP):
    """A rule of a third party: an arrival counts half, and beyond slope 2 no more."""

    def event(self, m, w, dt):
        after = super().event(m, 0.5 * w, dt)
        return {**after, "slope": where(after["slope"] > 2.0, 2.0 + 0.0 * after["slope"], after["slope"])}


def case(batch, inputs, outputs, dtype, active=0.7):
    torch.manual_seed(batch)
    times = torch.where(torch.rand(batch, inputs) < active, 2 * torch.rand(batch, inputs), 3.0).to(dtype)
    return times, torch.randn(outputs, inputs, dtype=dtype) / max(inputs, 1) ** 0.5 + 3.0 / max(inputs, 1)


def run(by, rule, times, weight):
    g = torch.linspace(-1.0, 2.0, len(times) * len(weight), dtype=times.dtype).view(len(times), len(weight))
    out, slope = by.forward(rule, times, weight)
    return out, slope, *by.backward(rule, times, weight, out, slope, g)


def agree(times, weight, rule=RULE, arch=80, exact=True):
    """By the PTX and by the C++ kernels: the same bits, where the order of the sums is the same."""
    with fake_cupy.installed(arch) as gpu:
        found = run(layer.Launched(rule, times.dtype, CPU), rule, times, weight)
    wanted = run(layer.Compiled(rule, times.dtype), rule, times, weight)
    for mine, want in zip(found if exact else found[:3], wanted, strict=exact):
        assert mine.shape == want.shape and mine.dtype == want.dtype
        assert torch.equal(mine, want)
    return found, wanted, gpu


# ---- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [RULE, snn_rules.get_rule("stdbp", mode="event", revive=1.0, paper=True)], ids=["default", "paper"])
def test_every_kernel_compiles_for_every_architecture_without_spills(rule):
    rows = proof.compiled("stdbp", kernels(rule)) + proof.compiled("stdbp", kernels(rule), [90], torch.float64)
    assert {row.arch for row in rows} == set(nvrtc.ARCHITECTURES)
    assert {row.kernel for row in rows} == {"event_forward", "event_pull", "event_weights", "event_times"}
    for row in rows:
        assert row.compiled and not row.spills and 0 < row.registers <= 128, row


def test_the_rule_s_own_kernels_are_among_its_resources():
    rows = proof.resources(snn_rules.get_rule("stdbp"), [80])
    assert {"forward", "event_forward", "recurrent step"} < {row.kernel for row in rows}


def test_source_has_no_include_and_wide_indices():
    source = cuda.source(kernels(RULE), torch.float32)
    assert "#include" not in source and " int " not in source.replace("typedef int I", "")


# ---- interpreted -----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("batch", "inputs", "outputs"), [(5, 9, 7), (1, 1, 1), (3, 1, 20), (2, 40, 65), (7, 30, 33), (2, 33, 16), (0, 4, 3), (3, 0, 2), (3, 4, 0)]
)
def test_ptx_equals_the_cpu_build(batch, inputs, outputs, dtype):
    found, _, gpu = agree(*case(batch, inputs, outputs, dtype))
    assert len(gpu.launches) <= 4
    if batch * inputs * outputs > 100:
        assert (found[0] < 3.0).sum() > 0 and found[2].any() and found[3].any()


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_other_architectures(arch):
    agree(*case(6, 20, 18, torch.float32), arch=arch)


@pytest.mark.parametrize("options", [{"revive": 0.7}, {"v_threshold": 0.3}, {"paper": True}, {"revive": 1.0, "v_threshold": 2.5, "t_max": 1.5}])
def test_every_option_reaches_the_kernels(options):
    agree(*case(6, 30, 20, torch.float32), snn_rules.get_rule("stdbp", mode="event", **{"t_max": 3.0, **options}))


def test_a_rule_of_a_third_party():
    rule = Leaky(mode="event", t_max=3.0)
    times, weight = case(5, 20, 19, torch.float64)
    assert not torch.equal(agree(times, weight, rule)[0][0], agree(times, weight)[0][0])


@BOTH
def test_ties_order_silence_and_signs(dtype):
    times, weight = case(6, 25, 17, dtype)
    agree((times * 2).round() / 2, weight)
    agree(torch.where(times < 1.0, -0.0, 0.0).to(dtype), weight)
    agree(times - 1.0, weight)
    agree(times, -weight)
    agree(torch.full_like(times, float("inf")), weight)
    agree(times.t().contiguous().t(), weight.t().contiguous().t())


@BOTH
def test_few_weights_are_summed_in_parts(dtype, monkeypatch):
    """As for a convolution, whose every patch is a sample: the parts are added in another order, so equal to round-off."""
    times, weight = case(203, 5, 3, dtype)
    monkeypatch.setattr(layer, "THREADS", 60)
    monkeypatch.setattr(layer, "SAMPLES", 8)
    found, wanted, gpu = agree(times, weight, exact=False)
    assert gpu.launches[2].arguments[-1] == 4 * 15  # parts x weights
    torch.testing.assert_close(found[3], wanted[3], rtol=0, atol=(1e-13 if dtype == torch.float64 else 2e-5) * float(wanted[3].abs().max()))
    again = agree(times, weight, exact=False)[0]
    assert torch.equal(again[3], found[3])


def test_layers_learn_through_the_launch_code(monkeypatch):
    """A convolution and a linear layer with a bias, by autograd, as on a GPU."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), snn_rules.RuleNode("stdbp"), nn.Flatten(), nn.Linear(48, 5))
    net.append(snn_rules.RuleNode("stdbp"))
    rule = snn_rules.get_rule("stdbp", mode="event", revive=1.0)
    rule.initialize(snn_rules.convert(net, rule))
    times, results = rule.encode(torch.rand(4, 1, 8, 8), 1)[0], []

    def train():
        net.zero_grad()
        out = net(times)
        rule.loss(out[None], torch.arange(4)).backward()
        return [out.detach(), *(p.grad.clone() for p in net.parameters())]

    results.append(train())
    with fake_cupy.installed() as gpu:
        by = layer.Launched(rule, torch.float32, CPU)
        monkeypatch.setattr(layer, "executor", lambda *_: by)
        results.append(train())
    assert len(gpu.modules) == 1
    assert [one.kernel for one in gpu.launches] == ["event_forward"] * 2 + ["event_pull", "event_weights", "event_times"] * 2
    for one in gpu.launches:
        assert isinstance(one.stream, fake_cupy.Stream) and {type(given) for given in one.arguments} == {np.uint64, np.int64}
    for mine, want in zip(*results, strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-5 * float(want.abs().max()))


# ---- the choice, and what is refused ---------------------------------------------------------------------------------


def test_a_cuda_tensor_finds_its_executor(monkeypatch):
    times = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    for forget in (layer._loaded, build.say_once):
        forget.cache_clear()
    monkeypatch.setattr("snn_rules.kernels.FORCED", "")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.warns(UserWarning, match=r"the event layers of 'stdbp' run on torch tensors, many times slower: CuPy cannot be imported .*; pip"):
        assert isinstance(layer.executor(RULE, times, times), layer.Eager)
    with warnings.catch_warnings(action="error"):  # said once
        assert "pip install" in layer.executor(RULE, times, times).why
    layer._loaded.cache_clear()
    with fake_cupy.installed():
        assert isinstance(layer.executor(RULE, times, times), layer.Launched)
    layer._loaded.cache_clear()


def test_a_tensor_that_a_kernel_would_misread_is_refused():
    times, weight = case(3, 5, 4, torch.float32)
    with fake_cupy.installed(), pytest.raises(RuleError, match=r"kernel 'event_forward': 'by_input' is \[5, 4\] of torch\.float64 on cpu"):
        layer.Launched(RULE, torch.float32, CPU).forward(RULE, times, weight.double())
    tensors = {"ordered": times, "index": times.int(), "by_input": weight, "time": times, "s_slope": times}
    with pytest.raises(RuleError, match=r"'index' is \[3, 5\] of torch\.int32 on cpu, strides \[5, 1\]; it should be contiguous, of torch\.int64"):
        launch.pack(kernels(RULE)[0], tensors, {"rows": 3, "ins": 5, "outs": 4})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("p_index[k] * outs + j", "p_index[k] * (outs + 1) + j", r"reads byte .* of 'by_input', which has .*: out of bounds"),
        ("if (i >= rows * outs) return;", "", r"out of bounds"),
        ("p_d_weight[i]", "p_d_weight[i / 2]", r"race: thread \d+ writes what thread \d+ writes, word \d+ of 'd_weight'"),
        ("const N* __restrict__ p_index", "const int p_index", r"parameter '\w+' is .u32, 4 bytes; it was given uint64"),
    ],
    ids=["stride", "no bound", "race", "int"],
)
def test_broken_kernels_are_caught(monkeypatch, old, new, says):
    whole = cuda.source

    def broken(made, dtype):
        assert old in whole(made, dtype)
        return whole(made, dtype).replace(old, new).replace("p_index[k]" if new == "const int p_index" else "\0", "p_index")

    monkeypatch.setattr(cuda, "source", broken)
    with pytest.raises((MemoryFault, ptx.PtxError), match=says):
        agree(*case(6, 30, 41, torch.float32, active=1.0))
