"""Half precision, converted inside the kernels: the bits of x.float(), the float32 kernels, and .to(dtype) around them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import snn_rules
from snn_rules.kernels import Compiled, compiled, executor, ops
from snn_rules.ops import heaviside
from snn_rules.rule import LearningRule, Values, sweep
from snn_rules.testing import nvrtc, proof

from .test_kernels import TwiceBack, signal

HALVES = [torch.float16, torch.bfloat16]
both = pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
RULES = {"surrogate": {}, "tssl": {}, "strsbp": {"v_threshold": 1.0, "delay": 3}, "stdbp": {}}
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient of exactly zero")  # one step, a delay of three
every_rule = pytest.mark.parametrize("rule", RULES)


@dataclass(frozen=True)
class Product(LearningRule):
    """A gradient of x g, rounded once."""

    name: ClassVar[str] = "product"
    state: ClassVar[dict[str, float]] = {"v": 0.0}

    def step(self, m, a):
        v = m.v + a
        return heaviside(v - 1), {"v": v}, {"a": a}

    @sweep(reverse=True)
    def back(self, c, m):
        return {"dx": m.g * m.a}, {}


def run(rule, x, g):
    """A train after a train: spikes, gradients, states."""
    node = snn_rules.RuleNode(rule, **RULES[rule], step_mode="m")
    with torch.no_grad():
        node(x)
    x = x.clone().requires_grad_()
    spikes = node(x)
    (dx,) = torch.autograd.grad(spikes, x, g)
    return [spikes, dx], [getattr(node, name) for name in node._memories]


@both
@every_rule
@pytest.mark.parametrize("shape", [(1, 2, 3), (5, 4, 40), (23, 3, 50), (9, 0)])
def test_equals_conversion_outside(rule, dtype, shape):
    torch.manual_seed(0)
    scale = {"strsbp": 3.0, "stdbp": 0.2}.get(rule, 1.5)
    x, g = (scale * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    found, states = run(rule, x, g)
    wanted, wanted_states = run(rule, x.float(), g.float())
    assert all(a.dtype == dtype and torch.equal(a, b.to(dtype)) for a, b in zip(found, wanted, strict=True))
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(states, wanted_states, strict=True))
    assert shape[0] < 23 or (0 < found[0].count_nonzero() < x.numel() and found[1].any())


def gradients(g, x):
    rule, train = Product(), x.expand_as(g)[None]
    tape = Compiled().forward(rule, train, {})[2]
    return Compiled().backward(rule, tape, g[None])[0][0]


@pytest.mark.parametrize("flags", ["", "-mno-avx512f", "-O0 -mno-avx512f -mno-avx"])
@both
def test_every_number_there_and_back(dtype, flags, monkeypatch):
    monkeypatch.setenv("SNN_RULES_CXXFLAGS", flags)  # of other machines: there the conversion is written out
    monkeypatch.setattr(compiled, "_made", compiled.Kernels)
    monkeypatch.setattr(compiled.executor, "_found", {})
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    got, want = gradients(every, torch.ones((), dtype=dtype)), every.clone()
    if dtype == torch.bfloat16:
        want[want.abs() < 2**-126] *= 0.0  # denormal numbers are zero in kernels
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got.signbit() | got.isnan(), want.signbit() | got.isnan())
    torch.manual_seed(0)
    a, b = (every[torch.randint(2**16, (300_000,))] for _ in range(2))
    product = a.float() * b.float()
    normal = ~sum((value.abs() > 0) & (value.abs() < 2**-126) for value in (product, a.float(), b.float())).bool()
    got = gradients(a, b)
    torch.testing.assert_close(got[normal], product[normal].to(dtype), rtol=0, atol=0, equal_nan=True)
    assert got.isinf().any() and got.isnan().any()


@both
@every_rule
def test_torch_compile(rule, dtype):
    configured = snn_rules.get_rule(rule, **RULES[rule])
    x = (3 * torch.rand(7, 2, 6)).to(dtype).requires_grad_()
    shapes = [(configured.delay, 2, 6) if name == "late" else (2, 6) for name in ops._states(configured)]
    state = [torch.zeros(shape) for shape in shapes]
    done = torch.library.opcheck(torch.ops.snn_rules.layer.default, (x, state, ops.key(configured)), test_utils=("test_schema", "test_faketensor"))
    assert set(done.values()) == {"SUCCESS"}
    node = snn_rules.RuleNode(configured, step_mode="m")
    want = torch.autograd.grad(node(x), x, torch.ones_like(x))
    node.reset()
    spikes = torch.compile(node, fullgraph=True, backend="aot_eager")(x)
    assert spikes.dtype == dtype and torch.equal(torch.autograd.grad(spikes, x, torch.ones_like(x))[0], want[0])


@both
def test_without_kernels_it_is_converted_outside(dtype, monkeypatch):
    x = (3 * torch.rand(7, 2, 6)).to(dtype)
    want = run("tssl", x, torch.ones_like(x))[0]
    monkeypatch.setattr("snn_rules.kernels.FORCED", "eager")
    assert not executor(snn_rules.get_rule("tssl"), x).converts
    got = run("tssl", x, torch.ones_like(x))[0]
    assert torch.equal(got[0], want[0]) and got[1].dtype == dtype
    torch.testing.assert_close(got[1], want[1])


# ---- CUDA ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proven():
    try:
        return nvrtc.architectures()
    except (nvrtc.NoNvrtc, OSError) as cause:
        pytest.skip(f"the proof needs NVRTC: {cause}")


@both
@every_rule
def test_ptx_equals_the_cpu_build(rule, dtype, proven):
    how = {"strsbp": {"scale": 8.0}, "stdbp": {"scale": 0.1, "warm": False}}.get(rule, {})
    results = proof.agreement(snn_rules.get_rule(rule), shape=(12, 261), dtype=dtype, arch=75, **how)
    assert results["spikes"][0].dtype == results["dx"][0].dtype == dtype and results["spikes"][0].any() and results["dx"][0].any()
    for name, (by_ptx, by_cpu) in results.items():
        assert torch.equal(by_ptx, by_cpu), name


@both
def test_ptx_of_numbers_beyond_and_below(dtype, proven):
    for scale in (2.0**-20, 2.0**15, float("nan")):
        for by_ptx, by_cpu in proof.agreement(snn_rules.get_rule("surrogate"), shape=(12, 260), dtype=dtype, scale=scale).values():
            torch.testing.assert_close(by_ptx, by_cpu, rtol=0, atol=0, equal_nan=True)


@both
def test_every_architecture_without_spills(dtype, proven):
    rows = [row for rule in RULES for row in proof.resources(snn_rules.get_rule(rule), proven if rule == "tssl" else proven[:1], dtype=dtype)]
    assert all(row.compiled and not row.spills for row in rows if row.kernel in ("forward", "backward0"))


def test_autocast_leaves_a_product_of_between_alone():
    @dataclass(frozen=True)
    class Mixed(TwiceBack):
        def between(self, sums: Any) -> Values:
            return {"share": torch.mm(sums.total, sums.fading.T @ sums.fading)}

    x, g = signal(Mixed(), 9, (4, 11), torch.float32)
    found = []
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            leaf = x.clone().requires_grad_()
            snn_rules.RuleNode(Mixed(), step_mode="m")(leaf).backward(g)
        found.append(leaf.grad)
    assert found[0].any() and torch.equal(*found)
