"""What `snn-rules train` and `snn-rules compare` do: networks trained by rules, printed and written down."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoint, data, plot
from .board import Board
from .config import Config
from .console import out, progress, say, table
from .data import Data
from .distributed import ALONE, Alone
from .network import network
from .recipes import Recipe
from .registry import get_rule, rules
from .rule import LearningRule, RuleError
from .train import History, configured, fit


@dataclass(frozen=True)
class Task:
    """What is trained, whatever the rule; None leaves a setting to the rule."""

    command: str  # as it was typed
    network: str
    dataset: str
    data_root: Path
    download: bool
    limit_train: int | None
    settings: Mapping[str, Any]  # of `Config`
    recipe: Recipe | None = None
    hold_out: int | None = None

    def data(self) -> data.Data:
        whole = data.load(self.dataset, self.data_root, self.download).hold_out(self.hold_out)
        if self.limit_train and self.limit_train > len(whole.train_y):
            say(f"--limit-train {self.limit_train}: {self.dataset} has {len(whole.train_y)} samples for training; it takes them all", "yellow")
        return whole.limit(self.limit_train)

    def config(self, rule: LearningRule, seed: int, samples: Data) -> Config:
        """The rule's settings, those of the data set, of the recipe, and those that were typed; recordings are heard to their end."""
        given = {name: value for name, value in self.settings.items() if value is not None}
        written = self.recipe.train if self.recipe else {}
        chosen = {**data.SETTINGS.get(self.dataset, {}), **written, **given}
        config = Config.of(rule, **chosen, network=self.network, seed=seed)
        config.refuse_idle(given)
        return config if samples.steps is None or "T" in chosen else replace(config, T=-(-samples.steps // config.bin))

    def folder(self, out: Path | None, what: str, seed: int = 0) -> Path:
        """The folder asked for; that of the recipe and the seed; or the first of runs/DATASET-WHAT-1, -2, ... that is not there."""
        if self.recipe and out is None:
            return Path("runs") / f"{self.recipe.folder}-seed{seed}"
        fresh = (Path("runs") / f"{self.dataset}-{what}-{n}" for n in count(1))
        return out or next(path for path in fresh if not path.exists())

    def place(self, out: Path | None, what: str) -> Path:
        """The same; one that was asked for is made now, so that results have a place before there are any."""
        try:
            if out:
                out.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise RuleError(f"--out {str(out)!r} cannot be made ({cause}); choose another") from cause
        return self.folder(out, what)

    def about(self, *chosen: LearningRule) -> dict[str, Any]:
        """What one needs to do it again."""
        about: dict[str, Any] = {"command": self.command, "versions": versions(*chosen), "network": self.network, "dataset": self.dataset}
        more = {"recipe": self.recipe.name, "paper": dict(self.recipe.paper)} if self.recipe else {}
        return {**about, "limit_train": self.limit_train, "hold_out": self.hold_out, **more}


def train(
    task: Task, name: str, options: Sequence[str], seed: int, folder: Path | None, resume: bool, tensorboard: bool = False, team: Alone = ALONE
) -> None:
    """One rule, with a checkpoint and history.json after each epoch."""
    if resume and folder is None and task.recipe is None:
        raise RuleError("train: --resume needs --out with the folder of the training to go on with")
    given = get_rule(name).resolve(task.recipe.options) if task.recipe else {}
    rule = configured(name, {**given, **get_rule(name).resolve(dict(map(option, options)))})
    if task.download:
        team.first(lambda: bool(task.data()))  # by one process; the others find it
    samples = task.data()
    config, where = task.config(rule, seed, samples), team.first(lambda: task.folder(folder, name, seed))
    about = {**task.about(rule), "rule": name, "options": asdict(rule), "cite": rule.cite, "config": asdict(config)}

    board = Board(where / "tensorboard") if tensorboard else None

    def told(history: History) -> None:
        put(history)
        if board:
            board.epoch(len(history.epochs), history.last)

    def put(history: History) -> None:
        best = {"best_epoch": history.best + 1, "best_test_accuracy": history.epochs[history.best].test_accuracy}
        used: dict[str, Any] = {"threads": torch.get_num_threads(), "peak_memory_mb": max((epoch.peak_mb for epoch in history.epochs), default=0.0)}
        used["samples"] = {"train": len(samples.train_y), "test": len(samples.test_y)}
        write_json(where / "history.json", {**about, **best, **used, **asdict(history)})

    remedy = f"--out {shlex.quote(str(where))} --resume goes on after the last whole epoch"
    try:
        with team.watch(remedy):
            history = _fit(rule, samples, config, f"{name} on {task.dataset}", where, resume, told, team)
            team.first(lambda: put(history))
    except KeyboardInterrupt:
        whole = (where / "checkpoint.pt").exists()
        raise KeyboardInterrupt(f"stopped; {remedy}" if whole else "stopped before the first epoch was whole; nothing is written") from None
    top, last = history.epochs[history.best].test_accuracy, history.last.test_accuracy
    written = f"wrote {where / 'checkpoint.pt'} and {where / 'history.json'}"
    out.print(f"best {top:.2%} (epoch {history.best + 1}), last {last:.2%}; {written}", style="bold", soft_wrap=True)


def compare(task: Task, labels: Sequence[str], seeds: Sequence[int], folder: Path | None) -> None:
    """The same network by several rules, once a seed; a label is a rule and its options, "stdbp:mode=event"."""
    chosen = {label: configured(label.split(":")[0], dict(map(option, label.split(":")[1:]))) for label in labels}
    samples = task.data()
    configs = {(label, seed): task.config(rule, seed, samples) for label, rule in chosen.items() for seed in seeds}
    for label, rule in chosen.items():  # refuse before the first training, not after it
        made(rule, samples, configs[label, seeds[0]])
    where = task.place(folder, "compare")
    runs = {key: _fit(chosen[key[0]], samples, config, f"{key[0]}, seed {key[1]}") for key, config in configs.items()}

    shown = table("rule", "T", "test accuracy", "best", "firing", "synops", "ms a step", "peak MB", right=1)
    results: dict[str, Any] = {}
    for label, rule in chosen.items():
        histories, config = [runs[label, seed] for seed in seeds], configs[label, seeds[0]]
        last = [history.last.test_accuracy for history in histories]
        summary = {
            "test_accuracy_mean": statistics.mean(last),
            "test_accuracy_std": statistics.stdev(last) if len(last) > 1 else 0.0,
            "best_test_accuracy_mean": statistics.mean(history.epochs[history.best].test_accuracy for history in histories),
            "firing_mean": statistics.mean(history.last.firing_mean for history in histories),
            "step_ms": statistics.mean(history.last.step_ms for history in histories),
            "synops": statistics.mean(sum(history.last.synops.values()) for history in histories),
            "peak_mb": max(epoch.peak_mb for history in histories for epoch in history.epochs),
        }
        mean, std, best, firing, step_ms, synops, peak = summary.values()
        measured = f"{best:.2%}", f"{firing:.4f}", f"{synops:,.0f}", f"{step_ms:.1f}", f"{peak:,.0f}"
        shown.add_row(label, str(config.T), f"{mean:.2%} ± {100 * std:.2f}", *measured)
        epochs = {str(seed): asdict(history)["epochs"] for seed, history in zip(seeds, histories, strict=True)}
        results[label] = {"options": asdict(rule), "cite": rule.cite, "config": asdict(config), **summary, "seeds": epochs}
    write_json(where / "compare.json", {**task.about(*chosen.values()), "seeds": list(seeds), "rules": results})
    over = f"mean ± standard deviation of seeds {', '.join(map(str, seeds))}"
    out.print(f"{task.network} on {task.dataset} after the last epoch, {over}", style="bold", soft_wrap=True)
    out.print(shown)
    meaning = "firing: spikes a neuron and step; for spike times the fraction of neurons that fired. synops: synaptic operations a sample"
    out.print(f"{meaning}. peak MB: of the whole process, data included, or of CUDA's tensors", style="dim", soft_wrap=True)
    curves = {label: [[epoch.test_accuracy for epoch in runs[label, seed].epochs] for seed in seeds] for label in chosen}
    plot.accuracy(where / "compare.png", curves, f"{task.network} on {task.dataset}")
    out.print(f"wrote {where / 'compare.json'} and {where / 'compare.png'}", style="bold", soft_wrap=True)


def option(text: str) -> tuple[str, Any]:
    """KEY=VALUE, where the value may be a number, true or false, a word, or several of them with commas between."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise RuleError(f"option {text!r} should be KEY=VALUE, such as tau_m=5")
    if "," in value:
        return key, [option(f"{key}={part}")[1] for part in value.split(",") if part]
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    for number in (int, float):
        try:
            return key, number(value)
        except ValueError:
            continue
    return key, value


def made(rule: LearningRule, samples: data.Data, config: Config) -> nn.Module:
    """The network of a training, its weights drawn anew."""
    return network(config.network, rule, samples.shape, samples.classes, config.init, config.pool_gain, config.inhibition, config.thresholds)


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """Of `--setting KEY=VALUE`."""
    return Config.given(dict(map(option, texts)), "--setting")


def versions(*chosen: LearningRule) -> dict[str, str]:
    """Of Python, of what the rules stand on, and of the distributions that brought the chosen ones."""
    known = rules()
    owners = {known[rule.name].distribution: known[rule.name].version for rule in chosen if rule.name in known}
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "spikingjelly", "snn-rules")}, **owners}


def machine() -> str:
    """The processor's name, where Linux or Python knows it."""
    with suppress(OSError):
        if named := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return named[1]
    return platform.processor() or platform.machine()


def surroundings(*chosen: LearningRule) -> dict[str, Any]:
    """When, where and with what something is measured."""
    load = os.getloadavg()[0]  # 1 is one busy core
    return {"date": date.today().isoformat(), "machine": machine(), "threads": torch.get_num_threads(), "load": load, "versions": versions(*chosen)}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    checkpoint.write(path, lambda file: file.write(json.dumps(content, indent=2).encode() + b"\n"))


def _fit(
    rule: LearningRule,
    samples: data.Data,
    config: Config,
    title: str,
    folder: Path | None = None,
    resume: bool = False,
    each: Callable[[History], None] | None = None,
    team: Alone = ALONE,
) -> History:
    torch.manual_seed(config.seed)
    net = made(rule, samples, config)
    with progress() as bar:
        steps = -(-len(samples.train_y) // config.batch_size)
        task = bar.add_task(title, total=config.epochs * steps)

        def tell(epoch: int, history: History) -> None:
            e = history.last
            accuracy = f"loss {e.loss:.4f}  train {e.train_accuracy:.1%}  test {e.test_accuracy:.1%}"
            out.print(f"{title}: {epoch + 1}/{config.epochs}  {accuracy}  firing {e.firing_mean:.3f}  {e.seconds:.1f} s", soft_wrap=True)
            if each:
                each(history)

        return fit(
            net,
            rule,
            samples,
            config,
            folder,
            resume,
            on_step=lambda epoch, step, _: bar.update(task, completed=epoch * steps + step),
            on_epoch=tell,
            team=team,
        )
