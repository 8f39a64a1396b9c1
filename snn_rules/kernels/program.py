"""What a rule's kernels read, keep and write: the plan from which C and CUDA are emitted.

The forward kernel keeps nothing, or of long trains a state now and then: a backward kernel walks forward again from `x`
and that, and holds what its own walk needs in scratch memory of the size of a cache. A forward sweep of the rule goes
along with the steps; if `between` can be traced, the reverse sweep after it is in the same kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ..rule import LearningRule, MalformedRule, RuleError
from .emit import leaves
from .graph import BOOLEAN, Node, below, order
from .lower import lowered
from .trace import Traced, Walk, trace


@dataclass(frozen=True, eq=False)
class Stage:
    """One backward kernel: a forward sweep along with the steps, then a reverse sweep; or one of the two."""

    ahead: Walk | None
    back: Walk | None
    scratch: tuple[Node, ...]  # values of each step that the reverse sweep finds in memory
    between: dict[str, Node]  # values of each neuron, made between the two
    ahead_reads: tuple[str, ...]  # of each step: x, g
    back_reads: tuple[str, ...]  # of each step: a, x, g
    neurons: tuple[str, ...]  # values of each neuron that it is given
    writes: tuple[str, ...]  # values of each neuron that it leaves behind
    scaled: bool  # multiplies dx by a `scale` that it may be given


@dataclass(frozen=True, eq=False)
class Program:
    rule: LearningRule
    traced: Traced
    stages: tuple[Stage, ...]
    recurrent: bool = False  # the layer's own: `x` is what has arrived, delayed, times the gain; what is sent lies in `sent`; `dx` is not scaled

    @property
    def delay(self) -> int:
        """Steps from an input to its arrival, which the kernels of whole trains make."""
        return 0 if self.recurrent else self.rule.delay

    @property
    def gain(self) -> float:
        """The factor of the input, likewise."""
        return 1.0 if self.recurrent else self.rule.gain

    @cached_property
    def pointers(self) -> tuple[tuple[str, ...], ...]:
        """What the kernels of whole trains are given, in order: the forward one, then those of the stages."""
        before, after = ([f"{prefix}_{name}" for name in self.rule.state] for prefix in ("in", "out"))
        after += ["out_late"] if self.delay else []
        ahead = ("x", "late", *before, "s", *after, "record", "marks")
        back = ([*(f"n_{name}" for name in stage.neurons), "n_scale", *(f"c_{name}" for name in stage.writes)] for stage in self.stages)
        return (ahead, *(("x", "late", *before, "marks", "sent", "g", "dx", *names) for names in back))

    @property
    def sent(self) -> str:
        """The array of what is sent at each step."""
        return "sent" if self.recurrent else "x"

    @property
    def coupled(self) -> bool:
        """The rule solves a recurrent layer; the others are unfolded in time."""
        return type(self.rule).couple is not LearningRule.couple


def program(rule: LearningRule, T: int, recurrent: bool = False) -> Program:
    """The plan of a rule for trains of `T` steps; `RuleError` where it cannot be traced."""
    between = len(rule.sweeps) > 1 and type(rule).between is not LearningRule.between
    return _program(rule, T if between else None, recurrent)


@lru_cache(maxsize=256)
def _program(rule: LearningRule, T: int | None, recurrent: bool) -> Program:
    traced = lowered(trace(rule, T))
    if not traced.walks[-1].reverse:
        raise RuleError(f"rule {rule.name!r}: its last sweep walks forward, for which there is no kernel; dx is made walking back")
    if any(walk.put for walk in traced.walks[:-1]):
        raise RuleError(
            f"rule {rule.name!r}: a sweep before the last puts out values of each step, which kernels do not hand on; let step make and save them"
        )
    stages: list[Stage] = []
    waiting: Walk | None = None  # a forward sweep that the next reverse one may join
    for k, walk in enumerate(traced.walks):
        last = k == len(traced.walks) - 1
        joined = not last and traced.between[k] is not None
        if not walk.reverse and joined and traced.walks[k + 1].reverse:
            waiting = walk
            continue
        between = traced.between[k - 1] if waiting else None
        handed = None if waiting or not stages else traced.between[k - 1]
        scaled = bool(stages) and handed is None and "scale" not in (between or {})
        stages.append(_stage(rule, traced, waiting, walk, between or {}, last, scaled, recurrent))
        waiting = None
    if stages[0].neurons:
        raise MalformedRule(f"rule {rule.name!r}: a sweep reads {list(stages[0].neurons)}, which neither the step nor an earlier sweep has made")
    plan = Program(rule, traced, tuple(stages), recurrent)
    if recurrent and not plan.coupled and (len(stages) > 1 or stages[0].ahead):
        raise RuleError(f"rule {rule.name!r}: it has several sweeps, which cannot be unfolded through recurrent weights, and no `couple`")
    return plan


def _stage(
    rule: LearningRule, traced: Traced, ahead: Walk | None, walk: Walk, between: dict[str, Node], last: bool, scaled: bool, recurrent: bool
) -> Stage:
    back = walk if walk.reverse else None
    between = {name: node.graph.number(node) for name, node in between.items()}  # as they are handed on
    ahead = ahead if back else walk
    if back and last and "scale" in between and not recurrent:
        back = Walk(True, back.start, {"dx": back.put["dx"] * between["scale"]}, back.carry)  # type: ignore[operator]
    ahead_roots = list(ahead.carry.values()) if ahead else []
    back_roots = [*back.put.values(), *back.carry.values()] if back else []
    scratch = _scratch(traced, back_roots)
    read = [*leaves(ahead_roots), *leaves([*back_roots, *between.values()], scratch)]
    if not back and any(kind == "final" for kind, _ in read):
        raise RuleError(f"rule {rule.name!r}: a forward sweep reads a state after the last step; make it a reverse one")
    made = {*(ahead.carry if ahead else ()), *between}
    neurons = tuple(dict.fromkeys(name for kind, name in read if kind == "neuron" or (kind == "total" and name not in made)))
    left = [*(ahead.carry if ahead else ()), *between, *(back.carry if back else ())]
    writes = tuple(name for name in left if not last or recurrent or name in diagnosed(rule))  # `couple` may read any
    steps = [tuple(name for kind, name in leaves(roots, cut) if kind == "step") for roots, cut in ((ahead_roots, ()), (back_roots, scratch))]
    return Stage(ahead, back, scratch, between, steps[0], steps[1], neurons, writes, scaled and not recurrent)


def _scratch(traced: Traced, roots: list[Node]) -> tuple[Node, ...]:
    """The fewest of the step's values from which, with `x` and `g`, the walk can be computed: among what the rule saves, its spike and
    its states; where it saves nothing, among all values of the step as well."""
    saved = _fewest(roots, [*traced.saved.values(), traced.spike])
    if traced.saved:
        return saved
    return min(_fewest(roots, [n for n in order([traced.spike, *traced.state.values()]) if n.op not in BOOLEAN]), saved, key=len)


def _fewest(roots: list[Node], values: list[Node]) -> tuple[Node, ...]:
    candidates = [n for n in {id(n): n for n in values}.values() if n.op not in ("const", "leaf")]
    reached = {id(n) for n in order(roots)}
    chosen = [n for n in candidates if id(n) in reached]
    chosen += [n for n in below(roots, chosen) if n.op == "leaf" and n.value[0] == "state"]
    for node in sorted(chosen, key=lambda n: -len(order([n]))):
        rest = [n for n in chosen if n is not node]
        again = [leaf for leaf in leaves([node], rest) if leaf[0] in ("state", "step")]
        if not again or (again == [("step", "a")] and ("step", "a") in leaves(roots, chosen)):
            chosen = rest  # cheap to compute again
    reached = {id(n) for n in order(roots, chosen)}
    return tuple(n for n in chosen if id(n) in reached)


@lru_cache(maxsize=256)
def diagnosed(rule: LearningRule) -> frozenset[str]:
    """The values of each neuron that the rule's diagnostics read."""
    read = set[str]()

    class Value:
        def __getattr__(self, name: str) -> Any:
            return Value()

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return Value()

    for operation in ("add", "sub", "mul", "truediv", "pow", "and", "or", "gt", "ge", "lt", "le", "eq", "ne"):
        for side in ("", "r"):
            setattr(Value, f"__{side}{operation}__", Value.__call__)
    for operation in ("neg", "abs", "invert"):
        setattr(Value, f"__{operation}__", Value.__call__)

    class Values:
        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return Value()

    for diagnostic in rule.diagnostics.values():
        diagnostic(Values())
    return frozenset(read) - {"T"}
