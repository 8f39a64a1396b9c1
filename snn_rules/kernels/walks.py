"""What the walks of a kernel do in one step, for C++ and CUDA alike; how they go from step to step is each one's own.

A name says what a value is: `v_NAME` a state, `f_NAME` what a sweep carries ahead, `k_NAME` what one carries back, `n_NAME` a value
of each neuron, `z0`, `z1`... the values of each step that the walk back finds in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .emit import Lines, constant, of_the_neuron
from .graph import BOOLEAN, Node, order
from .program import Program, Stage

NOW = "t * M + j"
AHEAD = {"state": "v_", "carry": "f_", "step": "", "neuron": "n_", "total": "n_"}


@dataclass(frozen=True)
class Language:
    """How a value of an array is read and written; results may go past the caches."""

    index: str  # the type of a step's number
    read: str
    write: str
    result: str

    def get(self, name: str, at: str = "j") -> str:
        return self.read.format(name=name, at=at)

    def put(self, name: str, value: str, at: str = "j") -> str:
        return self.write.format(name=name, at=at, value=value)

    def out(self, name: str, value: str, at: str = "j") -> str:
        return self.result.format(name=name, at=at, value=value)


def ahead(leaf: Node) -> str:
    """What the walk ahead calls an input."""
    kind, name = leaf.value
    return f"{AHEAD[kind]}{name}"


def times(gain: float) -> str:
    """The input's factor."""
    return "" if gain == 1.0 else f" * K({constant(gain)})"


def earlier(delay: int) -> str:
    """The place of the neuron's value of so many steps before."""
    return f"(t - {delay}) * M + j" if delay else NOW


def delayed(program: Program, language: Language) -> str:
    """The input of `delay` steps before step t, at first the queue of the call before."""
    delay, get = program.delay, language.get
    return f"(t < {delay} ? p_late ? {get('late', NOW)} : K(0) : {get('x', earlier(delay))})" if delay else get("x", NOW)


def loads(program: Program, language: Language, names: Iterable[str]) -> list[str]:
    """The step's own values: `a`, what arrives; `x`, what is sent; `g`, the gradient of the spike."""
    sources = {
        "a": delayed(program, language) + times(program.gain),
        "x": language.get(program.sent, NOW) + times(program.gain),
        "g": language.get("g", NOW),
    }
    return [f"const V {name} = {sources[name]};" for name in names]


def found(k: int, node: Node, read: str) -> str:
    """A value of the step, which lies in memory as a number."""
    return f"const B z{k} = {read} != K(0);" if node.op in BOOLEAN else f"const V z{k} = {read};"


def assign(values: Mapping[str, str]) -> list[str]:
    """All at once: a new value may be made of the others' old ones."""
    return [*(f"const V new_{n} = {value};" for n, value in values.items()), *(f"{n} = new_{n};" for n in values)]


@dataclass(frozen=True)
class Back:
    """A walk back."""

    once: Lines  # what is the same at each step
    beyond: list[str]  # the gradient of the last inputs, which are still on their way after the last step
    lines: list[str]  # of each step,
    puts: list[str]  # what it writes,
    after: dict[str, str]  # and the new values of what it carries
    left: dict[str, str]  # values of each neuron that the walk ahead has made


def back(program: Program, stage: Stage, language: Language) -> Back:
    """The reverse sweep of a stage, after the walk ahead: `v_NAME` and `f_NAME` are what they are after the last step."""
    walk, delay = stage.back, program.delay
    assert walk is not None
    totals = stage.ahead.carry if stage.ahead else {}

    def name(leaf: Node) -> str:
        kind, what = leaf.value
        prefix = {"carry": "k_", "neuron": "n_", "final": "v_", "step": "", "total": "f_" if what in totals else "n_"}
        return f"{prefix[kind]}{what}"

    once = Lines(name, prefix="h")
    for node in order([*walk.put.values(), *walk.carry.values(), *stage.between.values()], stage.scratch):
        if of_the_neuron(node, stage.scratch):
            once(node)
    lines = Lines(name, {**once.known, **{id(node): f"z{k}" for k, node in enumerate(stage.scratch)}}, prefix="b")
    factors = f"{times(program.gain)}{' * n_scale' if stage.scaled else ''}"
    puts = [language.out(n, f"{lines(node)}{factors}", earlier(delay)) for n, node in walk.put.items()]
    beyond = [f"for ({language.index} t = T < {delay} ? 0 : T - {delay}; t < T; ++t) {language.out(n, 'K(0)', NOW)}" for n in walk.put if delay]
    after = {f"k_{n}": lines(node) for n, node in walk.carry.items()}
    left = {n: f"f_{n}" if n in totals else once(stage.between[n]) for n in stage.writes if n not in walk.carry}
    return Back(once, beyond, lines.text, [f"if (t >= {delay}) {put}" if delay else put for put in puts], after, left)
