"""Checks of a rule's mathematics: against its reference, between executors, without a GPU, and that it learns."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.func import functional_call

from ..config import Config
from ..conversion import convert
from ..data import Data
from ..kernels import Compiled, Eager, build, ops
from ..kernels.graph import order
from ..kernels.trace import trace
from ..neuron import RuleNode
from ..recurrent import check_recurrent
from ..rule import LearningRule, RuleError
from ..train import fit
from . import nvrtc, proof
from .behaviour import unregistered
from .case import EAGER, STEPS, Case, Skip, check, check_any_signal, demand, differ

SECONDS = 5.0  # within which the toy task is learned
COMPILED = Compiled()


# ---- the gradient ----------------------------------------------------------------------------------------------------


@check_any_signal
def gradient_is_exact(case: Case) -> None:
    """A rule that calls its gradient exact must pass torch's gradcheck: finite differences of the whole layer, in float64."""
    if not case.rule.capabilities.exact:
        raise Skip("its capabilities say exact=False: see equals_its_reference")
    torch.manual_seed(0)
    linear = nn.Linear(6, 4, bias=False)
    net = convert(nn.Sequential(linear, neuron.LIFNode(v_reset=case.v_reset, step_mode="m")), case.rule).double()
    case.rule.initialize(net)
    x = case.rule.encode(torch.rand(3, 6, dtype=torch.float64), 8)

    def run(weight: Tensor) -> Tensor:
        functional.reset_net(net)
        return functional_call(net, {"0.weight": weight}, (x,))  # type: ignore[no-any-return]

    weight = linear.weight.detach().clone().requires_grad_()
    demand(run(weight).detach().any(), "the layer is silent: there is no gradient to check")
    try:
        torch.autograd.gradcheck(run, (weight,), eps=1e-7, atol=1e-5)
    except torch.autograd.gradcheck.GradcheckError as cause:  # type: ignore[attr-defined]
        demand(False, f"gradcheck: {' '.join(str(cause).split())[:200]}")


@check
def equals_its_reference(case: Case) -> None:
    """The fast rule is the paper's: spikes equal and gradients to round-off against slow float64 loops, over lengths, drives and settings."""
    reference = case.reference
    draws = {"": 1.0, " and weak input": 0.3, " and strong input": 8.0}
    for name, rule, T, factor, dtype in [
        *((name, case.rule, 12, factor, torch.float64) for name, factor in draws.items()),
        *(("", case.rule, T, 1.0, torch.float64) for T in (1, 5)),
        ("", case.rule, 12, 1.0, torch.float32),
        *((name, rule, 12, 1.0, torch.float64) for name, rule in _settings(case).items()),
    ]:
        x, g = case.inputs(T, 1, 12, seed=T)
        x = factor * x / rule.gain
        made = reference(rule, rule.gain * x[:, 0].numpy(), g[:, 0].numpy())
        want_spikes, want = (torch.as_tensor(np.asarray(part, dtype=float)) for part in made)
        spikes, dx = case.run(x.to(dtype), g.to(dtype), RuleNode(rule, step_mode="m"))
        where, tight = f"T={T}, {dtype}{name}", 1e-9 if dtype == torch.float64 else 2e-4
        demand(not (what := differ(spikes[:, 0], want_spikes)), f"spikes ({where}): {what}")
        size = rule.gain * float(want.abs().max()) or 1e-300
        demand(not (what := differ(dx[:, 0], rule.gain * want, rtol=tight, atol=tight * size)), f"dL/dx ({where}): {what}")


def _settings(case: Case) -> dict[str, LearningRule]:
    """The rule as it trains out of the box, and with its input divided by tau_m."""
    found = {", as it trains": case.trained}
    with suppress(RuleError):  # it has no tau_m, or an infinite one
        found[", decay_input=True"] = case.rule.replace(decay_input=True)
    return found


# ---- executors -------------------------------------------------------------------------------------------------------


@check
def has_kernels(case: Case) -> None:
    """Kernels are made of the rule's text: step and sweeps use arithmetic, comparisons and snn_rules.ops, and do not branch on data."""
    from ..kernels.program import program

    program(case.rule, STEPS)


