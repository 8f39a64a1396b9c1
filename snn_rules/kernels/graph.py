"""A rule's step and sweeps as expression graphs: the same text, run on symbols."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..rule import LearningRule, RuleError, Sweep

Number = int | float
BOOLEAN = {">=", ">", "<=", "<", "==", "!=", "&", "|", "not"}


class Node:
    """An operation and what it is applied to. Equal expressions are one object (see `Graph.node`), and go by their identity:
    `==` and `!=` are a rule's own, and make nodes."""

    __slots__ = ("args", "graph", "op", "value")
    __hash__ = object.__hash__

    def __init__(self, graph: Graph, op: str, args: tuple[Node, ...], value: Any):
        self.graph, self.op, self.args, self.value = graph, op, args, value

    def __bool__(self) -> bool:
        raise RuleError("a step or sweep branches on data (if, and, or, not, max()); write where(condition, a, b), & and |, minimum, maximum")

    def where(self, a: Any, b: Any) -> Node:
        return self.graph.node("where", self, a, b)

    def exp(self) -> Node:
        return self.graph.node("exp", self)

    def heaviside(self) -> Node:
        return self.graph.node("where", self.graph.node(">=", self, 0.0), 1.0, 0.0)

    def spike(self, slope: Any) -> Node:
        return self.graph.node("spike", self, slope)

    def minimum(self, other: Any) -> Node:
        return self.graph.node("minimum", self, other)

    def maximum(self, other: Any) -> Node:
        return self.graph.node("maximum", self, other)

    def __neg__(self) -> Node:
        return self.graph.node("neg", self)


def _operators() -> None:
    def make(op: str, swap: bool) -> Callable[[Node, Any], Node]:
        return (lambda a, b: a.graph.node(op, b, a)) if swap else (lambda a, b: a.graph.node(op, a, b))

    for name, op in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "and": "&", "or": "|"}.items():
        setattr(Node, f"__{name}__", make(op, False))
        setattr(Node, f"__r{name}__", make(op, True))
    for name, op in {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "==", "ne": "!="}.items():
        setattr(Node, f"__{name}__", make(op, False))


_operators()


