"""Kernels compiled for the CPU against eager torch, from one text: spikes and states bit for bit, gradients to round-off."""

import ctypes
import platform
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import snn_rules
from snn_rules.kernels import Compiled, Eager, chunks, compiled, executor
from snn_rules.kernels.build import build
from snn_rules.kernels.compiled import Kernels
from snn_rules.kernels.prelude import NEAR, prelude
from snn_rules.kernels.program import program
from snn_rules.kernels.trace import trace
from snn_rules.ops import exp, heaviside, maximum, minimum, spike, where
from snn_rules.rule import LearningRule, MalformedRule, RuleError, Values, sweep

EAGER, COMPILED = Eager(), Compiled()
RULES = [
    ("surrogate", {}), ("surrogate", {"surrogate": "atan", "reset": "subtract", "detach_reset": True, "decay_input": False}),
    ("tssl", {}), ("tssl", {"reset": "subtract", "dadt": "shift", "warmup": "layer", "fire": ">"}),
    ("tssl", {"dadt": "continuous", "warmup": "off", "psc": "output", "intra": False, "leak": False, "decay_input": True}),
    ("strsbp", {"v_threshold": 1.0}), ("strsbp", {"v_threshold": 0.3, "tau_m": 4.0, "delay": 3, "t_ref": 0, "silent": "zero", "decay_input": True}),
    ("stdbp", {}), ("stdbp", {"revive": 1.0, "unit": 4}),
]  # fmt: skip
every_rule = pytest.mark.parametrize(
    ("name", "options"), RULES, ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values()))
)


def signal(rule, T, shape, dtype, seed=0):
    torch.manual_seed(seed)
    scale = 0.1 if rule.name == "stdbp" else 1.5
    return scale * torch.randn(T, *shape, dtype=dtype) + 0.1, torch.randn(T, *shape, dtype=dtype)


def derivative(rule, x, g, state):
    """The eager gradient: by the rule's sweeps, or by autograd through its steps."""
    if rule.sweeps:
        _, _, tape, _ = EAGER.forward(rule, x, state)
        return EAGER.backward(rule, tape, g)
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad((EAGER.forward(rule, leaf, state)[0] * g).sum(), leaf)[0], {}


def compare(rule, x, g, state=None, exact=True):
    """`exact`: spikes and states to the bit (a step that takes exp differs in the last)."""
    state = state or {}
    spikes, after, _, record = EAGER.forward(rule, x, state, record=True)
    got, got_after, tape, got_record = COMPILED.forward(rule, x, state, record=True)
    assert torch.equal(got, spikes)
    assert got_after.keys() == after.keys()
    for got_state, want_state in [(got_after[k], after[k]) for k in after] + [(got_record, record)]:
        assert torch.equal(got_state, want_state) if exact else torch.allclose(got_state, want_state, rtol=1e-5, atol=1e-6)
    dx, values = derivative(rule, x, g, state)
    got_dx, got_values = COMPILED.backward(rule, tape, g)
    tight = 1e-12 if x.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(got_dx, dx, rtol=tight, atol=tight * float(dx.abs().max() + 1e-30))
    for k in got_values.keys() & values.keys():
        torch.testing.assert_close(got_values[k], values[k], rtol=tight, atol=tight)
    return got, got_dx


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("T", "shape"), [(1, (3,)), (5, (5, 17)), (23, (2, 3, 50)), (70, (33,))], ids=str)
def test_equals_eager(name, options, T, shape, dtype):
    rule = snn_rules.get_rule(name, **options)
    spikes, dx = compare(rule, *signal(rule, T, shape, dtype))
    if T > 20:
        assert spikes.count_nonzero() and dx.count_nonzero()


@every_rule
def test_goes_on_from_a_state(name, options):
    rule = snn_rules.get_rule(name, **options)
    x, g = signal(rule, 30, (4, 9), torch.float32)
    _, state, _, _ = EAGER.forward(rule, x[:13], {})
    compare(rule, x[13:], g[13:], state)
    compare(rule, x[13:15], g[13:15], state)  # shorter than the delay


