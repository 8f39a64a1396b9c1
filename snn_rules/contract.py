"""What a rule's parts should be: looked at where a rule is made, and where one of its hooks has answered."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from .rule import Capabilities, LearningRule, RuleError, Training


def _is_tensor(given: Any, axes: int | None = None) -> bool:
    from torch import Tensor

    return isinstance(given, Tensor) and axes in (None, given.dim())


def _is_network(given: Any) -> bool:
    from torch import nn

    return isinstance(given, nn.Module)


PARTS: dict[str, tuple[Callable[[LearningRule, Any], bool], str]] = {
    "state": (lambda rule, given: isinstance(given, Mapping) and all(map(_is_state, given.items())), "a dict of names and the numbers at rest"),
    "capabilities": (lambda rule, given: isinstance(given, Capabilities), "a snn_rules.Capabilities"),
    "training": (
        lambda rule, given: isinstance(given, Training) and isinstance(given.options, Mapping) and rule.meanings().keys() >= given.options.keys(),
        "a snn_rules.Training, whose options are a dict of the rule's own",
    ),
    "diagnostics": (lambda rule, given: isinstance(given, Mapping) and all(map(callable, given.values())), "a dict of names and functions"),
    "delay": (lambda rule, given: isinstance(given, int) and given >= 0, "a whole number of steps, at least 0"),
}
HOOKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "adopt": (lambda given: isinstance(given, LearningRule), "a rule"),
    "initialize": (_is_network, "the network"),
    "encode": (_is_tensor, "a tensor [T, N, *]"),
    "loss": (lambda given: _is_tensor(given, 0), "a tensor of one number"),
    "predict": (lambda given: _is_tensor(given, 1), "a tensor [N] of class indices"),
}
OWN = {"x", "s", "g", "dx", "T", "scale"}  # what a sweep's `m` has from elsewhere
NUMBER = "a number, from T and what the sweeps and `between` left"


def _is_state(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and item[0].isidentifier() and isinstance(item[1], numbers.Real)


def check_fields(rule: LearningRule) -> None:
    """Each field of the dataclass knows its range, and hides no part of a rule."""
    for field in dataclasses.fields(rule):
        if field.name in {"rule", "site", "path"} or (hasattr(LearningRule, field.name) and field.name not in ("decay_input", "delay")):
            raise RuleError(f"{rule.name}: its parameter {field.name!r} is the name of a part of every rule or neuron; give it another")
        if "choices" not in field.metadata:
            raise RuleError(f"{rule.name}: its field {field.name!r} should be made by snn_rules.parameter(DEFAULT, UNIT, HELP)")
        choices = field.metadata["choices"]
        if isinstance(choices, str) or not (choices or isinstance(field.default, numbers.Real)):
            what = f"choices={choices!r}" if choices else f"the default {field.default!r}"
            raise RuleError(
                f"{rule.name}: its parameter {field.name!r} has {what}; pass choices=({field.default!r}, ...), or a number as the default"
            )


def check_parts(rule: LearningRule) -> None:
    """The values of the class, or what its properties make of the parameters."""
    for part, (fits, should) in PARTS.items():
        given = getattr(rule, part)
        if not fits(rule, given):
            raise RuleError(f"{rule.name}: its {part} is {given!r}; it should be {should}")
    if "v" not in rule.state:
        raise RuleError(
            f"{rule.name}: its state has no 'v', the potential that node.v and store_v_seq read; give one of its states that name: "
            "state = {'v': 0.0, ...}"
        )
    if taken := [name for name in rule.state if name in {"late", "y"} | OWN | rule.meanings().keys()]:
        raise RuleError(f"{rule.name}: its state {taken[0]!r} is the name of a parameter, of a memory of every neuron's, or of what sweeps read")
    if rule.capabilities.single_step and rule.sweeps:
        raise RuleError(f"{rule.name}: its capabilities say single_step=True, but its sweeps walk over whole trains; leave one of them out")


def answering(name: str, hook: Any) -> Any:
    """The method, whose failures and wrong answers are refusals that name it."""
    fits, should = HOOKS[name]

    @functools.wraps(hook)
    def asked(self: LearningRule, *args: Any, **kwargs: Any) -> Any:
        given = _ask(self.name, name, should, hook, self, *args, **kwargs)
        if not fits(given):
            what = f"a tensor {list(given.shape)}" if _is_tensor(given) else repr(given)
            raise RuleError(f"{self.name}: its {name} gives {what}; it should give {should}")
        return given

    return asked


def counting(cls: type[LearningRule]) -> Any:
    """The diagnostics of a class, whose failures are refusals that name them."""
    if not (isinstance(cls.diagnostics, Mapping) and all(map(callable, cls.diagnostics.values()))):
        return cls.diagnostics  # refused where a rule is made
    return {
        name: functools.partial(_ask, getattr(cls, "name", cls.__qualname__), f"diagnostics[{name!r}]", NUMBER, count)
        for name, count in cls.diagnostics.items()
    }


def number(rule: LearningRule, name: str, sums: Any) -> float:
    """What the rule counts of itself under this name."""
    given = rule.diagnostics[name](sums)
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise RuleError(f"{rule.name}: its diagnostics[{name!r}] gives {given!r}; it should give {NUMBER}") from cause


def _ask(rule: str, name: str, should: str, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return hook(*args, **kwargs)
    except RuleError:
        raise
    except Exception as cause:
        said = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise RuleError(f"{rule}: its {name} raises {said}; it should give {should}") from cause