@check
def cpu_kernels_equal_eager(case: Case) -> None:
    """The compiled kernels give the spikes of eager torch to the bit, and its gradients to round-off."""
    try:
        build.compiler()
    except build.NoCompiler as why:
        raise Skip(str(why)) from why
    for shape, dtype in [((12, 5, 31), torch.float64), ((12, 5, 31), torch.float32), ((1, 3, 7), torch.float32), ((40, 3), torch.float64)]:
        x, g = case.inputs(*shape, dtype=dtype)
        tight = 1e-10 if dtype == torch.float64 else 1e-4
        got, want = (case.run_by(executor, x, g) for executor in (COMPILED, EAGER))
        for name in want:
            near = 0.0 if name == "spikes" else tight
            what = differ(got[name], want[name], rtol=near, atol=near * float(want[name].abs().nan_to_num(0, 0, 0).max()))
            demand(not what, f"{name} of {list(shape)} in {dtype}: {what}")


def _needs_nvrtc() -> list[int]:
    try:
        return nvrtc.architectures()
    except (nvrtc.NoNvrtc, OSError) as why:
        raise Skip(str(why)) from why


@check
def cuda_kernels_do_not_spill(case: Case) -> None:
    """Registers that spill make a kernel several times slower: none may, on any architecture."""
    for row in proof.resources(case.rule, _needs_nvrtc()):
        demand(row.compiled, f"kernel {row.kernel!r} does not compile for sm_{row.arch}: {row.error}")
        demand(not row.spills, f"kernel {row.kernel!r} spills {row.spills} bytes on sm_{row.arch}; carry or save less")


@check
def cuda_kernels_equal_cpu_kernels(case: Case) -> None:
    """The PTX of the CUDA kernels, interpreted through the real launch code, gives the C++ kernels' results to the bit."""
    _needs_nvrtc()
    try:
        build.compiler()
    except build.NoCompiler as why:
        raise Skip(str(why)) from why
    for name, (got, want) in proof.agreement(case.rule, shape=(11, 300), scale=case.drive, warm=False).items():
        demand(not (what := differ(got, want)), f"{name}: {what}")


