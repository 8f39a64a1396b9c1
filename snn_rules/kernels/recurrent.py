"""A recurrent layer by kernels: one call a time step, between the matrix products with its own weights.

The backward pass of a rule that couples its neurons (ST-RSBP) is the kernels of whole trains, fed with what has really
arrived, and the rule's own solve. The other rules are unfolded: the reverse sweep, one kernel call a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..rule import LearningRule
from . import form, steps, zeros
from .eager import State, Tape

if TYPE_CHECKING:
    from .trains import ByKernels


@torch.no_grad()
def forward(
    by: ByKernels, rule: LearningRule, x: Tensor, state: State, weight: Tensor, record: bool, learns: bool
) -> tuple[Tensor, State, Tape, Tensor | None]:
    """As `Eager.forward` for a recurrent layer: the same spikes and states."""
    x, like = x.resolve_neg().contiguous(), by.memory(x)
    T, M, features = x.shape[0], x[0].numel(), weight.shape[0]
    run, start = by.run or by.load(rule, x, recurrent=True), {**rule.state, "late": 0.0, "y": 0.0}

    def given(name: str, *shape: int) -> Tensor:
        return state[name].resolve_neg().contiguous() if name in state else x.new_full(shape, start[name])

    first = {n: state[n].resolve_neg().contiguous() for n in rule.state if n in state}
    after = {name: given(name, *x.shape[1:]).clone() for name in rule.state}
    y = given("y", *x.shape[1:]).clone()  # in memory of its own: the last bit of a product depends on where its factors lie
    late = {"late": given("late", rule.delay, *x.shape[1:])} if rule.delay else {}
    kept = {name: like(x) for name in steps.kept(run.program)} if learns else {}
    spikes, r = like(x), x.new_empty(M // features, features)
    recorded = {"record": like(x)} if record else {}
    step = run.bind(0, {"x": x, **late, "y": y, "r": r, "s": spikes, **kept, **recorded, **{f"v_{n}": v for n, v in after.items()}}, M)
    hear = _heard(y.view_as(r), weight, r)
    for t in range(T):
        hear()
        step(t)
    if "sent" in kept:  # the last spikes are sent, too
        hear()
        torch.add(x[-1] if rule.gain == 1.0 else x[-1] * rule.gain, r.view_as(x[-1]), out=kept["sent"][-1])
    held = {**kept, **{f"in_{n}": v for n, v in first.items()}, **{f"f_{n}": v for n, v in after.items()}}
    queue = {"late": torch.cat([late["late"], x])[T:].clone() if rule.delay > T else x[T - rule.delay :].clone()} if rule.delay else {}
    return spikes, {**after, **queue, "y": y}, Tape([*held.values()], tuple(held)), recorded.get("record")


def _heard(said: Tensor, weight: Tensor, r: Tensor) -> Callable[[], object]:
    """What writes to `r` what the neurons hear of the spikes of the moment."""
    if zeros.wanted.get() and said.is_cpu and zeros.missing(said.dtype) is None:
        return zeros.bound(said, weight.contiguous(), r)
    back = weight.t()
    return lambda: torch.mm(said, back, out=r)


@torch.no_grad()
def backward(by: ByKernels, rule: LearningRule, tape: Tape, g: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
    """As `Eager.recurrent_backward`."""
    run, T = by.run or by.load(rule, g, recurrent=True), g.shape[0]
    kept = {name: value.contiguous() for name, value in zip(tape.about, tape.values, strict=True)}
    after = {name: kept[f"f_{name}"] for name in rule.state}
    dx, scales = _longer(by, g, rule.delay), None
    arrived = dx[:T]  # the gradient of what arrives; that of what is sent is `delay` steps further on
    if run.program.coupled:
        held = [kept["a"], None, *(kept.get(f"in_{name}") for name in rule.state), None]
        neurons = by.walk_back(rule, run, g[0], held, g, arrived, kept.get("sent"))
        scales = form.coupled(rule, rule.couple(weight, arrived, kept["before"], form.Given(rule, "couple", {"T": T, **after, **neurons})))
    else:
        walk = run.program.stages[0].back
        assert walk is not None
        neurons = {name: torch.full_like(g[0], start) for name, start in walk.start.items()}
        r = g.new_zeros(g[0].numel() // weight.shape[0], weight.shape[0])
        step = run.bind(1, {"g": g, "r": r, **kept, "dx": arrived, **{f"k_{n}": v for n, v in neurons.items()}}, g[0].numel())
        after_it = [d.view_as(r) for d in arrived.unbind(0)]
        for t in reversed(range(T)):
            step(t)
            if t:
                torch.mm(after_it[t], weight, out=r)
    for_weights = dx
    if scales is not None and scales[1] is not scales[0]:
        for_weights = _longer(by, g, rule.delay)
        torch.mul(arrived, scales[1], out=for_weights[:T])
    if scales is not None:
        arrived.mul_(scales[0])
    sent, spikes = for_weights[:T].flatten(0, -2), kept["before"].flatten(0, -2)
    d_weight = zeros.weight_gradient(sent, spikes) if spikes.is_cpu and zeros.worth(spikes) else sent.t() @ spikes
    if rule.gain != 1.0:
        for made in (dx,) if for_weights is dx else (dx, for_weights):
            made.mul_(rule.gain)
    if rule.delay:
        dx, for_weights = dx[rule.delay :], for_weights[rule.delay :]
    return dx, for_weights, d_weight, {**after, **neurons}


def _longer(by: ByKernels, g: Tensor, more: int) -> Tensor:
    """Memory for a result like `g` with `more` steps, which are zero."""
    made = by.memory(g)(g.new_empty(g.shape[0] + more, *g.shape[1:]))
    made[g.shape[0] :] = 0
    return made
