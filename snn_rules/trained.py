"""A network that `snn-rules train` has trained, ready to predict: what turns samples into its input is kept beside its weights."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from . import checkpoint
from .config import Config
from .data import Data, binned, frames
from .network import network
from .registry import get_rule
from .rule import LearningRule, RuleError
from .zeros import skip_zeros

MANY = 1 << 20  # values of an input; below, the layers are too small for `skip_zeros`


@dataclass(frozen=True)
class Trained:
    """A trained network, in eval mode, and what it needs to read samples."""

    network: nn.Module
    rule: LearningRule
    config: Config
    shape: tuple[int, ...]  # of a sample at one step
    temporal: bool  # samples are spike trains
    scale: tuple[float, float] | None  # mean and standard deviation that normalise samples

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The class of each sample. `x` is as `snn_rules.data` has it: images `[N, C, H, W]` in [0, 1], or spike trains `[N, S, *]`.

        Samples are normalised and encoded as in the training, in batches of its size; random input codes are those of its test.
        """
        if tuple(x.shape[2 if self.temporal else 1 :]) != self.shape:
            wanted = ", ".join(map(str, ("N", *("S" * self.temporal), *self.shape)))
            raise RuleError(f"predict: samples of shape {list(x.shape)}, but the network was trained on [{wanted}]; pass these")
        device = next(self.network.parameters()).device
        if self.temporal and self.config.bin > 1:
            x = binned(x, self.config.bin)
        found = []
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            for part in torch.split(x, self.config.batch_size):
                part = scaled(part, self.scale).to(device)
                sent = frames(part, self.config.T) if self.temporal else self.rule.encode(part, self.config.T)
                found.append(self.rule.predict(output(self.network, sent, self.config.precision)).to(x.device))
                functional.reset_net(self.network)
        return torch.cat(found)


def load(folder: str | Path) -> Trained:
    """What `snn-rules train` wrote to `folder`, after its last epoch, on the CPU: `load("runs/digits-tssl-1").predict(x)`."""
    path = Path(folder) / "checkpoint.pt"
    if not (path.exists() or checkpoint.previous(path).exists()):
        raise RuleError(f"load: {str(path)!r} does not exist; pass a folder that snn-rules train has written")
    state = checkpoint.load(path)
    if "model" not in state:
        raise RuleError(f"load: {str(path)!r} does not say what its network was trained on; train --resume with one more epoch writes that")
    try:
        return _trained(state)
    except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as cause:
        reason = " ".join((str(cause) if isinstance(cause, RuntimeError) else f"{type(cause).__name__}: {cause}").split())
        remedy = "load its 'network' into your own, or train by snn-rules train"
        raise RuleError(f"load: {str(path)!r} holds no network that can be made from its own settings ({reason}); {remedy}") from cause


def _trained(state: dict[str, Any]) -> Trained:
    model, config = state["model"], Config(**{**state["config"], "device": "cpu"})
    rule = get_rule(model["rule"], **model["options"])
    with torch.random.fork_rng([]):  # the first weights are drawn, and replaced
        how = config.init, config.pool_gain, config.inhibition, config.thresholds
        net = network(config.network, rule, model["shape"], model["classes"], *how)
    net.load_state_dict(state["network"])
    return Trained(net.eval(), rule, config, tuple(model["shape"]), model["temporal"], model["scale"])


# ---- what a training shares --------------------------------------------------------------------------------------------


def about(rule: LearningRule, data: Data, scale: tuple[float, float] | None) -> dict[str, Any]:
    """What a checkpoint keeps for `load`."""
    model = {"shape": list(data.shape), "classes": data.classes, "temporal": data.temporal, "scale": scale}
    return {"rule": rule.name, "options": asdict(rule), **model}


def scale(config: Config, data: Data) -> tuple[float, float] | None:
    """The mean and the standard deviation by which samples are normalised: those asked for, or the training set's."""
    if not config.normalize or data.temporal:
        return None
    mean = float(data.train_x.mean()) if config.mean is None else config.mean
    return mean, float(data.train_x.std()) if config.std is None else config.std


def scaled(x: Tensor, scale: tuple[float, float] | None) -> Tensor:
    """The samples, normalised."""
    return x if scale is None else (x - scale[0]) / scale[1]


def output(net: nn.Module, x: Tensor, precision: str) -> Tensor:
    """What the network makes of the encoded samples, in the precision asked for. Where they are many, zeros are left out of its products."""
    with ExitStack() as how:
        if x.numel() >= MANY:
            how.enter_context(skip_zeros())
        if precision != "float32":
            how.enter_context(torch.autocast(x.device.type, torch.bfloat16))
        out: Tensor = net(x)
    return out if precision == "float32" else out.float()
