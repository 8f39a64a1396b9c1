"""What runs a rule's step and sweeps over a whole spike train.

`executor(rule, x)` is the one place where an executor is chosen; each offers `forward` and `backward` as `Eager` does.
"""

from __future__ import annotations

import os
import warnings
from functools import lru_cache

import torch
from torch import Tensor

from ..rule import LearningRule, RuleError
from . import launch
from .build import NoCompiler
from .compiled import Compiled, kernels
from .eager import Eager

__all__ = ["Compiled", "Eager", "executor"]


def executor(rule: LearningRule, x: Tensor, recurrent: bool = False) -> Eager:
    """The executor for this rule on the device and in the dtype of `x`. What falls back to torch says so, once."""
    if os.environ.get("SNN_RULES_EXECUTOR") == "eager":
        return _eager("SNN_RULES_EXECUTOR=eager")
    device = x.device.type
    if device not in ("cpu", "cuda"):
        return _eager(f"there are no kernels for {device}")
    try:
        if device == "cuda":
            launch.kernels(rule, x.shape[0], x.dtype == torch.float64, x.device, recurrent)
            return _launched
        kernels(rule, x.shape[0], x.dtype == torch.float64, recurrent)
    except (NoCompiler, launch.NoCupy, RuleError) as cause:
        _say_once(f"{rule.name!r} runs on torch tensors, many times slower: {cause}")
        return _eager(str(cause))
    return _compiled


_compiled = Compiled()
_launched = launch.Launched()


@lru_cache(maxsize=64)
def _eager(why: str) -> Eager:
    made = Eager()
    made.why = why
    return made


@lru_cache(maxsize=64)
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