def _recurrent(case: Case, executor: Eager, x: Tensor, g: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """What a recurrent layer gives: spikes, the states, dL/dx and dL/dweight."""
    by_autograd = executor is EAGER and not case.rule.sweeps
    x, weight = (t.clone().requires_grad_(by_autograd) for t in (x, weight))
    spikes, after, tape, _ = executor.forward(case.rule, x, {}, weight)
    if by_autograd:
        dx, d_weight = torch.autograd.grad(spikes, (x, weight), g)
    else:
        dx, _, d_weight, _ = executor.recurrent_backward(case.rule, tape, g, weight)
    return {"spikes": spikes.detach(), **{f"state {name}": after[name].detach() for name in after}, "dL/dx": dx, "dL/dweight": d_weight}


@check
def recurrent_kernels_equal_eager(case: Case) -> None:
    """A recurrent layer on compiled kernels gives eager torch's spikes and states to the bit; states made by exp, and gradients, to round-off."""
    _trains_recurrent_weights(case)
    traced = trace(case.rule)
    rounds = any(node.op == "exp" for node in order([traced.spike, *traced.state.values()]))  # whose last bits are torch's own
    for shape, dtype in [((12, 3, 21), torch.float64), ((12, 3, 21), torch.float32), ((1, 1, 5), torch.float64)]:
        x, g = case.inputs(*shape, dtype=dtype)
        weight = case.drive * torch.randn(shape[-1], shape[-1], dtype=dtype, generator=torch.Generator().manual_seed(0)) / shape[-1] ** 0.5
        got, want = (_recurrent(case, executor, x, g, weight) for executor in (COMPILED, EAGER))
        for name in want:
            exact = name == "spikes" or (name[:2] != "dL" and not rounds)
            near = 0.0 if exact else 1e-9 if dtype == torch.float64 else 1e-4
            what = differ(got[name], want[name], rtol=near, atol=near * float(want[name].abs().nan_to_num(0, 0, 0).max()))
            demand(not what, f"{name} of {list(shape)} in {dtype}: {what}")


@check
def recurrent_cuda_kernels_equal_cpu_kernels(case: Case) -> None:
    """So do its CUDA kernels, interpreted through the real launch code: to the bit."""
    _needs_nvrtc()
    _trains_recurrent_weights(case)
    for name, (got, want) in proof.recurrent_agreement(case.rule, shape=(7, 3, 40), scale=case.drive, warm=False).items():
        demand(not (what := differ(got, want)), f"{name}: {what}")


def _trains_recurrent_weights(case: Case) -> None:
    try:
        build.compiler()
        check_recurrent(case.rule, "a recurrent layer")
    except (build.NoCompiler, RuleError) as why:
        raise Skip(str(why)) from why


@check
def operator_keeps_torch_s_contract(case: Case) -> None:
    """Inside torch.compile the neuron is an operator, for which torch has its own checks (opcheck)."""
    if not case.known:
        raise Skip(unregistered(case.rule))
    x, _ = case.inputs(5, 2, 6, dtype=torch.float32)
    names = ops._states(case.rule)
    shapes = [(case.rule.delay, 2, 6) if name == "late" else (2, 6) for name in names]
    state = [torch.full(shape, case.rule.state.get(name, 0.0)) for name, shape in zip(names, shapes, strict=True)]
    done = torch.library.opcheck(torch.ops.snn_rules.layer.default, (x.requires_grad_(), state, ops.key(case.rule)), raise_exception=False)
    wrong = [name for name, result in done.items() if result != "SUCCESS"]
    demand(not wrong, f"opcheck: {', '.join(wrong)}")


@check
def compiles_into_one_graph(case: Case) -> None:
    """torch.compile(fullgraph=True) takes the neuron, and the network gives the same outputs and gradients."""
    if not case.known:
        raise Skip(unregistered(case.rule))
    torch.manual_seed(0)
    torch._dynamo.reset()  # networks that were compiled before count against its limit of recompilations
    net = nn.Sequential(nn.Linear(6, 8), case.node(), nn.Linear(8, 3))
    x, w, made = case.inputs(12, 2, 6, dtype=torch.float32)[0], torch.randn(12, 2, 3), []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        functional.reset_net(net)
        net.zero_grad()
        out = run(x)
        (out * w).sum().backward()
        made.append([out.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    for got, want in zip(made[1], made[0], strict=True):
        demand(not (what := differ(got, want, rtol=1e-5, atol=1e-6)), f"compiled, the network differs: {what}")


# ---- learning --------------------------------------------------------------------------------------------------------


def toy() -> Data:
    """Noisy copies of one random pattern a class, in [0, 1]."""
    classes, features, samples, draw = 4, 32, 192, torch.Generator().manual_seed(0)
    patterns = (torch.rand(classes, features, generator=draw) < 0.4).float()
    y = torch.arange(2 * samples) % classes
    x = (0.8 * patterns[y] + 0.2 * torch.rand(2 * samples, features, generator=draw)).clamp(0, 1)
    return Data("toy", x[:samples], y[:samples], x[samples:], y[samples:], classes)


@check_any_signal
def learns_a_toy_task(case: Case) -> None:
    """With its own code, loss and settings the rule tells four noisy patterns apart, within five seconds."""
    rule, best, began = case.trained, 0.0, time.process_time()
    net, data, threads = case.network("24-4", 32), toy(), torch.get_num_threads()

    class Done(Exception):
        pass

    def look(_: int, history: object) -> None:
        nonlocal best
        best = max(best, history.last.test_accuracy)  # type: ignore[attr-defined]
        if best >= 0.9 or time.process_time() - began > SECONDS:
            raise Done

    torch.set_num_threads(1)  # on a busy machine, a second one waits for its turn, and the first for it
    try:
        fit(net, rule, data, Config.of(rule, batch_size=32, lr=3e-3, epochs=1000), on_epoch=look)
    except Done:
        pass
    except RuleError as refusal:
        demand(False, str(refusal))
    finally:
        torch.set_num_threads(threads)
    demand(best >= 0.9, f"after {SECONDS:g} s it tells {best:.0%} of the patterns apart; chance is 25%, 90% are asked for")
