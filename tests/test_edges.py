"""What a neuron is rarely given, and rules as nobody has written them yet: kernels and torch agree, or say no."""

import mmap
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from spikingjelly.activation_based import functional

import snn_rules
from snn_rules import LearningRule, RuleError, RuleNode, coding, kernels, sweep
from snn_rules.kernels import buffers, build, compiled, ops
from snn_rules.network import network
from snn_rules.ops import heaviside, maximum, minimum, where
from snn_rules.registry import Registry
from snn_rules.surrogate import Surrogate

T = 6


@dataclass(frozen=True)
class Leaky(LearningRule):
    """A neuron of half a leak; what it learns is left to those below."""

    name = "leaky"
    state: ClassVar = {"v": 0.0, "w": 0.0}

    def step(self, m: Any, x: Any) -> Any:
        v = 0.5 * m.v + x
        s = heaviside(v - 1.0)
        return s, {"v": where(s > 0.0, 0.0, v), "w": 0.9 * m.w + x}, {}


def passes(rule: LearningRule, x: torch.Tensor, forced: str, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    monkeypatch.setattr(kernels, "FORCED", forced)
    leaf, node = x.clone().requires_grad_(), RuleNode(rule, step_mode="m")
    out = node(leaf)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
    return [out.detach(), leaf.grad]  # type: ignore[list-item]


def both(rule: LearningRule, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[list[torch.Tensor]]:
    return [passes(rule, x, forced, monkeypatch) for forced in ("eager", "")]


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_dtype_without_arithmetic_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(RuleError, match=rf"the input is dtype {dtype}; pass a floating-point tensor, e.g. x.float"):
        RuleNode("tssl", step_mode="m")(torch.zeros(T, 3, 5).to(dtype))


def test_a_negated_view_is_read_with_its_sign() -> None:
    x = -3 * torch.rand(T, 3, 5)
    negated = torch.complex(torch.zeros_like(x), -x).conj().imag  # the values of x, kept with the other sign
    assert negated.is_neg() and torch.equal(negated, x)
    node = RuleNode("tssl", step_mode="m")
    assert not node(negated).any()
    node.reset()
    assert node(-negated).any()


def test_a_tensor_without_memory_runs_on_torch() -> None:
    mesh = pytest.importorskip("torch.distributed.tensor")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        x = torch.rand(T, 3, 5)
        spread = mesh.distribute_tensor(x, torch.distributed.init_device_mesh("cpu", (1,)), [mesh.Replicate()])
        with pytest.warns(UserWarning, match=r"a DTensor has no memory of its own"):
            out = RuleNode("tssl", step_mode="m")(spread)
        assert torch.equal(out.full_tensor(), RuleNode("tssl", step_mode="m")(x))
    finally:
        torch.distributed.destroy_process_group()


def test_losses_of_half_precision_are_float32() -> None:
    out, target = (torch.rand(400, 50, 10) < 0.9).half(), torch.zeros(50, dtype=torch.long)
    for name in ("tssl", "strsbp", "surrogate", "stdbp"):
        with torch.autocast("cpu", torch.float16):
            loss = snn_rules.get_rule(name).loss(out, target)
        assert loss.dtype == torch.float32 and torch.equal(loss, snn_rules.get_rule(name).loss(out.float(), target))
    assert coding.psc(out, 5.0).dtype == coding.counts(out).dtype == torch.float32


def test_a_still_input_has_all_its_steps_without_a_rule() -> None:
    rule = snn_rules.get_rule("tssl")
    for text in ("30-10", "30-30-10"):
        net = network(text, rule.replace(tau_s=1.0), (64,))
        still = rule.encode(torch.rand(3, 64), T)
        with snn_rules.plain(net):
            out = net(still)
            functional.reset_net(net)
            assert torch.equal(out, net(still.contiguous())) and out.shape == (T, 3, 10)
    assert network("P2", rule, (1, 8, 8))(rule.encode(torch.rand(3, 1, 8, 8), T)).shape == (T, 3, 1, 4, 4)


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        lambda sums: sums.o.mean(0, keepdim=True),  # broadcasts
        lambda sums: sums.o.double(),
        lambda sums: sums.o.mean() > 0,
        lambda sums: float(torch.tensor(0.5)),
    ],
)
def test_what_between_makes_may_have_any_shape_and_dtype(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Rule(Leaky):
        @sweep(reverse=False, o=0.0)
        def count(self, c: Any, m: Any) -> Any:
            return {}, {"o": c.o + m.s + m.x}

        def between(self, sums: Any) -> Any:
            torch.is_tensor(sums.o + torch.zeros(1))  # ordinary torch: it cannot be traced
            return {"k": made(sums)}

        @sweep(reverse=True, e=0.0)
        def back(self, c: Any, m: Any) -> Any:
            e = m.g + 0.5 * c.e
            return {"dx": e * m.k}, {"e": e}

    (_, eager), (_, compiled_) = both(Rule(), torch.rand(T, 3, 5), monkeypatch)
    assert eager.any() and torch.equal(eager, compiled_)


def test_a_forward_sweep_may_read_what_an_earlier_stage_left(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Rule(Leaky):
        @sweep(reverse=True, a=0.0)
        def first(self, c: Any, m: Any) -> Any:
            return {}, {"a": c.a + m.x}

        @sweep(reverse=False, b=0.0)
        def second(self, c: Any, m: Any) -> Any:
            return {}, {"b": c.b + m.a * m.x}

        @sweep(reverse=True, e=0.0)
        def third(self, c: Any, m: Any) -> Any:
            e = m.g + 0.5 * c.e
            return {"dx": e * m.b}, {"e": e}

    monkeypatch.setattr(kernels, "FORCED", "")
    assert kernels.executor(Rule(), torch.rand(T, 3, 5)).name.startswith("compiled")
    (_, eager), (_, compiled_) = both(Rule(), torch.rand(T, 3, 5), monkeypatch)
    assert eager.any() and torch.allclose(eager, compiled_)


@pytest.mark.parametrize("pick", [minimum, maximum])
def test_of_equals_the_first_has_the_gradient(pick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Rule(Leaky):
        def step(self, m: Any, x: Any) -> Any:
            v = pick(0.5 * m.v, m.w) + x  # both are 0 at first
            s = snn_rules.ops.spike(v - 1.0, 1.0 / (1.0 + v * v))
            return s, {"v": v * (1.0 - s), "w": 0.9 * m.w + x}, {}

    (_, eager), (_, compiled_) = both(Rule(), torch.rand(T, 3, 5, dtype=torch.float64), monkeypatch)
    assert eager.any() and torch.allclose(eager, compiled_, rtol=1e-12)
    nan = torch.tensor([float("nan")])
    assert pick(torch.ones(1), nan) == 1.0 and torch.isnan(pick(nan, torch.ones(1)))  # as kernels have it


def test_diagnostics_are_ordinary_arithmetic() -> None:
    @dataclass(frozen=True)
    class Rule(Leaky):
        diagnostics: ClassVar = {"cold": lambda v: 1.0 - abs(-v.hot.mean()) / (v.T + 2 * v.T) ** 1}

        @sweep(reverse=True, hot=0.0)
        def back(self, c: Any, m: Any) -> Any:
            return {"dx": m.g}, {"hot": c.hot + m.s}

    node = RuleNode(Rule(), step_mode="m")
    node(torch.rand(T, 3, 5, requires_grad=True)).sum().backward()
    assert 0.0 < node.cold <= 1.0


@pytest.mark.parametrize("taken", ["y", "late", "s", "x", "T", "scale"])
def test_a_state_with_the_name_of_a_memory_is_refused(taken: str) -> None:
    rule = dataclass(frozen=True)(type("Rule", (Leaky,), {"state": {"v": 0.0, taken: 0.0}}))
    with pytest.raises(RuleError, match=f"leaky: its state '{taken}' is the name of a parameter, of a memory of every neuron's, or of what"):
        rule()


def test_a_couple_without_a_sweep_is_refused() -> None:
    rule = dataclass(frozen=True)(type("Rule", (Surrogate,), {"couple": lambda self, weight, dx, s_before, sums: None}))
    with pytest.raises(RuleError, match="has a `couple`, but no sweep"):
        snn_rules.RecurrentNode(5, rule())


def test_a_compiled_graph_runs_the_class_of_the_neuron() -> None:
    """Not the one that is installed under its name, nor one that had that name before."""
    x = torch.rand(T, 3, 5)
    for slope in (5.0, 7.0):
        rule = dataclass(frozen=True)(type("Mine", (Surrogate,), {"slope": lambda self, x, slope=slope: 0.0 * x + slope}))
        node, found = RuleNode(rule(), step_mode="m"), []
        for run in (node, torch.compile(node, backend="aot_eager", fullgraph=True)):
            leaf = x.clone().requires_grad_()
            run(leaf).sum().backward()
            found.append(leaf.grad)
            node.reset()
        assert type(ops.rule_of(node._key)) is rule and found[0].abs().max() > 3.0 and torch.equal(*found)
    text = ops.key(snn_rules.get_rule("tssl")).replace("TSSL", "Another")
    with pytest.raises(RuleError, match="rule 'tssl' is TSSL here, but was another class where this graph was compiled"):
        ops.rule_of(text)


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_a_failed_compilation_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    command = tmp_path / "g++"
    command.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo broken 1\necho >> {calls}\necho "error: no" >&2\nexit 1\n')
    command.chmod(0o755)
    monkeypatch.setattr(build, "compiler", lambda: (str(command), "broken 1"))
    monkeypatch.setattr(compiled.executor, "_found", {})
    monkeypatch.setenv("SNN_RULES_CACHE_DIR", str(tmp_path))
    node = RuleNode(snn_rules.get_rule("tssl", tau_m=17.25), step_mode="m")
    with pytest.warns(UserWarning, match="'tssl' runs on torch tensors"):
        for _ in range(3):
            node(torch.rand(T, 3, 5))
            node.reset()
    assert len(calls.read_text()) == 1


def test_a_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(mmap.mmap):
        def madvise(self, *args: Any) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    assert len(buffers.Pool(0).take(buffers.SMALLEST)) == buffers.SMALLEST


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(build, "cache_dir", lost)
    build.say_once.cache_clear()
    with pytest.warns(UserWarning, match=r"^kernels are kept in .*: Could not determine home directory.; set SNN_RULES_CACHE_DIR"):
        assert build.build('extern "C" int three() { return 3; }').three() == 3


def test_rules_load_in_several_threads(registry: Registry) -> None:
    found: dict[str, Any] = {}

    def load(name: str) -> None:
        found[name] = snn_rules.get_rule(name).name

    threads = [threading.Thread(target=load, args=(name,)) for name in ("tssl", "strsbp", "stdbp") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: name for name in ("tssl", "strsbp", "stdbp")}
