"""A rule whose parts or hooks are not what they should be is refused in one line that names them, wherever they are asked for."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import snn_rules
from snn_rules import Capabilities, LearningRule, RuleError, Training, ops, parameter, sweep
from snn_rules.cli import app
from snn_rules.registry import Registry

FAST = ["--network", "8-10", "--limit-train", "40", "--batch-size", "20", "--epochs", "1", "--T", "4"]


def leaky(**parts: Any) -> type[LearningRule]:
    """A rule by a stranger, some of whose parts are given."""

    def step(self: Any, m: Any, x: Any) -> Any:
        u = 0.5 * m.v + x
        s = ops.spike(u - 1.0, 1.0 / (1.0 + abs(u - 1.0)))
        return s, {"v": u * (1.0 - s), **{name: u for name in self.state if name != "v"}}, {}

    made = type("Leaky", (LearningRule,), {"name": "leaky", "__module__": __name__, "step": step, **parts})
    return dataclasses.dataclass(frozen=True)(made)


def fails(*_: Any, **__: Any) -> Any:
    raise ValueError("two\nlines")


PARTS = {
    "training dict": (
        {"training": {"T": 5}},
        r"its training is {'T': 5}; it should be a snn_rules.Training, whose options are a dict of the rule's own",
    ),
    "training options": ({"training": Training(options=5)}, r"its training is Training\(.*options=5\); it should be a snn_rules.Training, whose"),  # type: ignore[arg-type]
    "training unknown": ({"training": Training(options={"quux": 1})}, r"its training is Training\(.*options={'quux': 1}\); it should be a snn_rules"),
    "capabilities": ({"capabilities": {"exact": True}}, r"its capabilities is {'exact': True}; it should be a snn_rules.Capabilities"),
    "delay": ({"delay": -1}, "its delay is -1; it should be a whole number of steps, at least 0"),
    "diagnostics": ({"diagnostics": {"share": 3}}, "its diagnostics is {'share': 3}; it should be a dict of names and functions"),
    "state list": ({"state": ["v"]}, r"its state is \['v'\]; it should be a dict of names and the numbers at rest"),
    "state name": (
        {"state": {"v": 0.0, "two words": 0.0}},
        "its state is {'v': 0.0, 'two words': 0.0}; it should be a dict of names and the numbers",
    ),
    "state value": ({"state": {"v": None}}, "its state is {'v': None}; it should be a dict of names and the numbers at rest"),
    "state parameter": ({"state": {"v": 0.0, "decay_input": 0.0}}, "its state 'decay_input' is the name of a parameter, of a memory of every"),
    **{
        f"state {name}": ({"state": {"v": 0.0, name: 0.0}}, f"its state '{name}' is the name of something else of a neuron's; give it another")
        for name in ("training", "rule", "path", "forward", "v_reset")
    },
    **{
        f"parameter {name}": (
            {"__annotations__": {name: float}, name: parameter(2.0)},
            f"its parameter '{name}' is the name of a part of every rule or neuron; give it another",
        )
        for name in ("gain", "loss", "window", "given", "replace", "rule", "sweeps", "cite")
    },
    "choices in one string": (
        {"__annotations__": {"mode": str}, "mode": parameter("sub", choices="subtract")},
        r"its parameter 'mode' has choices='subtract'; pass choices=\('sub', ...\), or a number as the default",
    ),
    "no choices": (
        {"__annotations__": {"mode": str}, "mode": parameter("sub")},
        r"its parameter 'mode' has the default 'sub'; pass choices=\('sub', ...\), or a number as the default",
    ),
    "steps and sweeps": (
        {"capabilities": Capabilities(single_step=True), "sweeps": (sweep(reverse=True)(lambda self, c, m: ({"dx": m.g}, {})),)},
        "its capabilities say single_step=True, but its sweeps walk over whole trains; leave one of them out",
    ),
    "field": ({"__annotations__": {"tau": float}, "tau": 2.0}, r"its field 'tau' should be made by snn_rules.parameter\(DEFAULT, UNIT, HELP\)"),
}


@pytest.mark.parametrize("fault", PARTS)
def test_a_rule_of_wrong_parts_is_refused_when_it_is_registered(registry: Registry, fault: str) -> None:
    parts, says = PARTS[fault]
    with pytest.raises(RuleError, match=rf"^<class '.*Leaky'> cannot be registered: leaky: {says}") as refusal:
        registry.register(leaky(**parts))
    assert "\n" not in str(refusal.value) and "leaky" not in registry.rules()


@pytest.mark.parametrize("name", ["", "a,b", "a:b", "My Rule"])
def test_a_name_that_commands_cannot_take_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(
        RuleError, match=rf"cannot be registered: Leaky has the name '{name}'; take letters, digits, _ - and \. for commands write NAME:OPT"
    ):
        registry.register(leaky(name=name))


def test_parts_that_options_choose_are_looked_at_with_them(registry: Registry) -> None:
    parts = {"__annotations__": {"slow": bool}, "slow": parameter(False), "delay": property(lambda rule: -1 if rule.slow else 0)}
    registry.register(leaky(**parts))
    with pytest.raises(RuleError, match=r"^leaky: its delay is -1; it should be a whole number of steps, at least 0$"):
        snn_rules.get_rule("leaky", slow=True)


HOOKS = {
    "loss": (None, "a tensor of one number"),
    "encode": (None, r"a tensor \[T, N, \*\]"),
    "predict": (torch.zeros(2, 1), r"a tensor \[N\] of class indices"),
    "initialize": (None, "the network"),
}


@pytest.mark.parametrize("raises", [False, True], ids=["wrong", "raising"])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_fails_is_one_line_in_a_training(
    registry: Registry, hook: str, raises: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gives, should = HOOKS[hook]

    def body(self: Any, *_: Any, **__: Any) -> Any:
        return fails() if raises else gives

    registry.register(leaky(**{hook: body}))
    done = CliRunner().invoke(app, ["train", "--rule", "leaky", *FAST])
    what = "raises ValueError: two lines" if raises else rf"gives {'None' if gives is None else 'a tensor .2, 1.'}"
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert re.fullmatch(rf"snn-rules: leaky: its {hook} {what}; it should give {should}\n", done.stderr)


@pytest.mark.filterwarnings("ignore:.leaky. runs on torch tensors")
def test_an_answer_of_adopt_and_of_diagnostics(registry: Registry) -> None:
    registry.register(leaky(adopt=lambda self, site, given: None, capabilities=Capabilities(resets=("zero",))))
    with pytest.raises(RuleError, match=r"^convert: '.+': leaky: its adopt gives None; it should give a rule$"):
        snn_rules.build("spiking_resnet18", rule="leaky")
    for count, what in ((fails, "raises ValueError: two lines"), (lambda sums: None, "gives None")):
        registry.register(leaky(diagnostics={"share": count}))
        node = snn_rules.RuleNode("leaky", step_mode="m")
        node(torch.ones(3, 2, 4))
        node._report.values = 3, {}  # as a sweep leaves them
        says = rf"^leaky: its diagnostics\['share'\] {what}; it should give a number, from T and what the sweeps and `between` left$"
        with pytest.raises(RuleError, match=says):
            node.share  # noqa: B018


def test_diagnostics_may_be_a_property() -> None:
    rule = leaky(diagnostics=property(lambda self: {"share": lambda sums: 0.25 * sums.T}))()
    node = snn_rules.RuleNode(rule, step_mode="m")
    x = torch.ones(4, 2, 3, requires_grad=True)
    node(x).sum().backward()
    assert node.share == 1.0
    wrong = leaky(diagnostics=property(lambda self: {"share": 3}))
    with pytest.raises(RuleError, match=r"^leaky: its diagnostics is {'share': 3}; it should be a dict of names and functions$"):
        wrong()
