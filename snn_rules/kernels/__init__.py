"""What runs a rule's step and sweeps over a whole spike train.

`executor(rule, x)` is the one place where an executor is chosen; each offers `forward` and `backward` as `Eager` does.
"""

from __future__ import annotations

from torch import Tensor

from ..rule import LearningRule
from .eager import Eager

__all__ = ["Eager", "executor"]

_eager = Eager()


def executor(rule: LearningRule, x: Tensor) -> Eager:
    """The executor for this rule on the device of `x`."""
    return _eager
