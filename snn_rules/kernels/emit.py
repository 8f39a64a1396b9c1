"""Expression graphs as lines of C: one text for vectors under g++ and for a thread under CUDA.

`K(c)` is a constant, `H(c)` the condition c as 1 and 0; the two targets define them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .graph import BOOLEAN, Node, below, order

FORMS = {
    "neg": "-{0}",
    "not": "!{0}",
    "where": "{0} ? {1} : {2}",
    "exp": "exp_({0})",
    "exp_part": "exp_part({0}, true)",
    "exp_power": "exp_power({0})",
    "fma": "fma_({0}, {1}, {2})",
    "fnma": "fnma_({0}, {1}, {2})",
    "minimum": "min_({0}, {1})",  # NaN stays
    "maximum": "max_({0}, {1})",
}


class Lines:
    """Lines that compute nodes once each; `name(leaf)` says how an input is called."""

    def __init__(self, name: Callable[[Node], str], known: dict[int, str] | None = None, prefix: str = "e"):
        self.text: list[str] = []
        self.known = dict(known or {})  # what each node is called, by its identity
        self._name, self._prefix = name, prefix

    def __call__(self, node: Node) -> str:
        if id(node) not in self.known:  # which hides what is below it
            for arg in node.args:
                self(arg)
            self.known[id(node)] = self._one(node)
        return self.known[id(node)]

    def _one(self, node: Node) -> str:
        if node.op == "const":
            return f"K({constant(node.value)})"
        if node.op == "leaf":
            return self._name(node)
        args = [self.known[id(a)] for a in node.args]
        form = FORMS.get(node.op) or f"{{0}} {node.op} {{1}}"
        name = f"{self._prefix}{len(self.text)}"
        self.text.append(f"const {'B' if node.op in BOOLEAN else 'V'} {name} = {form.format(*args)};")
        return name


def condition(node: Node) -> Node | None:
    """The condition of which the node is the value, if it is one: itself, or as 1 and 0."""
    if node.op in BOOLEAN:
        return node
    one = node.op == "where" and [arg.value if arg.op == "const" else None for arg in node.args[1:]] == [1.0, 0.0]
    return node.args[0] if one else None


def number(node: Node, name: str) -> str:
    """The node's value where numbers are kept: a condition is 1 or 0 there."""
    return f"{name} ? K(1) : K(0)" if node.op in BOOLEAN else name


def constant(value: float) -> str:
    """A number such that float and double each read the nearest one."""
    return {"inf": "INFINITY", "-inf": "-INFINITY"}.get(repr(value), repr(value))


def kind_of(pointer: str) -> str:
    """The type of an array's values: `H`, of what layers hand to each other, or `R`, of the state."""
    return "H" if pointer in ("x", "s", "g", "dx") else "R"


def leaves(roots: Iterable[Node], cut: Iterable[Node] = ()) -> list[tuple[str, str]]:
    """The (kind, name) of the leaves below the roots, not looking below the nodes in `cut`."""
    return [node.value for node in below(roots, cut) if node.op == "leaf"]


def of_the_neuron(node: Node, kept: Iterable[Node]) -> bool:
    """Whether it is the same at each step: made of the neuron's own values alone, and of nothing in `kept`, which lies there for each step."""
    hidden = {id(n) for n in kept}
    kinds = {"kept" if id(n) in hidden else n.value[0] for n in order([node], kept) if n.op == "leaf" or id(n) in hidden}
    return bool(kinds) and kinds <= {"final", "neuron", "total"}
