"""Recurrent layers by kernels: the very spikes and states of eager torch, its gradients to round-off; and their CUDA kernels, interpreted."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import snn_rules
from snn_rules.kernels import Compiled, Eager, executor, steps
from snn_rules.kernels.build import NoCompiler, compiler
from snn_rules.kernels.program import program
from snn_rules.ops import exp, heaviside, where
from snn_rules.rule import LearningRule, RuleError, Sweep, sweep

try:
    compiler()
except NoCompiler as cause:
    pytest.skip(f"needs a C++ compiler: {cause}", allow_module_level=True)


@dataclass(frozen=True)
class Wild(LearningRule):
    """What the bundled rules do not use in a recurrent layer: a condition kept, the input in the sweep, a delay, exp."""

    name: ClassVar[str] = "wild"
    state: ClassVar[dict[str, float]] = {"v": -0.5, "count": 0.0}
    delay = 2

    def step(self, m: Any, x: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        v = m.v * 0.5 + x
        fires = (v >= 1.0) | (m.count < -1.0)
        s = heaviside(where(fires, v, -1.0))
        return s, {"v": where(fires, 0.0, v), "count": m.count + s}, {"fires": fires, "u": v}

    @sweep(reverse=True, later=0.1)
    def back(self, c: Any, m: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        later = where(m.fires, m.g * exp(-m.u), 0.5 * c.later)
        return {"dx": later + 0.01 * m.count + 0.1 * m.x}, {"later": later}


RULES: list[tuple[str, dict[str, Any], float]] = [
    ("surrogate", {}, 2.0),
    ("surrogate", {"surrogate": "atan", "reset": "subtract", "decay_input": False}, 1.0),
    ("tssl", {}, 1.0),
    ("tssl", {"decay_input": True, "warmup": "off", "dadt": "shift"}, 5.0),
    ("tssl", {"psc": "output", "reset": "subtract"}, 1.0),
    ("strsbp", {"v_threshold": 2.0}, 4.0),
    ("strsbp", {"v_threshold": 2.0, "delay": 0, "gradient": "paper"}, 4.0),
    ("strsbp", {"v_threshold": 2.0, "delay": 3, "solver": "exact", "silent": "zero"}, 4.0),
    ("strsbp", {"tau_m": 4.0, "decay_input": True, "gradient": "paper", "solver": "exact"}, 90.0),
    ("stdbp", {}, 0.2),
    ("stdbp", {"revive": 1.0}, 0.1),
    ("wild", {}, 1.0),
]  # fmt: skip
every_rule = pytest.mark.parametrize(("name", "options", "scale"), RULES)


def rule_of(name: str, options: dict[str, Any]) -> LearningRule:
    return Wild(**options) if name == "wild" else snn_rules.get_rule(name, **options)


def run(by: Eager, rule: LearningRule, x: Tensor, g: Tensor, weight: Tensor, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What must be equal, and what must be so to round-off."""
    if by.derives or rule.sweeps:
        weight = weight * rule.gain
        spikes, after, tape, recorded = by.forward(rule, x, state, weight, True)
        dx, dx_weights, d_weight, neurons = by.recurrent_backward(rule, tape, g, weight)
        carried = {name: neurons[name] for one in rule.sweeps for name in one.carry if isinstance(neurons[name], Tensor)}
    else:  # the adjoint by autograd
        x, leaf = x.clone().requires_grad_(), weight.clone().requires_grad_()
        spikes, after, _, recorded = by.forward(rule, x, state, leaf * rule.gain, True)
        dx, d_weight = torch.autograd.grad(spikes, (x, leaf), g)
        dx_weights, carried, d_weight = dx, {}, d_weight / rule.gain
    exact = {"spikes": spikes, "recorded": recorded, **after}
    return {n: t.detach() for n, t in exact.items()}, {"dx": dx, "dx for weights": dx_weights, "dweight": d_weight, **carried}


def compare(rule: LearningRule, scale: float, shape: tuple[int, ...], dtype: torch.dtype, warm: bool) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    before, x, g = (torch.randn(shape, generator=draw, dtype=dtype) for _ in range(3))
    before, x = scale * (before + 0.3), scale * (x + 0.3)
    weight = scale * torch.randn(shape[-1], shape[-1], generator=draw, dtype=dtype) / shape[-1] ** 0.5
    state = Eager().forward(rule, before, {}, weight)[1] if warm else {}
    held = {name: value.clone() for name, value in state.items()}
    exact, close = run(Compiled(), rule, x, g, weight, state)
    exact_too, close_too = run(Eager(), rule, x, g, weight, state)
    assert exact.keys() == exact_too.keys()
    for name, value in exact.items():
        assert torch.equal(value, exact_too[name]), name
    for name, wanted in close_too.items():
        if name in close:
            tolerance = (1e-12 if dtype == torch.float64 else 3e-5) * max(float(wanted.abs().max()) if wanted.numel() else 0.0, 1e-3)
            torch.testing.assert_close(close[name], wanted, rtol=0, atol=tolerance, msg=lambda said, name=name: f"{name}: {said}")
    assert all(torch.equal(value, held[name]) for name, value in state.items())  # nobody wrote into what was given
    return exact | close


@every_rule
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_kernels_equal_eager_torch(name: str, options: dict[str, Any], scale: float, dtype: torch.dtype, warm: bool) -> None:
    found = compare(rule_of(name, options), scale, (20, 3, 11), dtype, warm)
    assert warm or 0 < found["spikes"].count_nonzero() < found["spikes"].numel()
    assert warm or (found["dx"].any() and found["dweight"].any())


