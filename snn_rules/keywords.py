"""The keywords and attributes of SpikingJelly's neurons, as a rule's options."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .registry import get_rule
from .rule import LearningRule, RuleError, warn_once


def meanings(rule: LearningRule) -> dict[str, str]:
    """The rule's parameters by their names and aliases: {"tau_m": "tau_m", "tau": "tau_m", ...}."""
    own = {field.name: field.name for field in dataclasses.fields(rule)}
    return own | {alias: name for alias, name in rule.aliases.items() if name in own}


def configure(rule: str | LearningRule, options: Mapping[str, Any]) -> tuple[LearningRule, float | None]:
    """The rule with its options, given the keywords of LIFNode; and `v_reset`."""
    base = get_rule(rule)
    names = meanings(base)
    known = {name: value for name, value in options.items() if name in names}
    v_reset = options.get("v_reset", None if getattr(base, "reset", "zero") == "subtract" else 0.0)
    if v_reset is not None and (not isinstance(v_reset, numbers.Real) or not math.isfinite(v_reset)):
        raise RuleError(f"{base.name}: v_reset={v_reset!r} should be a number, or None for a reset by subtraction")
    if v_reset is None and "subtract" not in base.capabilities.resets:
        raise RuleError(f"{base.name}: v_reset=None means reset by subtraction, which this rule does not know; pass v_reset=0.0")
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
        own = {name: value for name, value in keywords.items() if name in meanings(get_rule(rule)) and f"argument '{name}'" in str(cause)}
        if not own:
            raise
        raise RuleError(f"build: {', '.join(own)} is no keyword of the model, but an option of the rule; pass rule_options={own!r}") from cause
