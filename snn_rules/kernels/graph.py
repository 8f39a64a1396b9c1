"""Expressions as graphs: what a rule's text makes when it is run on symbols."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..rule import MalformedRule, RuleError

BOOLEAN = {">=", ">", "<=", "<", "==", "!=", "&", "|", "not"}


class Node:
    """An operation and what it is applied to. Equal expressions are one object (see `Graph.node`), and go by their identity:
    `==` and `!=` are a rule's own, and make nodes."""

    __slots__ = ("args", "graph", "op", "value")
    __hash__ = object.__hash__

    def __init__(self, graph: Graph, op: str, args: tuple[Node, ...], value: Any):
        self.graph, self.op, self.args, self.value = graph, op, args, value

    def __bool__(self) -> bool:
        raise MalformedRule("a step or sweep branches on data (if, and, or, not, max()); write where(condition, a, b), & and |, minimum, maximum")

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

    def __invert__(self) -> Node:
        return self.graph.node("not", self)

    def __abs__(self) -> Node:
        """By its sign, which is 0 at zero: torch's derivative, too."""
        node = self.graph.node
        return node("*", self, node("where", node(">", self, 0.0), 1.0, node("where", node("<", self, 0.0), -1.0, 0.0)))

    def __pow__(self, power: Any) -> Node:
        return self.graph.node("*", self, self) if isinstance(power, (int, float)) and power == 2 else NotImplemented


def _in_place(a: Node, b: Any) -> Node:
    raise MalformedRule("a step or sweep has += or its like, which changes torch's tensors where they lie; write a = a + b")


def _operators() -> None:
    def make(op: str, swap: bool) -> Callable[[Node, Any], Node]:
        return (lambda a, b: a.graph.node(op, b, a)) if swap else (lambda a, b: a.graph.node(op, a, b))

    for name, op in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "and": "&", "or": "|"}.items():
        setattr(Node, f"__{name}__", make(op, False))
        setattr(Node, f"__r{name}__", make(op, True))
    for name in ("add", "sub", "mul", "truediv", "and", "or"):
        setattr(Node, f"__i{name}__", _in_place)
    for name, op in {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "==", "ne": "!="}.items():
        setattr(Node, f"__{name}__", make(op, False))


_operators()


class Graph:
    """Makes nodes; folds only what is exact for every float, but perhaps for the sign of a zero."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Node] = {}

    def leaf(self, kind: str, name: str) -> Node:
        """An input: a "state" before the step, a "carry", a "final" state, a "total" (the final carry of a walk before),
        any other value of the "neuron", or one of the "step":
        `a`, the input that arrives; `x`, the input that is sent (`delay` steps earlier); `g`, the gradient of the spike."""
        return self._intern("leaf", (), (kind, name))

    def node(self, op: str, *given: Any) -> Node:
        if op == "where" and all(self._holds(a) for a in given[1:]) and not all(isinstance(a, bool) for a in given[1:]):
            return self.node("|", self.node("&", given[0], given[1]), self.node("&", self.node("not", given[0]), given[2]))
        if (op == "-" and any(map(self._holds, given))) or (op == "+" and all(map(self._holds, given))):
            raise MalformedRule(f"a step or sweep has a condition in {op!r}, which torch refuses or takes for 'or'; write c * 1.0 in the place of c")
        conditions = 1 if op == "where" else len(given) if op in ("&", "|", "not") else 0
        args = (*map(self.condition, given[:conditions]), *map(self.number, given[conditions:]))
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

    def number(self, value: Any) -> Node:
        """The value in arithmetic: a condition is 1 or 0 there, as in torch."""
        node = self.lift(value)
        return self.node("where", node, 1.0, 0.0) if node.op in BOOLEAN else node

    def condition(self, value: Any) -> Node:
        """The value as torch takes it for a condition: it takes no numbers."""
        if isinstance(value, bool):
            return self.node(">", float(value), 0.0)
        if not self._holds(value):
            raise RuleError("a step or sweep gives a number to where, &, | or ~, which take conditions; write x != 0.0 in the place of x")
        return self.lift(value)

    @staticmethod
    def _holds(value: Any) -> bool:
        return isinstance(value, bool) or (isinstance(value, Node) and value.op in BOOLEAN)

    def lift(self, value: Any) -> Node:
        if isinstance(value, Node):
            return value
        if isinstance(value, (int, float)):
            if value != value:
                raise MalformedRule("a step or sweep uses nan, of which everything after it is made")
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


def below(roots: Iterable[Node], cut: Iterable[Node] = ()) -> list[Node]:
    """The same without the nodes in `cut`."""
    hidden = {id(n) for n in cut}
    return [node for node in order(roots, cut) if id(node) not in hidden]
