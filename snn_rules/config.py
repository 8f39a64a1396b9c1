"""The settings of a training: what `snn-rules train`, its `--setting` and a recipe's `[train]` choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin, get_type_hints

import torch

from .rule import LearningRule, RuleError, hint

SCHEDULES: dict[str, Callable[[int, int], float]] = {  # (epoch from 0, epochs) -> factor of the learning rate
    "constant": lambda epoch, epochs: 1.0,
    "sqrt": lambda epoch, epochs: 1 / math.sqrt(epoch + 1),
    "cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * epoch / epochs)),
}
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
LEAST = {"T": 1, "bin": 1, "batch_size": 1, "epochs": 1, "elastic_sigma": 0.25} | dict.fromkeys(
    ("weight_decay", "exp_lambda", "exp_beta", "inhibition", "elastic_alpha", "rotation", "scaling", "crop_padding"), 0
)
ABOVE_ZERO = ("lr", "std", "clip", "clamp", "pool_gain")
CHOICES = {
    "schedule": tuple(SCHEDULES),
    "optimizer": tuple(OPTIMIZERS),
    "reduction": ("mean", "sum"),
    "loss": ("rule", "count"),
    "init": ("rule", "kaiming"),
    "regularize": ("off", "sum", "mean"),
    "augment": ("off", "elastic", "crop-flip"),
    "precision": ("float32", "bfloat16"),
    "device": ("cpu", "cuda"),
}
NEEDS = {  # settings that act only beside others
    **dict.fromkeys(("desired", "undesired"), ("loss", ("count",))),
    **dict.fromkeys(("mean", "std"), ("normalize", (True,))),
    **dict.fromkeys(("exp_lambda", "exp_beta"), ("regularize", ("sum", "mean"))),
    **dict.fromkeys(("elastic_alpha", "elastic_sigma", "rotation", "scaling"), ("augment", ("elastic",))),
    "crop_padding": ("augment", ("crop-flip",)),
}
MAY_CHANGE = ("epochs", "device")  # between a training and its resumption


@dataclass(frozen=True)
class Config:
    """How to train. `Config.of(rule)` has the rule's own settings."""

    T: int = 10  # time steps a sample
    bin: int = 1  # steps of a recording that become one
    lr: float = 1e-3  # learning rate
    batch_size: int = 100  # samples a training step
    epochs: int = 10  # walks over the training set
    seed: int = 0
    clip: float | None = None  # largest norm of the whole gradient; `inf`: whatever it is
    reduction: str = "mean"  # of the loss over the batch: "mean", "sum"
    loss: str = "rule"  # the rule's own, or "count": half the squared error of the spike counts against the next two
    desired: float = 0.0  # spikes of the class
    undesired: float = 0.0  # of the others
    normalize: bool = False  # samples of mean 0 and standard deviation 1, by the training set's
    mean: float | None = None  # for `normalize`, in place of the training set's: both, or none
    std: float | None = None  # above 0
    optimizer: str = "adamw"  # or "adam"
    weight_decay: float = 0.0
    clamp: float | None = None  # largest absolute value of a weight, after each step
    regularize: str = "off"  # weights, exponentially (Lee et al. 2016): "sum" of a neuron's squares, or "mean", as ST-RSBP's code has it
    exp_lambda: float = 10.0  # weight of that cost; 10 and 0.04 are ST-RSBP's, for "mean"
    exp_beta: float = 0.04
    inhibition: float = 0.0  # an output neuron's spike inhibits the others by this fraction of the threshold (ST-RSBP, section 4.1)
    pool_gain: float | None = None  # pooling layers give the sum of their window times this, not its mean
    thresholds: list[float] | None = None  # `v_threshold` of each layer of neurons, in the place of the rule's
    init: str = "rule"  # of the weights: the rule's own, or "kaiming", normal with deviation sqrt(2 / fan_in)
    schedule: str = "constant"  # of the learning rate over epochs: or "sqrt", lr / sqrt(epoch), or "cosine", to zero
    augment: str = "off"  # of training images, anew in each epoch: "elastic" (Simard et al. 2003), or "crop-flip", as for CIFAR-10
    elastic_alpha: float = 34.0  # how far pixels move; 34 and 4 are Simard's, for images of 29 x 29
    elastic_sigma: float = 4.0  # how far the movement reaches, in pixels
    rotation: float = 0.0  # at most, in degrees, before the elastic distortion
    scaling: float = 0.0  # at most, as a fraction of the size, likewise
    crop_padding: int = 4  # zeros on each side from which "crop-flip" crops
    precision: str = "float32"  # or "bfloat16": of products and of what passes between layers (autocast); states and weights stay float32
    device: str = "cpu"  # or "cuda"
    network: str = ""  # how the network was written down: kept in the checkpoint, compared on resume

    def __post_init__(self) -> None:
        for name, written in get_type_hints(Config).items():
            if not _is(getattr(self, name), written):
                wanted = str(getattr(written, "__name__", written)).replace("float", "number").replace("int", "whole number").replace("str", "word")
                raise RuleError(f"training: {name}={getattr(self, name)!r} should be a {wanted.replace(' | None', ', or left out')}")
        for name, low in LEAST.items():
            if not low <= getattr(self, name) < math.inf:
                raise RuleError(f"training: {name}={getattr(self, name)!r} should be a {'whole ' if low == 1 else ''}number, at least {low}")
        if not -(2**63) <= self.seed < 2**63:
            raise RuleError(f"training: seed={self.seed!r} should be a whole number of at most 63 bits")
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not (value > 0 and (value < math.inf or name in ("clip", "clamp"))):
                optional = "" if name == "lr" else ", or left out"
                raise RuleError(f"training: {name}={value!r} should be a number above 0{optional}")
        if (self.mean is None) != (self.std is None):
            raise RuleError(f"training: mean={self.mean!r}, std={self.std!r}: pass both, or none for the training set's")
        if self.loss == "count" and not self.desired > self.undesired >= 0:
            raise RuleError(f"training: loss='count' with desired={self.desired!r}, undesired={self.undesired!r}: the first should be larger")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise RuleError(f"training: {name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise RuleError("training: device='cuda', but torch sees no CUDA device here; leave --device out, and see snn-rules doctor")

    def refuse_idle(self, names: Iterable[str]) -> None:
        """Refuse settings that were asked for and do nothing beside the others."""
        for name in sorted(NEEDS.keys() & set(names)):
            other, values = NEEDS[name]
            if getattr(self, other) not in values:
                ways = " or ".join(f"{other}={str(value).lower()}" for value in values)
                raise RuleError(f"training: {name}={getattr(self, name)!r} does nothing without {ways}; add --setting {ways}, or leave it out")

    @staticmethod
    def given(texts: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Settings by name, as a user writes them; one that is unknown is refused."""
        names = sorted({f.name for f in fields(Config)} - {"network", "seed"})
        for name in texts:
            if name not in names:
                raise RuleError(f"{where} knows no {name}{hint(name, names)}; it takes {', '.join(names)}")
        return dict(texts)

    @classmethod
    def of(cls, rule: LearningRule, **overrides: Any) -> Config:
        """The settings with which `rule` learns out of the box; an override of None is none."""
        own = {f.name: getattr(rule.training, f.name) for f in fields(rule.training) if f.name != "options"}
        return cls(**own | {name: value for name, value in overrides.items() if value is not None})


def _is(value: Any, written: Any) -> bool:
    """Whether a value is of the type that is written beside a setting; a whole number is a number, too."""
    kinds = tuple(get_origin(kind) or kind for kind in get_args(written) or (written,))
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))
