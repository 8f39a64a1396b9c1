"""There is one text of each rule: its step and sweeps, unchanged, run on symbols that record the expression; evaluated,
the record gives the very numbers that torch gives. This is the seam through which other executors enter."""

import operator
from types import SimpleNamespace

import pytest
import torch

import snn_rules
from snn_rules import ops

BINARY = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "ge": ">=", "gt": ">", "le": "<=", "lt": "<", "and_": "&", "or_": "|"}


class Symbol:
    """An expression: an operation and what it is applied to, or a name."""

    def __init__(self, op, *args):
        self.op, self.args = op, args

    def __bool__(self):
        raise TypeError("a step may not branch on data: use where(condition, a, b)")

    def __neg__(self):
        return Symbol(operator.neg, self)

    def where(self, a, b):
        return Symbol(ops.where, self, a, b)

    def spike(self, slope):
        return Symbol(ops.spike, self, slope)

    def evaluate(self, values):
        if self.op is None:
            return values[self.args[0]]
        return self.op(*(a.evaluate(values) if isinstance(a, Symbol) else a for a in self.args))


for name in BINARY:
    op, plain = getattr(operator, name), name.strip("_")
    setattr(Symbol, f"__{plain}__", lambda a, b, op=op: Symbol(op, a, b))
    setattr(Symbol, f"__r{plain}__", lambda a, b, op=op: Symbol(op, b, a))
for name in ("exp", "heaviside", "minimum", "maximum"):
    op = getattr(ops, name)
    setattr(Symbol, name, lambda *args, op=op: Symbol(op, *args))


class Names:
    """A namespace in which every name is a symbol; it remembers which were read."""

    def __init__(self):
        self.read = {}

    def __getattr__(self, name):
        return self.read.setdefault(name, Symbol(None, name))


RULES = [
    ("surrogate", {}), ("surrogate", {"surrogate": "atan", "reset": "subtract", "detach_reset": True}),
    ("tssl", {}), ("tssl", {"reset": "subtract", "dadt": "shift", "warmup": "layer", "fire": ">"}),
    ("tssl", {"dadt": "continuous", "warmup": "off", "psc": "output", "intra": False, "leak": False}),
    ("strsbp", {}), ("stdbp", {}), ("stdbp", {"revive": 1.0}),
]  # fmt: skip


def values_for(names, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(50, generator=generator, dtype=torch.float64) for name in names}
    flags = {"s", "spike", "active", "virtual", "fired", "cold", "last"}
    return {name: (value > 0).double() if name in flags else value for name, value in drawn.items()}


def check(recorded, values, direct):
    assert recorded.keys() == direct.keys()
    for name, expression in recorded.items():
        got = expression.evaluate(values) if isinstance(expression, Symbol) else expression
        want = direct[name]
        if isinstance(want, torch.Tensor):
            assert torch.equal(got, want), name
        else:
            assert got == want, name


@pytest.mark.parametrize(("name", "options"), RULES)
def test_step(name, options):
    rule, m = snn_rules.get_rule(name, **options), Names()
    s, state, saved = rule.step(m, m.x)
    assert state.keys() == rule.state.keys()
    values = values_for(m.read, 0)
    s_direct, state_direct, saved_direct = rule.step(SimpleNamespace(**values), values["x"])
    check({"s": s, **state, **saved}, values, {"s": s_direct, **state_direct, **saved_direct})


@pytest.mark.parametrize(("name", "options"), RULES)
def test_sweeps(name, options):
    rule = snn_rules.get_rule(name, **options)
    for sweep in rule.sweeps:
        m, c = Names(), Names()
        put, carry = sweep.body(rule, c, m)
        assert carry.keys() == sweep.carry.keys()
        assert c.read.keys() <= sweep.carry.keys()
        of_step, of_neuron = values_for(m.read, 1), values_for(c.read, 2)
        put_direct, carry_direct = sweep.body(rule, SimpleNamespace(**of_neuron), SimpleNamespace(**of_step))
        # a name may be both a carry and a value of the step: evaluate with the two kept apart
        for symbol, key in [(symbol, name) for name, symbol in c.read.items()]:
            symbol.args = (f"carry {key}",)
        values = {**of_step, **{f"carry {key}": value for key, value in of_neuron.items()}}
        check({**put, **{f"next {k}": v for k, v in carry.items()}}, values, {**put_direct, **{f"next {k}": v for k, v in carry_direct.items()}})
    if rule.sweeps:
        assert "dx" in put


def test_event_step_of_stdbp():
    rule, m = snn_rules.get_rule("stdbp", mode="event"), Names()
    after = rule.event(m, m.w, m.dt)
    values = values_for(m.read, 3)
    check(after, values, rule.event(SimpleNamespace(**values), values["w"], values["dt"]))


def test_a_branch_on_data_is_refused():
    with pytest.raises(TypeError, match=r"use where"):
        if Symbol(None, "u") > 1.0:
            pass


def test_plain_numbers_run_too():
    """A rule is readable enough to be worked by hand."""
    rule = snn_rules.get_rule("surrogate", tau_m=2.0)
    s, state, _ = rule.step(SimpleNamespace(v=0.5), 1.0)
    assert (s, state["v"]) == (1.0, 0.0)
    with pytest.raises(TypeError, match="use heaviside"):
        ops.where(torch.tensor([True]), 1.0, 0.0)