@every_rule
def test_many_neurons_in_parallel(name, options):
    rule = snn_rules.get_rule(name, **options)
    compare(rule, *signal(rule, 9, (40, 1003), torch.float32))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are of x86")
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -mno-avx2"], ids=["32 bytes", "16 bytes"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("surrogate", torch.float16), ("tssl", torch.float32), ("strsbp", torch.float32), ("strsbp", torch.float64), ("stdbp", torch.bfloat16)],
)
def test_narrower_vectors_give_the_same_bits(name, dtype, flags, monkeypatch):
    rule = snn_rules.get_rule(name, **({"v_threshold": 1.0} if name == "strsbp" else {}))
    x, g = (each.to(dtype) for each in signal(rule, 23, (5, 17), torch.float64))

    def run():
        executor = Compiled(Kernels(program(rule, 23), dtype, None))
        spikes, after, tape, _ = executor.forward(rule, x, {})
        dx, values = executor.backward(rule, tape, g)
        return {"spikes": spikes, "dx": dx, **after, **values}

    wanted = run()
    monkeypatch.setenv("SNN_RULES_CXXFLAGS", flags)
    found = run()
    assert all(torch.equal(found[key], value) for key, value in wanted.items()) and wanted["dx"].any()


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "not"])
@every_rule
def test_long_trains_are_walked_back_in_parts(name, options, marked, monkeypatch):
    monkeypatch.setattr(chunks, "_WHOLE", 1)  # so that 150 steps are long,
    monkeypatch.setattr(compiled, "MARKED", 128 if marked else 150)  # whether or not the forward kernel has marked their parts
    rule = snn_rules.get_rule(name, **options)
    made = Kernels(program(rule, 150), torch.float64, None)
    monkeypatch.setattr(Compiled, "load", lambda self, rule, x: made)
    for shape in ((19,), (3, 600)):
        compare(rule, *signal(rule, 150, shape, torch.float64))


def test_thousand_steps_and_denormals():
    rule = snn_rules.get_rule("strsbp", v_threshold=1.0, tau_m=8.0)
    x, g = signal(rule, 2000, (7,), torch.float32)
    x[100:] = 0.0  # what is left decays to denormals, which kernels take for zero
    spikes, _, _, _ = EAGER.forward(rule, x, {})
    got, after, tape, _ = COMPILED.forward(rule, x, {})
    assert torch.equal(got, spikes) and after["v"].abs().max() < 1e-30
    assert torch.isfinite(COMPILED.backward(rule, tape, g)[0]).all()


EXP = """
extern "C" void run(const R* x, R* all, R* near) {
  for (int k = 0; k < 8192; k += L) {
    const V v = Quick::get(x + k, 0);
    Quick::put(all + k, exp_(v), 0);
    Quick::put(near + k, exp_part(v, true) * exp_power(v), 0);
  }
}
"""


@pytest.mark.parametrize(("dtype", "least", "error"), [(torch.float32, -87.0, 2.2e-7), (torch.float64, -708.0, 1e-15)])
def test_exp_is_exact_to_the_last_bits(dtype, least, error):
    x = torch.cat([torch.linspace(least, -least, 4096), torch.linspace(-NEAR, NEAR, 4096)]).to(dtype)
    every, near = torch.empty_like(x), torch.empty_like(x)
    build(prelude(dtype) + EXP).run(*(ctypes.c_void_p(t.data_ptr()) for t in (x, every, near)))
    want = x.double().exp()
    assert (every / want - 1).abs().max() < error
    assert (near / want - 1)[4096:].abs().max() < error


@every_rule
def test_nan_and_inf_are_seen(name, options):
    rule = snn_rules.get_rule(name, **options)
    for bad in (float("nan"), float("inf")):
        x, _ = signal(rule, 12, (3, 20), torch.float32)
        assert COMPILED.forward(rule, x, {})[2].finite
        x[4, 1, 7] = bad
        assert not COMPILED.forward(rule, x, {})[2].finite


def test_what_is_kept_is_the_fewest():
    kept = {name: [len(stage.scratch) for stage in program(snn_rules.get_rule(name), 50).stages] for name in ("surrogate", "tssl", "strsbp", "stdbp")}
    assert kept == {"surrogate": [1], "tssl": [3], "strsbp": [2], "stdbp": [1]}
    layer = program(snn_rules.get_rule("tssl", warmup="layer"), 50)
    assert len(layer.stages) == 2  # its `between` looks at the whole layer: ordinary torch, between two kernels


# ---- anybody's rule ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adaptive(LearningRule):
    """A rule without sweeps that uses every operation: its adjoint is derived."""

    name: ClassVar[str] = "adaptive"
    state: ClassVar[dict[str, float]] = {"v": 0.0, "w": 0.25}

    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        u = 0.7 * m.v + x / (1.0 + m.w * m.w) - 0.1 * m.w
        u = where((u > 3.0) | (u < -3.0), 0.5 * u, maximum(minimum(u, 2.5), -2.5))
        z = u - 1.0 - 0.2 * m.w
        s = spike(z, exp(-z * z))
        return s, {"v": u * (1.0 - s), "w": 0.9 * m.w + 0.3 * s + 0.01 * exp(-u)}, {}