class Graph:
    """Makes nodes; folds only what is exact for every float."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Node] = {}

    def leaf(self, kind: str, name: str) -> Node:
        """An input: a "state" before the step, a "carry", a "final" state, a "total" (the final carry of a walk before),
        any other value of the "neuron", or one of the "step":
        `a`, the input that arrives; `x`, the input that is sent (`delay` steps earlier); `g`, the gradient of the spike."""
        return self._intern("leaf", (), (kind, name))

    def node(self, op: str, *given: Any) -> Node:
        args = tuple(self.lift(a) for a in given)
        if op in ("+", "-", "*", "/", "neg", "minimum", "maximum"):  # a condition in arithmetic is 1 or 0, as in torch
            args = tuple(self.node("where", a, 1.0, 0.0) if a.op in BOOLEAN else a for a in args)
        numbers = [a.value if a.op == "const" else None for a in args]
        if op == "*" and 1.0 in numbers:
            return args[1] if numbers[0] == 1.0 else args[0]
        if op in ("+", "-") and numbers[1] == 0.0:
            return args[0]
        if op == "+" and numbers[0] == 0.0:
            return args[1]
        if op == "/" and numbers[1] == 1.0:
            return args[0]
        if op == "where" and args[1] is args[2]:
            return args[1]
        if op == "where" and args[0].op == "not":
            return self.node("where", args[0].args[0], args[2], args[1])
        if op == ">" and numbers[1] == 0.0:  # a condition that was written as 1 and 0
            if args[0].op == "spike":
                return self.node(">=", args[0].args[0], 0.0)
            if args[0].op == "-" and args[0].args[0] is self.lift(1.0) and args[0].args[1].op == "spike":
                return self.node("not", self.node(">=", args[0].args[1].args[0], 0.0))
            if args[0].op == "where" and all(a.op == "const" for a in args[0].args[1:]):
                held = [a.value > 0.0 for a in args[0].args[1:]]
                if held[0] != held[1]:
                    return args[0].args[0] if held[0] else self.node("not", args[0].args[0])
        if op in ("-", "*") and (folded := self._folded(op, args)) is not None:
            return folded
        return self._intern(op, args, None)

    def _folded(self, op: str, args: tuple[Node, ...]) -> Node | None:
        """`1 - where(c, 1, 0)` and `k * where(c, 1, 0)`, which choose between constants as well."""
        for number, other in (args, args[::-1]):
            if number.op == "const" and other.op == "where" and [a.value for a in other.args[1:]] in ([1.0, 0.0], [0.0, 1.0]):
                if op == "*":
                    return self.node("where", other.args[0], *(number.value * a.value for a in other.args[1:]))
                if number is args[0] and number.value == 1.0:
                    return self.node("where", other.args[0], *(1.0 - a.value for a in other.args[1:]))
        return None

    def lift(self, value: Any) -> Node:
        if isinstance(value, Node):
            return value
        if isinstance(value, (int, float)):
            return self._intern("const", (), float(value))
        raise RuleError(f"a step or sweep uses {value!r}; it may use numbers, its arguments and the functions of snn_rules.ops")

    def _intern(self, op: str, args: tuple[Node, ...], value: Any) -> Node:
        key = (op, *map(id, args), value, math.copysign(1.0, value) if op == "const" else 0)
        return self._known.setdefault(key, Node(self, op, args, value))


class Leaves:
    """A namespace in which every name is a leaf; it remembers which were read."""

    T: int | None

    def __init__(self, make: Callable[[str], Node]):
        self._make, self.read = make, dict[str, Node]()

    def __getattr__(self, name: str) -> Node:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self.read:
            self.read[name] = self._make(name)
        return self.read[name]


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
    spike, state, saved = rule.step(m, graph.leaf("step", "a"))
    unknown = [name for name in m.read if name not in rule.state]
    if unknown or state.keys() != rule.state.keys():
        raise RuleError(
            f"rule {rule.name!r}: its step reads {unknown or list(m.read)} and returns {list(state)}, but its state is {list(rule.state)}"
        )
    traced = Traced(graph, graph.lift(spike), _lifted(graph, state), _lifted(graph, saved))
    if not rule.sweeps:
        traced.walks.append(adjoint(traced))
        return traced
    of_neuron: dict[str, Node] = {}
    for sweep in rule.sweeps:
        if traced.walks:
            traced.between.append(_between(rule, T, graph, of_neuron))
            of_neuron = {**of_neuron, **traced.between[-1]} if traced.between[-1] is not None else {}
        traced.walks.append(_walk(rule, sweep, traced, of_neuron))
        of_neuron |= {name: graph.leaf("total", name) for name in sweep.carry}
    return traced


def _between(rule: LearningRule, T: int | None, graph: Graph, of_neuron: dict[str, Node]) -> dict[str, Node] | None:
    sums = Leaves(lambda name: of_neuron[name])
    sums.T = T
    try:
        return _lifted(graph, rule.between(sums))
    except (AttributeError, KeyError, TypeError, RuleError):  # torch's own functions: it runs on tensors
        return None


def _walk(rule: LearningRule, sweep: Sweep, traced: Traced, of_neuron: dict[str, Node]) -> Walk:
    graph = traced.graph
    of_step = {"x": graph.leaf("step", "x"), "g": graph.leaf("step", "g"), "s": traced.spike, **traced.saved}
    c = Leaves(lambda name: graph.leaf("carry", name))
    known = {**of_neuron, **of_step}
    m = Leaves(lambda name: known[name] if name in known else graph.leaf("final" if name in rule.state else "neuron", name))
    put, carry = sweep.body(rule, c, m)
    if carry.keys() != sweep.carry.keys() or not c.read.keys() <= sweep.carry.keys():
        raise RuleError(f"rule {rule.name!r}: sweep {sweep.name!r} carries {list(sweep.carry)}, but reads {list(c.read)} and returns {list(carry)}")
    return Walk(sweep.reverse, sweep.carry, _lifted(graph, put), _lifted(graph, carry))


def _lifted(graph: Graph, values: dict[str, Any]) -> dict[str, Node]:
    return {name: graph.lift(value) for name, value in values.items()}


def order(roots: Iterable[Node], cut: Iterable[Node] = ()) -> list[Node]:
    """The nodes below the roots, arguments first; not looking below the nodes in `cut`."""
    hidden, seen = {id(n) for n in cut}, dict[int, Node]()

    def visit(node: Node) -> None:
        if id(node) not in seen:
            for arg in node.args if id(node) not in hidden else ():
                visit(arg)
            seen[id(node)] = node

    for root in roots:
        visit(root)
    return list(seen.values())


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
