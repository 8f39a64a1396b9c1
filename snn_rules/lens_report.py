"""What `snn-rules lens` does: a network looked at under several rules, printed, drawn and written down."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from . import data, plot
from .console import out, progress, table
from .conversion import convert
from .experiments import Task, option, write_json
from .lens import Lens, compare_gradients
from .network import network
from .neuron import RuleNode
from .registry import get_rule
from .rule import LearningRule, RuleError
from .site import Site
from .train import fit


def look(
    task: Task, labels: Sequence[str], samples: int, loss: str | None, own_code: bool, steps: Sequence[float], seed: int, folder: Path | None
) -> Lens:
    """One network under the rules `labels`, "stdbp:mode=event"; with epochs in the task's settings, the first trains it before."""
    named = [named_rule(label) for label in labels]
    rules = [get_rule(name, **options) for name, options in named]
    whole = task.data()
    if samples < 1:
        raise RuleError(f"lens: --samples {samples} should be at least 1")
    epochs = task.settings["epochs"]
    if epochs < 0:
        raise RuleError(f"lens: --epochs {epochs} should be 0 (the first weights) or more")
    net = stage(task.network, named[0], whole, seed)
    samples, T = min(samples, len(whole.train_y)), task.settings["T"] or whole.steps
    with progress() as bar:
        for name, options in named:  # refuse before the training, not after it
            convert(copy.deepcopy(net), name, **options)
        where = task.place(folder, "lens")
        if epochs:
            train(net, named[0], whole, task, seed, bar)
        x, y = whole.train_x[:samples], whole.train_y[:samples]
        if rules[0].training.normalize and not whole.temporal:
            x = (x - whole.train_x.mean()) / whole.train_x.std()
        looking = bar.add_task("looking", total=None)
        how: dict[str, Any] = {"T": T, "own_code": own_code, "steps": steps, "seed": seed, "encode": whole.encode}

        def tell(done: int, total: int) -> None:
            bar.update(looking, completed=done, total=total)

        seen = compare_gradients(net, x, y, named, loss=named_rule(loss) if loss else None, on_step=tell, **how)
    state = f"after {epochs} epoch{'s' * (epochs > 1)} by {labels[0]}" if epochs else "at its first weights"
    title = f"{task.network} on {task.dataset}, {samples} samples, {state}"
    out.print(title, style="bold", soft_wrap=True)
    for part in tables(seen):
        out.print()
        out.print(part, soft_wrap=isinstance(part, Text))
    about = {**task.about(*rules), "samples": samples, "epochs": epochs, "T": T or rules[0].training.T, "seed": seed}
    write_json(where / "lens.json", {**about, **plain(seen)})
    plot.lens(where / "lens.png", seen, title)
    out.print(f"\nwrote {where / 'lens.json'} and {where / 'lens.png'}", style="bold", soft_wrap=True)
    return seen


def named_rule(label: str) -> tuple[str, dict[str, Any]]:
    """ "stdbp:mode=event" is a rule and its options."""
    name, *options = label.strip().split(":")
    return name, get_rule(name).resolve(dict(map(option, options)))


def stage(text: str, first: tuple[str, Mapping[str, Any]], samples: data.Data, seed: int) -> nn.Module:
    """The network of the string, with the same neurons for every rule, and the weights from which the first learns."""
    name, options = first
    torch.manual_seed(seed)
    net = convert(network(text, get_rule(name, **options), samples.shape, samples.classes), "surrogate", decay_input=False)
    rule: LearningRule | None = None
    for node in net.modules():
        if isinstance(node, RuleNode):
            node.site = Site(tau_m=2.0, v_threshold=1.0, v_reset=0.0, decay_input=False)  # as `build` makes them
            rule = rule or get_rule(name, **options).adopt(node.site, frozenset(options))
    assert rule is not None
    for module in net.modules():  # anew: the weights that fit the rule's own constants may not fit these
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
    return rule.initialize(net)