def test_the_derived_adjoint_is_autograd_s():
    rule = Adaptive()
    for T, dtype in ((1, torch.float64), (6, torch.float32), (40, torch.float64)):
        spikes, dx = compare(rule, *signal(rule, T, (3, 21), dtype), exact=False)
    assert spikes.count_nonzero() and dx.count_nonzero()


@dataclass(frozen=True)
class TwiceBack(LearningRule):
    """Two sweeps, both in reverse: the first sums what the second shares out."""

    name: ClassVar[str] = "twice_back"

    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        u = 0.8 * m.v + x
        s = heaviside(u - 1.0)
        return s, {"v": u * (1.0 - s)}, {"u": u}

    @sweep(reverse=True, total=0.0, fading=0.0)
    def collect(self, c: Any, m: Any) -> tuple[Values, Values]:
        return {}, {"total": c.total + m.g * m.s, "fading": 0.9 * c.fading + m.u}

    def between(self, sums: Any) -> Values:
        return {"share": sums.total / (1.0 + sums.fading * sums.fading)}

    @sweep(reverse=True, du=0.0)
    def spread(self, c: Any, m: Any) -> tuple[Values, Values]:
        du = m.share + 0.8 * c.du + m.g * m.u
        return {"dx": du}, {"du": du}


def test_two_sweeps_in_reverse():
    for T in (5, 30):
        compare(TwiceBack(), *signal(TwiceBack(), T, (4, 11), torch.float64))


def test_a_branch_on_data_is_refused_with_the_remedy():
    @dataclass(frozen=True)
    class Branch(Adaptive):
        def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
            return super().step(m, x if x > 0 else -x)

    for run in (lambda: trace(Branch()), lambda: executor(Branch(), torch.zeros(3, 2))):  # torch has no answer, either: nothing is called slow
        with pytest.raises(MalformedRule, match=r"^rule 'adaptive': its step: a step or sweep branches on data .* write where\(condition, a, b\)"):
            run()


def test_what_kernels_do_not_serve_runs_on_torch():
    @dataclass(frozen=True)
    class Onwards(Adaptive):
        @snn_rules.sweep(reverse=False, past=0.0)
        def spread(self, c: Any, m: Any) -> tuple[Values, Values]:
            return {"dx": m.g + 0.5 * c.past}, {"past": m.g + 0.5 * c.past}

    rule, (x, g) = Onwards(), signal(Adaptive(), 9, (2, 3), torch.float64)
    with pytest.warns(UserWarning, match=r"its last sweep walks forward, for which there is no kernel"):
        leaf = x.clone().requires_grad_()
        snn_rules.RuleNode(rule, step_mode="m")(leaf).backward(g)
    want, past = torch.empty_like(g), torch.zeros_like(g[0])
    for t in range(9):
        want[t] = past = g[t] + 0.5 * past
    torch.testing.assert_close(leaf.grad, want)


def test_a_condition_may_be_used_as_a_number():
    @dataclass(frozen=True)
    class Counting(Adaptive):
        @snn_rules.sweep(reverse=False, n=0.0)
        def count(self, c: Any, m: Any) -> tuple[Values, Values]:
            return {}, {"n": c.n + (m.s > 0.0) * 1.0}

        def between(self, sums: Any) -> Values:
            return {"scale": (sums.n > 2.0) * sums.n + 1.0}

        @snn_rules.sweep(reverse=True, later=0.0)
        def back(self, c: Any, m: Any) -> tuple[Values, Values]:
            return {"dx": m.g + 0.5 * c.later}, {"later": m.g}

    compare(Counting(), *signal(Adaptive(), 20, (3, 18), torch.float64), exact=False)


def test_foreign_functions_and_states_are_refused():
    @dataclass(frozen=True)
    class Foreign(Adaptive):
        def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
            return heaviside(x), {"v": m.v + torch.ones(1), "w": m.w}, {}

    with pytest.raises(RuleError, match=r"may use numbers, its arguments and the functions of snn_rules.ops"):
        trace(Foreign())

    @dataclass(frozen=True)
    class Forgetful(Adaptive):
        def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
            return heaviside(x), {"v": m.v}, {}

    with pytest.raises(RuleError, match=r"returns \['v'\], but its state is \['v', 'w'\]"):
        trace(Forgetful())
