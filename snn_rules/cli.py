"""The command `snn-rules`. What needs torch is imported where it is used: `snn-rules list` answers at once."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from .analysis import bench, lens
from .commands import Commands
from .console import out, plain, table
from .options import (
    BatchOption,
    DatasetOption,
    DeviceOption,
    DownloadOption,
    EpochsOption,
    HoldOption,
    LimitOption,
    NetworkOption,
    RateOption,
    RootOption,
    ScheduleOption,
    SettingOption,
    StepsOption,
    VersionOption,
)
from .registry import get_rule, rules
from .rule import LearningRule, RuleError

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_show_locals=False)


@app.callback()
def main(
    version: VersionOption = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error instead of one line.")] = False,
) -> None:
    """Learning rules for spiking neural networks, as plugins of SpikingJelly.

    First steps:  snn-rules list,  snn-rules info tssl,  snn-rules train --rule tssl  (seconds, needs no data files),
    snn-rules compare --rules surrogate,tssl.
    """


# ---- what there is ---------------------------------------------------------------------------------------------------


@app.command("list")
def list_rules() -> None:
    """The installed rules, the distribution each comes from, and what keeps one from working. Imports none of them."""
    shown = table("rule", "distribution", "version", "state")
    for info in sorted(rules().values(), key=lambda info: info.name):
        shown.add_row(info.name, info.distribution, info.version, Text(info.error or "installed", style="red" if info.error else "green"))
    out.print(shown)


@app.command()
def info(name: Annotated[str, typer.Argument(metavar="NAME", help="A rule, as snn-rules list names it.")]) -> None:
    """One rule: what it does, its parameters with their units, what it can do, and the paper behind it."""
    rule = get_rule(name)
    can, training = rule.capabilities, rule.training
    out.print(f"{rule.name}\n", style="bold")
    out.print(inspect.getdoc(type(rule)) or "", soft_wrap=True)
    shown = table("parameter", "default", "unit", "choices", "meaning")
    for field in _parameters(rule):
        meta = field.metadata
        shown.add_row(field.name, str(field.default), meta["unit"] or "-", " | ".join(map(str, meta["choices"])) or _range(meta), meta["help"])
    out.print("\nParameters (--option NAME=VALUE, or keywords of RuleNode and convert)", style="bold")
    out.print(shown)
    aliases = [f"{alias} = {meant}" for alias, meant in rule.aliases.items() if meant in vars(rule)]
    facts = {
        "aliases": ", ".join(aliases) or "none",
        "equations": rule.equations or "not stated",
        "cite": rule.cite or "not stated",
        "gradient": "the exact derivative of the forward pass" if can.exact else "the rule's own",
        "learns in": "step modes 'm' and 's'" if can.single_step else "step mode 'm': it needs the whole spike train",
        "sends": "spike times" if can.signal == "times" else "spikes",
        "resets": ", ".join(can.resets),
        "pooling": "maximum" if can.pooling == "max" else "mean",
        "by design": "; ".join(f"fails {name}: {why}" for name, why in rule.expected_failed_checks.items())
        or "claims every check of the kit (snn-rules check)",
        "trains with": ", ".join(f"{f.name} {plain(getattr(training, f.name))}" for f in dataclasses.fields(training)),
    }
    out.print()
    for key, value in facts.items():
        out.print(Text.assemble((f"{key:12}", "bold"), value), soft_wrap=True)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Compile each rule's CUDA kernels for every architecture (no GPU needed): registers and spills.")
    ] = False,
) -> None:
    """What is installed here, whether each rule loads, and what would run it."""
    from .doctor import examine, tables

    report = examine(rules(), kernels)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for key, value in report.items():
        if isinstance(value, str):
            out.print(Text.assemble((f"{key:14}", "bold"), value), soft_wrap=True)
    for shown in tables(report):
        out.print(shown)


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A rule, as snn-rules list names it.")],
    option: Annotated[list[str] | None, typer.Option(help="A parameter of the rule; can be repeated.", metavar="KEY=VALUE")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run this check alone; can be repeated.", metavar="CHECK")] = None,
    reasons: Annotated[bool, typer.Option("--reasons", help="Name the checks and why each matters, and run none.")] = False,
) -> None:
    """Run the conformance kit on a rule: the neuron, its gradients against the rule's reference, its kernels, learning.

    The exit code is 1 if a check fails. Some seconds; a first run compiles kernels and takes a minute.
    """
    from . import experiments
    from .testing import report

    report.show(get_rule(name, **dict(map(experiments.option, option or []))), only or [], reasons)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new rule: lower-case letters, digits, underscores.")],
    author: Annotated[str, typer.Option(help="Whose name the licence bears.")] = "the authors",
    folder: Annotated[Path | None, typer.Option("--out", help="Folder to write into. Default: snn-rules-NAME, here.", metavar="DIR")] = None,
) -> None:
    """Write a distribution with a rule of your own: the rule, its reference, tests, licence and CI; it passes its checks as it is."""
    from .scaffold import new as write

    made = write(name, author, folder)
    out.print(
        f"wrote {made}: now write your rule in {made / f'snn_rules_{name}' / 'rule.py'}, and the same as loops in reference.py beside it",
        soft_wrap=True,
    )
    out.print(f"  pip install -e {made if made.is_absolute() else './' + str(made)}\n  snn-rules check {name}", soft_wrap=True)


# ---- training --------------------------------------------------------------------------------------------------------


@app.command()
def train(
    ctx: typer.Context,
    rule: Annotated[str | None, typer.Option(help="The learning rule; snn-rules list names those installed.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A training written down: a TOML file, or a name such as tssl/fashion-mnist-400-400. Options given here win.")
    ] = None,
    network: NetworkOption = "100-10",
    dataset: DatasetOption = "digits",
    data_root: RootOption = Path("data"),
    download: DownloadOption = False,
    epochs: EpochsOption = None,
    T: StepsOption = None,
    lr: RateOption = None,
    batch_size: BatchOption = None,
    schedule: ScheduleOption = "constant",
    seed: Annotated[
        int, typer.Option(help="Of weights, order, random codes: the same seed gives the same curve (on the same versions, threads and kernels).")
    ] = 0,
    option: Annotated[
        list[str] | None, typer.Option(help="A parameter of the rule (snn-rules info RULE shows them); can be repeated.", metavar="KEY=VALUE")
    ] = None,
    setting: SettingOption = None,
    limit_train: LimitOption = None,
    hold_out: HoldOption = None,
    device: DeviceOption = "cpu",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for checkpoint.pt and history.json. Default: a new one, runs/DATASET-RULE-N.", metavar="DIR")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the checkpoint in --out (or of the recipe and seed), to the bit as if there had been no break."),
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves to DIR/tensorboard, for `tensorboard --logdir DIR`.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Be one of the processes that torchrun starts; each takes its part of every batch.")
    ] = False,
) -> None:
    """Train a network by one rule. The rule's own settings are the defaults: 'trains with' in snn-rules info RULE.

    In several processes (one a GPU, or gloo on CPUs), with the curve of one: torchrun --nproc-per-node 2 -m snn_rules train --distributed --rule tssl
    """
    from . import experiments, recipes, tune_cpu_allocator
    from .distributed import team

    tune_cpu_allocator()  # the process trains and ends: what torch frees, the next step takes
    written = recipes.load(recipe) if recipe else None
    if written is None and rule is None:
        raise RuleError("train: pass --rule, such as --rule tssl (snn-rules list names them), or --recipe")
    settings = {"T": T, "lr": lr, "batch_size": batch_size, "epochs": epochs, "schedule": schedule, "device": device}
    if written:  # its values stand in the place of this command's defaults
        typed = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
        settings = {name: value for name, value in settings.items() if name in typed}
        network = network if "network" in typed else written.network
        dataset = dataset if "dataset" in typed else written.dataset
        if rule not in (None, written.rule):
            raise RuleError(f"train: recipe {recipe!r} is for rule {written.rule!r}, not {rule!r}; leave --rule out, or the recipe")
        rule = written.rule
    settings |= experiments.settings(setting or [])
    task = experiments.Task(ctx.obj, network, dataset, data_root, download, limit_train, settings, written, hold_out)
    with team(distributed, device) as together:
        experiments.train(task, str(rule), option or [], seed, folder, resume, tensorboard, together)


@app.command()
def compare(
    ctx: typer.Context,
    rules: Annotated[
        str, typer.Option(help="Rules, joined by ','; options of a rule follow it: surrogate,tssl,stdbp:mode=event.", metavar="A,B,...")
    ],
    network: NetworkOption = "100-10",
    dataset: DatasetOption = "digits",
    data_root: RootOption = Path("data"),
    download: DownloadOption = False,
    epochs: EpochsOption = None,
    T: StepsOption = None,
    lr: RateOption = None,
    batch_size: BatchOption = None,
    schedule: ScheduleOption = "constant",
    seeds: Annotated[str, typer.Option(help="Seeds, joined by ','; every rule is trained once with each.")] = "0,1",
    setting: SettingOption = None,
    limit_train: LimitOption = None,
    device: DeviceOption = "cpu",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for compare.json and compare.png. Default: a new one, runs/DATASET-compare-N.", metavar="DIR")
    ] = None,
) -> None:
    """Train the same network with the same seeds by several rules: a table, curves of accuracy, a JSON of all runs.

    In one process; only train has --distributed.
    """
    from . import experiments
    from .distributed import refuse_many

    refuse_many("compare")
    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise RuleError(f"compare: --seeds {seeds!r} should be whole numbers joined by ',', such as 0,1,2")
    settings = {"T": T, "lr": lr, "batch_size": batch_size, "epochs": epochs, "schedule": schedule, "device": device}
    settings |= experiments.settings(setting or [])
    task = experiments.Task(ctx.obj, network, dataset, data_root, download, limit_train, settings)
    labels = list(dict.fromkeys(label.strip() for label in rules.split(",")))
    experiments.compare(task, labels, list(dict.fromkeys(int(seed) for seed in seeds.split(","))), folder)


app.command()(lens)
app.command()(bench)


def _parameters(rule: LearningRule) -> list[dataclasses.Field[Any]]:
    """A rule's parameters, but for what it refuses: `decay_input` without a `tau_m`."""
    return [field for field in dataclasses.fields(rule) if field.name != "decay_input" or hasattr(rule, "tau_m")]


def _range(meta: Mapping[str, Any]) -> str:
    """The range of a number, as far as it has ends."""
    low, high = meta["low"], meta["high"]
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if math.isfinite(low) else f"at most {high:g}" if math.isfinite(high) else ""
