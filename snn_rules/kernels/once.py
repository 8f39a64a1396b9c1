"""What is made for a rule is made once; what cannot be made is tried once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..rule import LearningRule

Made = TypeVar("Made")


class Once(Generic[Made]):
    """`make(rule, *key)`, kept; a failure of these kinds is kept too, and raised at each call.

    Rules go by identity: comparing them takes longer than a small kernel.
    """

    def __init__(self, make: Callable[..., Made], *failures: type[Exception]):
        self._make, self._failures = make, failures
        self._found: dict[tuple[Any, ...], tuple[LearningRule, Made | Exception]] = {}

    def __call__(self, rule: LearningRule, *key: Any) -> Made:
        found = self._found.get((id(rule), *key))
        if found is None:
            if len(self._found) >= 4096:
                self.forget()
            found = self._found[(id(rule), *key)] = rule, self._try(rule, *key)
        if isinstance(found[1], Exception):
            raise type(found[1])(str(found[1])) from found[1]
        return found[1]

    def _try(self, rule: LearningRule, *key: Any) -> Made | Exception:
        try:
            return self._make(rule, *key)
        except self._failures as cause:
            return cause

    def forget(self) -> None:
        self._found.clear()
