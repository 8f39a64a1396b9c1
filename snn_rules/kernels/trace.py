"""A rule's step and sweeps run on symbols: what each kernel has to compute; without sweeps, the derivative of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..rule import LearningRule, MalformedRule, RuleError, Sweep
from . import form
from .graph import Graph, Leaves, Node, order


@dataclass(eq=False)
class Walk:
    """One walk over time of the backward pass: what it reads, puts out and carries."""

    reverse: bool
    start: dict[str, float]
    put: dict[str, Node]
    carry: dict[str, Node]


@dataclass(eq=False)
class Traced:
    """A rule as graphs. The walks are built on the nodes of the step: what it saved, its spike, its input."""

    graph: Graph
    spike: Node
    state: dict[str, Node]
    saved: dict[str, Node]
    walks: list[Walk] = field(default_factory=list)
    # what `between` makes after each walk but the last; None where it is ordinary torch
    between: list[dict[str, Node] | None] = field(default_factory=list)


def trace(rule: LearningRule, T: int | None = None) -> Traced:
    """Run the rule's step and sweeps on symbols, for trains of `T` steps.

    A rule without sweeps gets the adjoint of its step as its one walk.
    """
    graph = Graph()
    m = Leaves(lambda name: graph.leaf("state", name))
    given = _run(rule, "step", lambda: rule.step(m, graph.leaf("step", "a")))
    if unknown := [name for name in m.read if name not in rule.state]:
        raise MalformedRule(f"rule {rule.name!r}: its step reads {unknown}, but its state is {list(rule.state)}")
    spike, state, saved = form.stepped(rule, given)
    traced = Traced(graph, graph.number(spike), _numbers(graph, state), _lifted(graph, saved))
    if not rule.sweeps:
        traced.walks.append(adjoint(traced))
        return traced
    of_neuron: dict[str, Node] = {}
    for sweep in rule.sweeps:
        if traced.walks:
            traced.between.append(_between(rule, T, traced, of_neuron))
            of_neuron = {**of_neuron, **traced.between[-1]} if traced.between[-1] is not None else {}
        traced.walks.append(_walk(rule, sweep, traced, of_neuron))
        of_neuron |= {name: graph.leaf("total", name) for name in sweep.carry}
    return traced


def _between(rule: LearningRule, T: int | None, traced: Traced, of_neuron: dict[str, Node]) -> dict[str, Node] | None:
    sums = Leaves(lambda name: of_neuron[name])
    sums.T = T
    try:
        made = _lifted(traced.graph, rule.between(sums))
    except Exception:  # torch's own functions: it runs on tensors
        return None
    return form.handed(rule, made, traced.saved)


def _walk(rule: LearningRule, sweep: Sweep, traced: Traced, of_neuron: dict[str, Node]) -> Walk:
    graph = traced.graph
    of_step = {"x": graph.leaf("step", "x"), "g": graph.leaf("step", "g"), "s": traced.spike, **traced.saved}
    c = Leaves(lambda name: graph.leaf("carry", name))
    known = {**of_neuron, **of_step}
    m = Leaves(lambda name: known[name] if name in known else graph.leaf("final" if name in rule.state else "neuron", name))
    given = _run(rule, f"sweep {sweep.name!r}", lambda: sweep.body(rule, c, m))
    if unknown := [name for name in c.read if name not in sweep.carry]:
        raise MalformedRule(f"rule {rule.name!r}: its sweep {sweep.name!r} carries {list(sweep.carry)}, but reads {unknown}")
    put, carry = form.swept(rule, sweep, given)
    return Walk(sweep.reverse, sweep.carry, _numbers(graph, put), _numbers(graph, carry))


def _run(rule: LearningRule, what: str, text: Callable[[], Any]) -> Any:
    try:
        return text()
    except MalformedRule as refusal:
        raise MalformedRule(f"rule {rule.name!r}: its {what}: {refusal}") from None
    except RuleError:
        raise
    except Exception as cause:  # of Python, of torch or of the rule: on tensors the text may run
        raise RuleError(
            f"rule {rule.name!r}: its {what} cannot be made a kernel ({str(cause).partition(chr(10))[0] or type(cause).__name__}); "
            f"it may use + - * /, abs, comparisons, &, | and ~, numbers, its arguments and the functions of snn_rules.ops"
        ) from cause


def _numbers(graph: Graph, values: dict[str, Any]) -> dict[str, Node]:
    return {name: graph.number(value) for name, value in values.items()}


def _lifted(graph: Graph, values: dict[str, Any]) -> dict[str, Node]:
    return {name: graph.lift(value) for name, value in values.items()}


def adjoint(traced: Traced) -> Walk:
    """Reverse-mode differentiation of the step: the walk carries dL/dstate, reads the state before each step and `x`."""
    graph = traced.graph
    gradient: dict[int, Node] = {}

    def add(node: Node, value: Node) -> None:
        gradient[id(node)] = gradient[id(node)] + value if id(node) in gradient else value  # type: ignore[operator]

    add(traced.spike, graph.leaf("step", "g"))
    for name, node in traced.state.items():
        add(node, graph.leaf("carry", name))
    for node in reversed(order([traced.spike, *traced.state.values()])):
        if id(node) in gradient:
            for arg, value in _vjp(node, gradient[id(node)]):
                if arg.op != "const":
                    add(arg, value)
    zero = graph.lift(0.0)
    carry = {name: gradient.get(id(graph.leaf("state", name)), zero) for name in traced.state}
    return Walk(True, dict.fromkeys(traced.state, 0.0), {"dx": gradient.get(id(graph.leaf("step", "a")), zero)}, carry)


def _vjp(node: Node, g: Any) -> list[tuple[Node, Any]]:
    """What the gradient `g` of a node is to its arguments."""
    a: tuple[Any, ...] = node.args
    zero = node.graph.lift(0.0)
    if node.op == "+":
        return [(a[0], g), (a[1], g)]
    if node.op == "-":
        return [(a[0], g), (a[1], -g)]
    if node.op == "neg":
        return [(a[0], -g)]
    if node.op == "*":
        return [(a[0], g * a[1]), (a[1], g * a[0])]
    if node.op == "/":
        return [(a[0], g / a[1]), (a[1], -(g * node) / a[1])]
    if node.op == "exp":
        return [(a[0], g * node)]
    if node.op == "spike":
        return [(a[0], g * a[1])]
    if node.op == "where":
        return [(a[1], a[0].where(g, zero)), (a[2], a[0].where(zero, g))]
    if node.op in ("minimum", "maximum"):
        first = a[0] <= a[1] if node.op == "minimum" else a[0] >= a[1]
        return [(a[0], first.where(g, zero)), (a[1], first.where(zero, g))]
    return []
