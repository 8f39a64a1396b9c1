"""What a step and a sweep return, looked at alike where they run on symbols and on tensors."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ..contract import OWN
from ..rule import LearningRule, MalformedRule, Sweep, Values


class Unmade(MalformedRule, AttributeError):
    """A name that is read, and that nothing has made; `hasattr` asks for it in peace."""


class Given(SimpleNamespace):
    """The tensors that a part of a rule reads by their names."""

    def __init__(self, rule: LearningRule, what: str, values: Values) -> None:
        super().__init__(**values)
        self.__dict__["of rule"] = rule.name, what

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        given = dict(vars(self))
        rule, what = given.pop("of rule")
        raise Unmade(f"rule {rule!r}: its {what} reads {name!r}; it is given {', '.join(given) or 'nothing'}")


def stepped(rule: LearningRule, given: Any) -> tuple[Any, Values, Values]:
    """The spike, the state after the step, what is saved."""
    if not _ends_in_dicts(given, 3):
        raise _wrong(rule, "step", given, "the spike, a dict of the state, a dict of what the sweeps read: return s, {'v': v}, {}")
    _, state, saved = given
    if state.keys() != rule.state.keys():
        raise MalformedRule(f"rule {rule.name!r}: its step returns {list(state)}, but its state is {list(rule.state)}")
    if taken := OWN & saved.keys():
        raise MalformedRule(f"rule {rule.name!r}: its step saves {sorted(taken)[0]!r}, a name that sweeps have for something else; give it another")
    return given  # type: ignore[no-any-return]


def swept(rule: LearningRule, sweep: Sweep, given: Any) -> tuple[Values, Values]:
    """What the sweep puts out at the step, what it carries on."""
    if not _ends_in_dicts(given, 2):
        raise _wrong(rule, f"sweep {sweep.name!r}", given, "a dict of what it puts out at the step, a dict of what it carries: return {'dx': dx}, {}")
    put, carry = given
    if taken := OWN & put.keys() - {"dx"}:
        raise MalformedRule(f"rule {rule.name!r}: its sweep {sweep.name!r} puts out {sorted(taken)[0]!r}, which sweeps have; give it another name")
    if carry.keys() != sweep.carry.keys():
        raise MalformedRule(f"rule {rule.name!r}: its sweep {sweep.name!r} carries {list(sweep.carry)}, but returns {list(carry)}")
    if taken := {"T", "scale"} & carry.keys():
        raise MalformedRule(f"rule {rule.name!r}: its sweep {sweep.name!r} carries {sorted(taken)[0]!r}, a name that `between` has; give it another")
    if sweep is rule.sweeps[-1] and put.keys() != {"dx"}:
        raise MalformedRule(f"rule {rule.name!r}: its last sweep {sweep.name!r} puts out {list(put)}; it should put out 'dx' and nothing else")
    return given  # type: ignore[no-any-return]


def handed(rule: LearningRule, given: Any, of_steps: Iterable[str]) -> Values:
    """What `between` makes for the next sweep; `of_steps` are names of the values of each step."""
    if not isinstance(given, dict):
        raise _wrong(rule, "between", given, "a dict of values of each neuron: return {}")
    if taken := (OWN - {"scale"} | rule.state.keys() | {*of_steps}) & given.keys():
        raise MalformedRule(f"rule {rule.name!r}: its between makes {sorted(taken)[0]!r}, which sweeps have already; give it another name")
    return given


def coupled(rule: LearningRule, given: Any) -> tuple[Any, Any] | None:
    """The factors of the errors and of the weights' gradient."""
    if given is not None and not (isinstance(given, tuple) and len(given) == 2):
        raise _wrong(rule, "couple", given, "two tensors [N, F], the factors of the errors and of the weights' gradient, or None")
    return given


def _ends_in_dicts(given: Any, length: int) -> bool:
    return isinstance(given, tuple) and len(given) == length and all(isinstance(one, dict) for one in given[-2:])


def _wrong(rule: LearningRule, what: str, given: Any, should: str) -> MalformedRule:
    kinds = ", ".join(type(one).__name__ for one in given) if isinstance(given, tuple) else type(given).__name__
    return MalformedRule(f"rule {rule.name!r}: its {what} returns ({kinds}); it should return {should}")
