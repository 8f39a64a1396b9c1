"""What a rule's kernels read, keep and write: the plan from which C and CUDA are emitted.

The forward kernel keeps nothing: a backward kernel walks forward again from `x` and the first state, and holds what its
own walk needs in scratch memory of the size of a cache. A rule has one forward kernel and one backward kernel a walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from ..rule import LearningRule, RuleError
from .emit import leaves
from .graph import Node, Traced, Walk, trace


@dataclass(frozen=True)
class Stage:
    """One backward kernel."""

    walk: Walk
    scratch: tuple[Node, ...]  # values of each step that the reverse walk finds in memory
    reads: tuple[str, ...]  # of each step: a, x, g
    finals: tuple[str, ...]  # states after the last step that the walk reads
    neurons: tuple[str, ...]  # values of each neuron, from the walks before and from `between`
    carries: tuple[str, ...]  # final carries that it writes
    scaled: bool  # multiplies dx by the neuron's `scale`, if there is one


@dataclass(frozen=True)
class Program:
    rule: LearningRule
    traced: Traced
    stages: tuple[Stage, ...]


@lru_cache(maxsize=256)
def program(rule: LearningRule) -> Program:
    """The plan of a rule; `RuleError` where its steps or sweeps cannot be traced."""
    traced = trace(rule)
    if "dx" not in traced.walks[-1].put:
        raise RuleError(f"rule {rule.name!r}: its last sweep puts out {list(traced.walks[-1].put)}; it should put out 'dx'")
    if any(walk.put for walk in traced.walks[:-1]):
        raise RuleError(f"rule {rule.name!r}: a sweep before the last puts out values of each step, which kernels do not hand on")
    last = len(traced.walks) - 1
    return Program(rule, traced, tuple(_stage(rule, traced, walk, k == last) for k, walk in enumerate(traced.walks)))


def _stage(rule: LearningRule, traced: Traced, walk: Walk, last: bool) -> Stage:
    roots = [*walk.put.values(), *walk.carry.values()]
    scratch = _scratch(traced, roots) if walk.reverse else ()
    read = leaves(roots, scratch)
    names = {kind: tuple(name for k, name in read if k == kind) for kind in ("final", "neuron", "step")}
    if names["final"] and not walk.reverse:
        raise RuleError(f"rule {rule.name!r}: a forward sweep reads the final state {names['final'][0]!r}; make the sweep a reverse one")
    carries = tuple(name for name in walk.carry if not last or name in _diagnosed(rule))
    scaled = last and len(traced.walks) > 1  # `between` has been called, and may have returned a scale
    return Stage(walk, scratch, names["step"], names["final"], names["neuron"], carries, scaled)


def _scratch(traced: Traced, roots: list[Node]) -> tuple[Node, ...]:
    """The fewest of the step's values from which, with `x` and `g`, the walk can be computed."""
    candidates = [n for n in {id(n): n for n in [*traced.saved.values(), traced.spike]}.values() if n.op not in ("const", "leaf")]
    below = _below(roots)
    chosen = [n for n in candidates if id(n) in below]
    chosen += [n for n in _below(roots, chosen).values() if n.op == "leaf" and n.value[0] == "state"]
    for node in sorted(chosen, key=lambda n: -len(_below([n]))):
        rest = [n for n in chosen if n is not node]
        if all(kind not in ("state", "step") for kind, _ in leaves([node], rest)):
            chosen = rest  # cheap to compute again
    return tuple(chosen)


def _below(roots: list[Node], cut: list[Node] | tuple[Node, ...] = ()) -> dict[int, Node]:
    hidden, found = {id(n) for n in cut}, dict[int, Node]()

    def visit(node: Node) -> None:
        if id(node) not in found and id(node) not in hidden:
            found[id(node)] = node
            for arg in node.args:
                visit(arg)

    for root in roots:
        visit(root)
    return found


def _diagnosed(rule: LearningRule) -> set[str]:
    """The values of each neuron that the rule's diagnostics read."""
    read = set[str]()

    class Value:
        def __getattr__(self, name: str) -> Any:
            return Value()

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return Value()

        def __truediv__(self, other: Any) -> Any:
            return Value()

    class Values(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return Value()

    for diagnostic in rule.diagnostics.values():
        diagnostic(Values())
    return read
