"""The settings of a training: what `snn-rules train`, its `--setting` and a recipe's `[train]` choose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from .rule import LearningRule, RuleError

SCHEDULES: dict[str, Callable[[int, int], float]] = {  # (epoch from 0, epochs) -> factor of the learning rate
    "constant": lambda epoch, epochs: 1.0,
    "sqrt": lambda epoch, epochs: 1 / math.sqrt(epoch + 1),
    "cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * epoch / epochs)),
}
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
MAY_CHANGE = ("epochs", "device")  # between a training and its resumption


@dataclass(frozen=True)
class Config:
    """How to train. `Config.of(rule)` has the rule's own settings."""

    T: int = 10  # time steps a sample
    lr: float = 1e-3
    batch_size: int = 100
    epochs: int = 10
    seed: int = 0
    clip: float | None = None  # largest norm of the whole gradient
    reduction: str = "mean"  # of the loss over the batch: "mean", "sum"
    loss: str = "rule"  # the rule's own, or "count": half the squared error of the spike counts against the next two
    desired: float = 0.0  # spikes of the class
    undesired: float = 0.0  # of the others
    normalize: bool = False  # samples of mean 0 and standard deviation 1, by the training set's
    mean: float | None = None  # for `normalize`, in place of the training set's: both, or none
    std: float | None = None
    optimizer: str = "adamw"  # or "adam"
    weight_decay: float = 0.0
    clamp: float | None = None  # largest absolute value of a weight, after each step
    pool_gain: float | None = None  # pooling layers give the sum of their window times this, not its mean
    init: str = "rule"  # of the weights: the rule's own, or "kaiming", normal with deviation sqrt(2 / fan_in)
    schedule: str = "constant"  # of the learning rate over epochs: or "sqrt", lr / sqrt(epoch), or "cosine", to zero
    device: str = "cpu"
    network: str = ""  # how the network was written down: kept in the checkpoint, compared on resume

    def __post_init__(self) -> None:
        for name in ("T", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise RuleError(f"training: {name}={getattr(self, name)!r} should be a whole number, at least 1")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise RuleError(f"training: lr={self.lr!r} should be a number above 0")
        if (self.mean is None) != (self.std is None) or self.std == 0:
            raise RuleError(f"training: mean={self.mean!r}, std={self.std!r}: pass both, std above 0, or none for the training set's")
        choices_of = {
            "schedule": tuple(SCHEDULES),
            "optimizer": tuple(OPTIMIZERS),
            "reduction": ("mean", "sum"),
            "loss": ("rule", "count"),
            "init": ("rule", "kaiming"),
        }
        if self.loss == "count" and not self.desired > self.undesired >= 0:
            raise RuleError(f"training: loss='count' with desired={self.desired!r}, undesired={self.undesired!r}: the first should be larger")
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise RuleError(f"training: {name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        if self.device not in ("cpu", "cuda"):
            raise RuleError(f"training: device={self.device!r} is not one of cpu, cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise RuleError("training: device='cuda', but torch sees no CUDA device here; leave --device out, and see snn-rules doctor")

    @classmethod
    def of(cls, rule: LearningRule, **overrides: Any) -> Config:
        """The settings with which `rule` learns out of the box; an override of None is none."""
        own = {f.name: getattr(rule.training, f.name) for f in fields(rule.training) if f.name != "options"}
        return cls(**own | {name: value for name, value in overrides.items() if value is not None})
