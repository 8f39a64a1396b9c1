"""Settings chosen without the test set: a grid over a recipe, each trial tested on samples held out of the training set.

    python benchmarks/tune.py surrogate/mnist-400 --set lr=4e-4,1e-3,3e-3 --set weight_decay=0.01,1 --epochs 8 --data-root DIR
    make docs

Each `--set` names a setting of the training (`snn_rules.train.Config`) or a parameter of the rule, and the values to try; every
combination is a trial. The schedule is made for `--epochs`. A trial counts by its last epoch, so that no sample chooses the epoch.
It writes benchmarks/results/tuning-RULE-DATASET-NETWORK-SETTINGS.json, and goes on where it was stopped; the second command writes the
tables of docs/results.md anew. The recipe is not changed: its author takes what won, or says why not.
"""

import itertools
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import papers
import typer

from snn_rules import recipes
from snn_rules.experiments import Task, option, train, write_json
from snn_rules.train import Config

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def tune(
    recipe: Annotated[str, typer.Argument(help="A recipe, as for snn-rules train.")],
    grid: Annotated[list[str], typer.Option("--set", help="A setting and the values to try; can be repeated.", metavar="KEY=A,B,...")],
    epochs: Annotated[int, typer.Option(help="Of each trial.")] = 8,
    hold_out: Annotated[int, typer.Option(help="The last N training samples judge.", metavar="N")] = 10000,
    limit_train: Annotated[int | None, typer.Option(help="Train on the first N samples only.", metavar="N")] = None,
    seed: Annotated[int, typer.Option(help="Of all trials.")] = 0,
    data_root: Annotated[Path, typer.Option(help="Folder of the data files.")] = Path("data"),
    folder: Annotated[Path, typer.Option("--out", help="Folder of the trials, which is made.")] = Path("runs/tuning"),
) -> None:
    """Train every combination, and write which did best on the samples held out."""
    written, typed = recipes.load(recipe), shlex.join(["python", "benchmarks/tune.py", *sys.argv[1:]])
    trials = []
    for settings in combinations(grid):
        place = folder / written.folder / (",".join(f"{key}={value}" for key, value in settings.items()))
        of_training = {key: value for key, value in settings.items() if key in {f.name for f in fields(Config)}}
        options = [f"{key}={value}" for key, value in settings.items() if key not in of_training]
        of_training["epochs"] = epochs
        task = Task(typed, written.network, written.dataset, data_root, False, limit_train, of_training, written, hold_out)
        train(task, written.rule, options, seed, place, resume=(place / "checkpoint.pt").exists())
        history = json.loads((place / "history.json").read_text())
        last = history["epochs"][-1]
        accuracy = {key: papers.rounded(100 * last[f"{part}_accuracy"]) for key, part in (("accuracy", "test"), ("train_accuracy", "train"))}
        trials.append({"settings": settings, **accuracy, "seconds": papers.rounded(sum(epoch["seconds"] for epoch in history["epochs"]))})
    about = {key: history[key] for key in ("rule", "dataset", "recipe", "samples", "versions")}
    about["network"] = written.network.rpartition("-")[0]
    won = max(trials, key=lambda trial: trial["accuracy"])["settings"]  # the first of equals
    for key in ("options", "config"):  # of all trials
        about[key] = {name: value for name, value in history[key].items() if name not in {*won, "seed"}}
    of_trials = {"seed": seed, "epochs": epochs, "hold_out": hold_out, "trials": trials, "won": won}
    path = papers.RESULTS / ("-".join(["tuning", about["rule"], about["dataset"], about["network"], *won]) + ".json")
    write_json(path, {**about, "command": papers.command(typed, ("--out",)), **of_trials})
    typer.echo(f"{said(won)} did best; wrote {path}")


def combinations(grid: list[str]) -> list[dict[str, Any]]:
    """Every combination of the values of `KEY=A,B,...`, in the order given."""
    pairs = [(key, [option(f"{key}={value}")[1] for value in values.split(",")]) for key, _, values in (text.partition("=") for text in grid)]
    return [dict(zip([key for key, _ in pairs], values, strict=True)) for values in itertools.product(*(values for _, values in pairs))]


def said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in settings.items())


def table() -> str:
    """All trials, for docs/results.md."""
    lines = [papers.head("rule | data | network | epochs | trial | accuracy on the samples held out | on those trained with", 3)]
    found = [json.loads(path.read_text()) for path in papers.RESULTS.glob("tuning-*.json")]
    for result in sorted(found, key=lambda r: (r["dataset"], r["network"], r["rule"], list(r["won"]))):
        for trial in result["trials"]:
            accuracy = f"{trial['accuracy']:.2f}"
            shown = f"**{accuracy}**" if trial["settings"] == result["won"] else accuracy
            about = result["rule"], result["dataset"], result["network"], result["epochs"]
            lines.append(papers.row(*about, said(trial["settings"]), shown, f"{trial['train_accuracy']:.2f}"))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