@every_rule
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 5), (2, 1, 16), (9, 1, 33), (3, 0, 4)])
def test_shapes(name: str, options: dict[str, Any], scale: float, shape: tuple[int, ...]) -> None:
    compare(rule_of(name, options), scale, shape, torch.float64, warm=True)


@pytest.mark.parametrize("name", ["tssl", "surrogate"])
def test_more_dimensions(name: str) -> None:
    compare(snn_rules.get_rule(name), 1.5, (4, 2, 3, 6), torch.float64, warm=True)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("snn_rules.kernels.compiled.PARALLEL", 0)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            compare(snn_rules.get_rule("tssl"), 1.0, (6, 5, 37), torch.float32, warm=True)
    finally:
        torch.set_num_threads(before)


@every_rule
def test_through_the_node(name: str, options: dict[str, Any], scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trains, one state, with `v_seq`; by kernels and by eager torch."""
    found = []
    for forced in ("", "eager"):
        monkeypatch.setattr("snn_rules.kernels.FORCED", forced)
        torch.manual_seed(0)
        node = snn_rules.RecurrentNode(7, rule_of(name, options), store_v_seq=True)
        x = (scale * (torch.randn(9, 2, 7) + 0.5)).requires_grad_()
        with torch.no_grad():
            first = node(x.detach()[:4])
        out = node(x)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        assert isinstance(executor(node.rule, x, recurrent=True), Eager if forced else Compiled)
        exact, close = [first, out.detach(), node.v_seq, node.y, node.v], [x.grad, node.weight.grad]
        found.append((exact, close))
    for mine, want in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(mine, want)
    for mine, want in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_a_spike_train_may_be_changed_in_place() -> None:
    node, grads = snn_rules.RecurrentNode(7, "tssl"), []
    for change in (False, True):
        node.reset()
        node.weight.grad = None
        out = node(torch.ones(5, 2, 7) * 2)
        (out.mul_(1.0) if change else out * 1.0).sum().backward()
        grads.append(node.weight.grad)
    assert torch.equal(*grads)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo itself looks there
@pytest.mark.parametrize("name", ["tssl", "strsbp", "surrogate"])
def test_torch_compile_goes_around_it(name: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(7, 7), snn_rules.RecurrentNode(7, name, v_threshold=0.5), torch.nn.Linear(7, 3))
    x, found = 3 * torch.rand(6, 2, 7), []
    for by in (net, torch.compile(net, backend="eager")):
        net.zero_grad()
        net[1].reset()
        out = by(x)
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    assert len(found[0]) == 6 and found[0][3].any()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nothing_is_kept_without_a_gradient() -> None:
    for name in ("tssl", "strsbp"):
        rule, x, weight = snn_rules.get_rule(name), torch.rand(5, 2, 7), torch.rand(7, 7)
        tapes = [Compiled().forward(rule, x, {}, weight, learns=learns)[2] for learns in (True, False)]
        kept = [dict(zip(tape.about, tape.values, strict=True)) for tape in tapes]
        assert {"before"} < kept[0].keys() - kept[1].keys()
        assert not any(value.dim() == 3 for value in kept[1].values())


def test_only_what_the_backward_pass_reads_is_kept() -> None:
    wanted = {
        "surrogate": ("before", "z0"), "tssl": ("before", "z0", "z1", "z2"), "stdbp": ("before", "z0"), "strsbp": ("before", "a", "sent"),
    }  # fmt: skip
    assert {name: steps.kept(program(snn_rules.get_rule(name), 50, recurrent=True)) for name in wanted} == wanted
    assert steps.finals(program(snn_rules.get_rule("stdbp", revive=1.0), 50, recurrent=True)) == ("fired", "s_slope", "s_over")


def test_what_cannot_be_unfolded_is_refused() -> None:
    with pytest.raises(RuleError, match="rule 'tssl': it has several sweeps, which cannot be unfolded through recurrent weights, and no `couple`"):
        program(snn_rules.get_rule("tssl", warmup="layer"), 5, recurrent=True)


def test_a_sweep_that_reads_what_nothing_makes_is_refused() -> None:
    @dataclass(frozen=True)
    class Misspelt(Wild):
        name: ClassVar[str] = "misspelt"

        @sweep(reverse=True, later=0.0)
        def back(self, c: Any, m: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return {"dx": m.g * m.uu}, {"later": c.later}

    assert all(isinstance(one, Sweep) for one in Misspelt.sweeps)
    for recurrent in (False, True):
        with pytest.raises(RuleError, match=r"rule 'misspelt': a sweep reads \['uu'\], which neither the step nor an earlier sweep has made"):
            program(Misspelt(), 5, recurrent)


@pytest.mark.parametrize("name", ["tssl", "strsbp"])
@pytest.mark.parametrize("by", [Eager(), None], ids=["eager", "kernels"])
def test_autocast_changes_nothing(name: str, by: Eager | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the forward nor the backward pass takes its products in bfloat16."""
    if by:
        monkeypatch.setattr("snn_rules.kernels.autograd.executor", lambda *_: by)
    torch.manual_seed(0)
    x, g = 4 * torch.rand(9, 2, 12), torch.randn(9, 2, 12)
    node = snn_rules.RecurrentNode(12, name, **({"v_threshold": 2.0} if name == "strsbp" else {}))

    def run(autocast: bool) -> list[Tensor | None]:
        node.reset()
        node.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            spikes = node(leaf)
            spikes.backward(g)
        return [spikes.detach(), leaf.grad, node.weight.grad]

    for plain, within in zip(run(False), run(True), strict=True):
        assert plain is not None and within is not None and plain.any()
        assert within.dtype == torch.float32 and torch.equal(plain, within)