def train(net: nn.Module, first: tuple[str, Mapping[str, Any]], samples: data.Data, task: Task, seed: int, bar: Any) -> None:
    """Some epochs by the first rule, with the constants of the stage."""
    name, options = first
    learner, rule = convert(copy.deepcopy(net), name, **options), get_rule(name, **options)
    config = task.config(rule, seed, samples)
    steps = -(-len(samples.train_y) // config.batch_size)
    training = bar.add_task(f"training by {name}", total=config.epochs * steps)
    fit(learner, rule, samples, config, on_step=lambda epoch, step, _: bar.update(training, completed=epoch * steps + step))
    net.load_state_dict(learner.state_dict())


# ---- shown -------------------------------------------------------------------------------------------------------------


def tables(seen: Lens) -> list[Table | Text]:
    compared = [_pairs(seen), *_forward(seen)] if len(seen.rules) > 1 else []
    measured = [part for r in range(len(seen.rules)) for part in _worth(seen, r)]
    still = [rule for rule, loss in zip(seen.rules, seen.loss, strict=True) if bool((loss == loss[0, 0]).all())]
    remedy = "no spike of the last layer came or went; look after more --epochs, or take longer --steps"
    said = [Text(f"No step changes the loss under {', '.join(still)}: {remedy}.", "yellow")] if still else []
    return [*compared, *measured, *said]


def _pairs(seen: Lens) -> Table:
    shown = table("layer", "gradients of", "cosine", "norms", right=2)
    for k, layer in enumerate(seen.layers):
        for n, (a, b) in enumerate(combinations(range(len(seen.rules)), 2)):
            ratio, cosine = float(seen.ratio[k, b, a]), float(seen.cosine[k, a, b])
            pair = f"{seen.rules[a]}, {seen.rules[b]}"
            shown.add_row("" if n else layer, pair, "-" if math.isnan(cosine) else f"{cosine:+.3f}", "-" if math.isnan(ratio) else f"{ratio:.3g} : 1")
    return shown


def _forward(seen: Lens) -> list[Table | Text]:
    if seen.same_forward:
        what = "the backward passes and the losses differ" if len(set(seen.losses)) > 1 else "only the backward passes differ"
        return [Text(f"All rules make the same spikes here: {what}.", "green")]
    shown = table("neurons", "rule", "spikes a step", f"not as {seen.rules[0]}", right=2)
    for path, shares in seen.differs.items():
        for n, (rule, share, rate) in enumerate(zip(seen.rules, shares, seen.firing[path], strict=True)):
            differs = "" if n == 0 else "not comparable" if math.isnan(share) else f"{share:.1%}"
            shown.add_row("" if n else path, rule, "spike times" if math.isnan(rate) else f"{rate:.3f}", differs)
    return [Text("The rules make different spikes: cosines and losses compare different networks, too.", "yellow"), shown]


def _worth(seen: Lens, r: int) -> list[Table | Text]:
    """Loss and accuracy under one rule, a step against each gradient; the lowest loss is green."""
    start, lowest = float(seen.loss[r, 0, 0]), float(seen.loss[r].min())
    whose = "" if seen.losses[r] == seen.rules[r].partition(":")[0] else f" (that of {seen.losses[r]})"
    here = f"Loss{whose} and accuracy under {seen.rules[r]}: {start:.4g}, {float(seen.accuracy[r, 0, 0]):.1%}"
    shown = table("against", *(f"{length:g}" for length in seen.steps[1:]), right=1)
    for d, direction in enumerate(seen.directions):
        values, hits = seen.loss[r, d, 1:].tolist(), seen.accuracy[r, d, 1:].tolist()
        cells = [Text(f"{v:.4g} {h:4.0%}", "bold green" if v == lowest < start else "") for v, h in zip(values, hits, strict=True)]
        shown.add_row(direction, *cells)
    return [Text(f"{here}; after a step, in norms of the weights:", "bold"), shown]


def plain(seen: Lens) -> dict[str, Any]:
    """For JSON: lists in the place of tensors, null in the place of nan."""

    def listed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return listed(value.tolist())
        if isinstance(value, Mapping):
            return {key: listed(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [listed(v) for v in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {f.name: listed(getattr(seen, f.name)) for f in dataclasses.fields(seen)}
