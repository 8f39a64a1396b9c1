"""Graphs made cheaper before they are written: the same values by fewer operations, or by shorter chains of them.

What spikes and states are made of, and what conditions look at, keeps its bits. In what only gradients are made of, a product and
a sum become one fused multiply-add, which is equal to round-off.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from .graph import Node, order
from .prelude import NEAR
from .trace import Traced, Walk

TURNED = {">=": "<=", ">": "<", "<=": ">=", "<": ">", "==": "==", "!=": "!="}  # comparisons, with the sides changed
SMALL = 1e-30  # a difference from a number beyond it is never denormal, and so never taken for zero


def lowered(traced: Traced) -> Traced:
    """The same rule by cheaper nodes."""
    again: dict[int, Node] = {}

    def exact(nodes: dict[str, Node], of_step: bool = False) -> dict[str, Node]:
        for node in order(nodes.values()):
            if id(node) not in again:
                again[id(node)] = _exact(node, tuple(again[id(a)] for a in node.args), of_step)
        return {name: again[id(node)] for name, node in nodes.items()}

    state = exact(traced.state, True)
    spike, saved = exact({"": traced.spike}, True)[""], exact(traced.saved, True)
    walks = [Walk(w.reverse, w.start, exact(w.put), exact(w.carry)) for w in traced.walks]
    between = [None if values is None else exact(values) for values in traced.between]
    looked_at = [arg for node in again.values() if node.op in TURNED for arg in node.args]
    rigid = {id(node) for node in order([spike, *state.values(), *saved.values(), *looked_at])}
    walks = [_fused(walk, rigid) if walk.reverse else walk for walk in walks]
    return replace(traced, spike=spike, state=state, saved=saved, walks=walks, between=between)


def _exact(node: Node, args: tuple[Node, ...], of_step: bool) -> Node:
    """The node, of these arguments in the place of its own: equal for every float, but perhaps for the sign of a zero."""
    graph, op = node.graph, node.op
    if op in ("leaf", "const"):
        return node
    if op == "spike":  # the slope is for the backward pass
        return graph.node("where", _compared(">=", args[0]), 1.0, 0.0)
    if op in TURNED and args[1].value == 0.0:
        return _compared(op, args[0])
    if op == "+" or (op == "*" and of_step):  # it does not wait for the condition; or is one instruction, under a mask
        neutral = 0.0 if op == "+" else 1.0
        for x, other in (args, args[::-1]):
            numbers = [c.value if c.op == "const" else None for c in other.args[1:]] if other.op == "where" else []
            kept = op == "+" and numbers == [1.0, 0.0]  # a spike, which the walk back finds as it is
            if neutral in numbers and None not in numbers and not kept:
                return graph.node("where", other.args[0], *(x if number == neutral else graph.node(op, x, number) for number in numbers))
    if op == "exp" and _near(args[0]):  # a product, with which a sum can be fused
        return graph.node("*", graph.node("exp_part", args[0]), graph.node("exp_power", args[0]))
    if op == "neg" and args[0].op == "*" and args[0].args[0].op == "const":
        return graph.node("*", -args[0].args[0].value, args[0].args[1])
    if op in ("+", "-") and args[1].op == "neg":
        return graph.node("-" if op == "+" else "+", args[0], args[1].args[0])
    return graph.node(op, *args)


def _near(node: Node) -> bool:
    """The node is clipped within `NEAR`."""
    bounds = {n.op: n.args[1].value for n in (node, *node.args[:1]) if n.op in ("minimum", "maximum") and n.args[1].op == "const"}
    return bool(bounds.get("minimum", 99.0) <= NEAR and bounds.get("maximum", -99.0) >= -NEAR)


def _compared(op: str, a: Node) -> Node:
    """`a` compared with zero: of a difference, its two sides with each other."""
    if a.op == "neg":
        return a.graph.node(TURNED[op], a.args[0], 0.0)
    if a.op == "-":
        x, y = a.args
        if _plain(y):
            return a.graph.node(op, x, y)
        if _plain(x):
            return a.graph.node(TURNED[op], y, x)
    return a.graph.node(op, a, 0.0)


def _plain(node: Node) -> bool:
    return node.op == "const" and SMALL < abs(node.value) < math.inf


def _fused(walk: Walk, rigid: set[int]) -> Walk:
    """A walk whose products, where a sum alone uses them, are fused with it."""
    roots = [*walk.put.values(), *walk.carry.values()]
    nodes = order(roots)
    used = Counter(id(a) for node in nodes for a in node.args) + Counter(map(id, roots))
    again: dict[int, Node] = {}
    for node in nodes:
        args = tuple(again[id(a)] for a in node.args)
        again[id(node)] = node if node.op in ("leaf", "const") else node.graph.node(node.op, *args)
        if node.op in ("+", "-") and id(node) not in rigid:
            for k in (1, 0) if node.op == "+" else (1,):
                product = node.args[k]
                if product.op == "*" and used[id(product)] == 1 and id(product) not in rigid:
                    again[id(node)] = node.graph.node("fma" if node.op == "+" else "fnma", *again[id(product)].args, args[1 - k])
                    break
    return Walk(walk.reverse, walk.start, *({name: again[id(node)] for name, node in some.items()} for some in (walk.put, walk.carry)))
