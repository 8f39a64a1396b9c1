"""One plain training loop for every rule: what differs between rules is the rule, and nothing here knows which it is."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from . import checkpoint
from .activity import Activity, watch
from .augment import augment, check_images
from .coding import count_loss
from .config import MAY_CHANGE, OPTIMIZERS, SCHEDULES, Config
from .data import Data
from .distributed import ALONE, Alone
from .memory import peak_memory, reset_peak
from .neuron import RuleNode
from .registry import get_rule
from .regularize import penalty
from .rule import LearningRule, RuleError
from .trained import about, output, scale, scaled


@dataclass(frozen=True)
class Epoch:
    """What one epoch left behind."""

    loss: float  # a sample, over the epoch
    train_accuracy: float  # of the outputs from which the epoch learned, 0 to 1
    test_accuracy: float
    firing: dict[str, float]  # of each layer on the test set: spikes a neuron-step, or the fraction that fired for spike times
    firing_mean: float  # the same, over all neurons
    seconds: float  # test included
    step_ms: float  # median time of a training step: encode, forward, backward, optimiser
    synops: dict[str, float] = field(default_factory=dict)  # of each layer of synapses on the test set: operations a sample
    peak_mb: float = 0.0  # memory held at most: of the process, or of CUDA's tensors
    counted: dict[str, float] = field(default_factory=dict)  # what the rule counts of itself, in the epoch's last training step


@dataclass
class History:
    """The epochs of a training, in order."""

    epochs: list[Epoch] = field(default_factory=list)

    @property
    def best(self) -> int:
        """The index of the epoch of the highest test accuracy, the first of equals."""
        return max(range(len(self.epochs)), key=lambda epoch: self.epochs[epoch].test_accuracy)

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]


def configured(name: str, options: Mapping[str, Any] | None = None) -> LearningRule:
    """The rule with the options it trains with out of the box, over which `options` win."""
    given = get_rule(name, **(options or {}))
    return get_rule(name, **{**given.training.options, **given.resolve(options or {})})


def fit(
    net: nn.Module,
    rule: LearningRule,
    data: Data,
    config: Config,
    folder: str | Path | None = None,
    resume: bool = False,
    on_step: Callable[[int, int, int], None] | None = None,
    on_epoch: Callable[[int, History], None] | None = None,
    team: Alone = ALONE,
) -> History:
    """Train `net` by `rule`, and return what each epoch left behind.

    With a `folder`, `checkpoint.pt` in it is written after each epoch, and `resume` goes on from there: to the bit as
    if there had been no break. `on_step(epoch, step, steps)` and `on_epoch(epoch, history)` are told of progress.
    The same seed gives the same curve (and the same initial weights, if the caller has used it to make them). Both hold on the same
    versions, number of threads and executor.
    With a `team`, of `distributed.team`, several processes train together; the first alone writes and tells of epochs.
    """
    if config.batch_size < team.size:
        raise RuleError(f"training: batch_size={config.batch_size} is less than a sample for each of the {team.size} processes; raise it")
    check_images(config, data.shape, data.temporal)
    if config.precision != "float32" and rule.capabilities.signal == "times":
        raise RuleError(f"training: precision={config.precision!r}, but rule {rule.name!r} sends exact times, which stay float32; leave it out")
    if folder is None:
        return _Trainer(net, rule, data, config, team).run(None, History(), on_step, on_epoch)
    path = Path(folder) / "checkpoint.pt"
    with ExitStack() as held:
        state = team.first(lambda: checkpoint.begin(path, resume, held))
        trainer = _Trainer(net, rule, data, config, team)
        history = trainer.restore(path, state) if state else History()
        if len(history.epochs) > config.epochs:
            raise RuleError(f"checkpoint {str(path)!r} has {len(history.epochs)} epochs already; pass at least so many, or another --out")
        return trainer.run(path, history, on_step, on_epoch)


class _Trainer:
    def __init__(self, net: nn.Module, rule: LearningRule, data: Data, config: Config, team: Alone):
        self.net, self.rule, self.data, self.config, self.team = net.to(config.device), rule, data.binned(config.bin), config, team
        self.shared = team.wrap(net)  # the same network, its gradients those of all processes
        self.scale = scale(config, data)
        self.optimizer = OPTIMIZERS[config.optimizer](net.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
        torch.manual_seed(config.seed)

    def run(self, path: Path | None, history: History, on_step: Any, on_epoch: Any) -> History:
        for epoch in range(len(history.epochs), self.config.epochs):
            history.epochs.append(self.epoch(epoch, on_step or (lambda *_: None)))
            self.team.first(lambda epoch=epoch: self.keep(epoch, history, path, on_epoch))  # type: ignore[misc]
        return history

    def keep(self, epoch: int, history: History, path: Path | None, on_epoch: Any) -> None:
        if path:
            checkpoint.save(path, self.state(history))
        if on_epoch:
            on_epoch(epoch, history)

    def epoch(self, epoch: int, on_step: Callable[[int, int, int], None]) -> Epoch:
        begun, times, config = time.perf_counter(), [], self.config
        reset_peak()
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * SCHEDULES[config.schedule](epoch, config.epochs)
        order = torch.split(torch.randperm(len(self.data.train_y)), config.batch_size)
        total, hits = 0.0, 0
        self.net.train()
        for step, index in enumerate(order):
            clock = time.perf_counter()
            x, y = self.batch(augment(self.data.train_x[index], config), self.data.train_y[index])
            loss, right = self.step(x, y, epoch * len(order) + step)
            if not math.isfinite(loss):
                raise RuleError(f"training: the loss is {loss} in epoch {epoch + 1}, step {step + 1}; lower the learning rate (--lr)")
            times.append(time.perf_counter() - clock)
            total += loss * (1 if config.reduction == "sum" else len(y))
            hits += right
            on_step(epoch, step + 1, len(order))
        count = len(self.data.train_y)
        nodes = [(path, module) for path, module in self.net.named_modules() if isinstance(module, RuleNode)]
        counted = {f"{path} {name}": getattr(node, name) for path, node in nodes for name in node.rule.diagnostics}
        accuracy, activity = self.test()
        seconds, step_ms = time.perf_counter() - begun, 1000 * statistics.median(times)
        did = activity.firing, activity.mean, seconds, step_ms, activity.synops, peak_memory(config.device)
        return Epoch(total / count, hits / count, accuracy, *did, {name: value for name, value in counted.items() if value is not None})

    def step(self, x: Tensor, y: Tensor, number: int) -> tuple[float, int]:
        """The loss of the batch, and how many of its samples the network has right."""
        config, (mine, share) = self.config, self.team.part(len(y), self.config.reduction)
        samples, sent, y = len(y), self.data.encode(self.rule, x, config.T)[:, mine], y[mine]
        with self.team.noise(config.seed, number):
            out = output(self.shared, sent, config.precision)
        if config.loss == "count":
            loss = share * count_loss(out, y, config.desired, config.undesired, reduction=config.reduction)
        else:
            loss = share * self.rule.loss(out, y, reduction=config.reduction)
        cost = penalty(self.net, config)  # of a sample, in no curve
        self.optimizer.zero_grad()
        torch.autograd.backward(loss if cost is None else loss + cost * (samples if config.reduction == "sum" else 1))
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip)
        self.optimizer.step()
        if self.config.clamp is not None:
            with torch.no_grad():
                for weight in self.net.parameters():
                    weight.clamp_(-self.config.clamp, self.config.clamp)
        functional.reset_net(self.net)
        right = (self.rule.predict(out.detach()) == y).sum()
        total, hits = self.team.sum([loss.item() / self.team.size, share and right.item()])
        return total, int(hits)

    @torch.no_grad()
    def test(self) -> tuple[float, Activity]:
        """Accuracy and firing on the test set; random input codes are drawn anew from the seed, the same ones each time."""
        self.net.eval()
        right = 0
        devices = range(torch.cuda.device_count()) if self.config.device != "cpu" else ()
        with torch.random.fork_rng(devices), watch(self.net, self.rule) as activity:
            torch.manual_seed(self.config.seed)
            for index in torch.split(torch.arange(len(self.data.test_y)), self.config.batch_size):
                x, y = self.batch(self.data.test_x[index], self.data.test_y[index])
                mine = self.team.own(len(y))
                sent = self.data.encode(self.rule, x, self.config.T)[:, mine]
                if sent.shape[1]:
                    right += int((self.rule.predict(output(self.net, sent, self.config.precision)) == y[mine]).sum())
                    functional.reset_net(self.net)
        counts = self.team.gather((right, activity))
        total = Activity.total([each for _, each in counts], len(self.data.test_y))
        return sum(right for right, _ in counts) / len(self.data.test_y), total

    def batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return scaled(x, self.scale).to(self.config.device), y.to(self.config.device)

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What a resumed training must have in common with the one that it goes on with."""
        config = {k: v for k, v in asdict(self.config).items() if k not in MAY_CHANGE or (k == "epochs" and self.config.schedule == "cosine")}
        data = {"data set": self.data.name, "samples for training": len(self.data.train_y), "samples held out": self.data.held_out}
        return {"rule": self.rule.name, **{f"option {k}": v for k, v in asdict(self.rule).items()}, **config, **data}

    def state(self, history: History) -> dict[str, Any]:
        rng = {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if self.config.device != "cpu" else []}
        return {
            "identity": self.identity(),
            "config": asdict(self.config),
            "model": about(self.rule, self.data, self.scale),
            "epoch": len(history.epochs),
            "network": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng,
            "history": [asdict(epoch) for epoch in history.epochs],
        }

    def restore(self, path: Path, state: dict[str, Any]) -> History:
        try:
            return self._restored(path, state)
        except (TypeError, KeyError, AttributeError, IndexError) as cause:
            raise RuleError(f"checkpoint {str(path)!r} holds something else ({type(cause).__name__}: {cause}); pass another --out") from cause

    def _restored(self, path: Path, state: dict[str, Any]) -> History:
        was, now = state["identity"], self.identity()
        differs = [f"{k} {was.get(k)!r} there, {now.get(k)!r} here" for k in {**was, **now} if was.get(k) != now.get(k)]
        if differs:
            raise RuleError(f"checkpoint {str(path)!r} is of another training: {'; '.join(differs)}; pass the same settings, or another --out")
        try:
            self.net.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as cause:
            reason = " ".join(str(cause).split())
            raise RuleError(f"checkpoint {str(path)!r} is of another network: {reason}") from cause
        torch.set_rng_state(state["rng"]["cpu"])
        if state["rng"]["cuda"] and self.config.device != "cpu":
            torch.cuda.set_rng_state(state["rng"]["cuda"][0])
        return History([Epoch(**epoch) for epoch in state["history"]])
