"""The keywords and attributes of SpikingJelly's neurons, as a rule's options."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .registry import get_rule
from .rule import LearningRule, RuleError, warn_once


def configure(rule: str | LearningRule, options: Mapping[str, Any]) -> tuple[LearningRule, float | None]:
    """The rule with its options, given the keywords of LIFNode; and `v_reset`."""
    base = get_rule(rule)
    names = base.meanings()
    known = {name: value for name, value in options.items() if name in names}
    subtracts = options.get("reset", getattr(base, "reset", "zero")) == "subtract"
    v_reset = options.get("v_reset", None if subtracts else 0.0)
    if v_reset is not None and (not isinstance(v_reset, numbers.Real) or not math.isfinite(v_reset)):
        raise RuleError(f"{base.name}: v_reset={v_reset!r} should be a number, or None for a reset by subtraction")
    if v_reset is None and "subtract" not in base.capabilities.resets:
        raise RuleError(f"{base.name}: v_reset=None means reset by subtraction, which this rule does not know; pass v_reset=0.0")
    if "reset" in options and "reset" in names and subtracts != (v_reset is None):
        raise RuleError(f"{base.name}: v_reset={v_reset!r} and reset={options['reset']!r} say two things; pass one of them")
    if "v_reset" in options and "reset" in names:
        known.setdefault("reset", "subtract" if v_reset is None else "zero")
    for name in ("tau", "surrogate_function", "detach_reset", "backend"):
        if name in options and name not in names:
            warn_once(base.name, name)
    unknown = set(options) - set(names) - {"v_reset", "tau", "surrogate_function", "detach_reset", "backend"}
    if unknown:
        base.resolve({name: None for name in unknown})  # raises, and says what there is
    configured = base.replace(**known)
    if v_reset and hasattr(configured, "v_threshold"):  # the potential is measured from v_reset
        configured = configured.replace(v_threshold=configured.v_threshold - v_reset)
    return configured, v_reset


@contextmanager
def misplaced(rule: str | LearningRule, keywords: Mapping[str, Any]) -> Iterator[None]:
    """Of the keywords for a model that it does not know, name those that are the rule's."""
    try:
        yield
    except TypeError as cause:
        own = {name: value for name, value in keywords.items() if name in get_rule(rule).meanings() and f"argument '{name}'" in str(cause)}
        if not own:
            raise
        raise RuleError(f"build: {', '.join(own)} is no keyword of the model, but an option of the rule; pass rule_options={own!r}") from cause
