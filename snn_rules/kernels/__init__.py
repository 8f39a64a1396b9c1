"""What runs a rule's step and sweeps over a whole spike train.

`executor(rule, x)` is the one place where an executor is chosen; each offers `forward` and `backward` as `Eager` does.
"""

from __future__ import annotations

import os
import warnings
from functools import lru_cache

from torch import Tensor

from ..rule import LearningRule, MalformedRule, RuleError
from . import compiled, launch
from .build import NoCompiler, say_once
from .compiled import Compiled
from .eager import Eager

__all__ = ["FORCED", "Compiled", "Eager", "executor"]

FORCED = os.environ.get("SNN_RULES_EXECUTOR", "")  # "eager": torch for every rule. Read once: a look each time takes longer than a small kernel
if FORCED not in ("", "eager"):
    warnings.warn(f"SNN_RULES_EXECUTOR={FORCED!r} is not known and changes nothing; leave it out, or set 'eager'", stacklevel=2)


def executor(rule: LearningRule, x: Tensor, recurrent: bool = False) -> Eager:
    """The executor for this rule on the device and in the dtype of `x`. What falls back to torch says so, once."""
    if FORCED == "eager":
        return _eager("SNN_RULES_EXECUTOR=eager")
    try:
        if x.numel() and not x.data_ptr():
            raise RuleError(f"a {type(x).__name__} has no memory of its own")
        if x.is_cpu:
            return compiled.executor(rule, x.shape[0], x.dtype, recurrent)
        if not x.is_cuda:
            raise RuleError(f"there are no kernels for {x.device.type}")
        launch.kernels(rule, x.shape[0], x.dtype, x.device, recurrent)
        return _launched
    except MalformedRule:
        raise
    except (NoCompiler, launch.NoCupy, RuleError) as cause:
        say_once(f"{rule.name!r} runs on torch tensors, many times slower: {cause}")
        return _eager(str(cause))


_launched = launch.Launched()


@lru_cache(maxsize=64)
def _eager(why: str) -> Eager:
    made = Eager()
    made.why = why
    return made
