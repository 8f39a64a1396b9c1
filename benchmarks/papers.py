"""The papers' tables: what `snn-rules train --recipe NAME --seed N` wrote, merged over seeds, and shown in docs/results.md.

    python benchmarks/papers.py runs/tssl-fashion-mnist-400-400-seed*
    make docs

The first takes the folders of the seeds of one recipe and writes benchmarks/results/RULE-DATASET-NETWORK.json; what was
changed on the command line (`--option warmup=off`) makes a row of its own, named after it. With `--so-far`, trainings that
were stopped before their last epoch are taken, too, and the row says after how many; with `--add`, seeds join those of the
row that is there. The second writes the tables of docs/results.md anew. Accuracies are in percent. `best` is that of the best
epoch by test accuracy, as the papers report it; `last` that of the last epoch, which no test sample has chosen.
"""

import json
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from snn_rules import recipes
from snn_rules.data import SETTINGS
from snn_rules.experiments import write_json
from snn_rules.train import Config, configured

RESULTS = Path(__file__).parent / "results"
COLUMNS = "rule | data | network | T | epochs | seeds | paper: mean (best) | best epoch: mean ± std (best) | last epoch: mean ± std"
COSTS = "s an epoch | peak MB | synaptic operations a sample | firing rates | warm-up"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def collect(
    folders: Annotated[list[Path], typer.Argument(help="Of the seeds of one recipe; each holds a history.json.")],
    so_far: Annotated[bool, typer.Option("--so-far", help="Take trainings that were stopped before their last epoch, too.")] = False,
    add: Annotated[bool, typer.Option("--add", help="Add the seeds to those that the row has already.")] = False,
) -> None:
    """Merge the seeds of one recipe into a file of benchmarks/results."""
    result = merge([json.loads((folder / "history.json").read_text()) for folder in folders], so_far)
    path = RESULTS / (name(result) + ".json")
    if add and not path.exists():
        raise SystemExit(f"papers: there is no row {str(path)!r} to add seeds to; leave out --add")
    if add:
        result = joined(json.loads(path.read_text()), result)
    write_json(path, result)
    typer.echo(f"{result['mean']:.2f} % over seeds {', '.join(map(str, result['seeds']))}; wrote {path}")


# ---- merging ---------------------------------------------------------------------------------------------------------


def merge(histories: Sequence[Mapping[str, Any]], so_far: bool = False) -> dict[str, Any]:
    """One result of the histories of several seeds."""
    histories = sorted(histories, key=lambda history: history["config"]["seed"])
    first = histories[0]
    for history in histories:
        done, planned = len(history["epochs"]), history["config"]["epochs"]
        if done < planned and not so_far:
            raise SystemExit(f"papers: {history['command']!r} was stopped after {done} of {planned} epochs; go on with --resume, or pass --so-far")
        if same(history) != same(first):
            raise SystemExit(f"papers: {history['command']!r} and {first['command']!r} differ in more than the seed")
    seeds = [history["config"]["seed"] for history in histories]
    if len(set(seeds)) < len(seeds):
        raise SystemExit(f"papers: the seeds {seeds} are not all different")
    curves = {str(seed): curve(history["epochs"]) for seed, history in zip(seeds, histories, strict=True)}
    ends = [history["epochs"][-1] for history in histories]
    seconds = [epoch["seconds"] for history in histories for epoch in history["epochs"]]
    return {
        "rule": first["rule"],
        "dataset": first["dataset"],
        "network": first["network"].rpartition("-")[0],
        "samples": first.get("samples", {"train": 60000, "test": 10000}),
        "recipe": first["recipe"],
        "changed": changed(first),
        "command": f"for seed in {' '.join(map(str, seeds))}; do {command(first['command'])} --seed $seed; done",
        "seeds": seeds,
        "curves": curves,
        **accuracy(curves),
        "epochs": min(len(history["epochs"]) for history in histories),
        "time": {"seconds_per_epoch": rounded(statistics.median(seconds)), "step_ms": mean(end["step_ms"] for end in ends)},
        "peak_memory_mb": rounded(max(history["peak_memory_mb"] for history in histories)),
        "threads": first["threads"],
        "firing_rates": average([end["firing"] for end in ends]),
        "synops": average([end["synops"] for end in ends]),
        "counted": average([end["counted"] for end in ends]),
        "paper": first["paper"],
        "options": first["options"],
        "config": {key: value for key, value in first["config"].items() if key != "seed"},
        "versions": first["versions"],
    }


def joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """One row of two, of other seeds: where its trainings are gone, or on another machine."""
    for key in ("config", "options", "epochs", "recipe"):
        was, now = (asdict(Config(**row[key])) if key == "config" else row[key] for row in (old, new))
        if was != now:
            raise SystemExit(f"papers: the row there and the seeds to add differ in their {key}")
    if both := set(old["seeds"]) & set(new["seeds"]):
        raise SystemExit(f"papers: the row has the seeds {sorted(both)} already")
    curves = dict(sorted({**old["curves"], **new["curves"]}.items(), key=lambda pair: int(pair[0])))
    numbers, many = [int(seed) for seed in curves], (len(old["seeds"]), len(new["seeds"]))
    shares = {key: blend(old[key], new[key], many) for key in ("time", "firing_rates", "synops", "counted")}
    memory = {"peak_memory_mb": max(old["peak_memory_mb"], new["peak_memory_mb"])}
    said = {"command": new["command"].replace(f"for seed in {' '.join(map(str, new['seeds']))};", f"for seed in {' '.join(map(str, numbers))};")}
    return {**new, **said, "seeds": numbers, "curves": curves, **accuracy(curves), **shares, **memory}


def blend(old: Mapping[str, float], new: Mapping[str, float], many: tuple[int, int]) -> dict[str, float]:
    """The means of two rows, by their numbers of seeds."""
    return {key: rounded((many[0] * old[key] + many[1] * new[key]) / sum(many), 4) for key in new}


def accuracy(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    best, last = ([curve[key] for curve in curves.values()] for key in ("best", "last"))
    ends = {"last_mean": rounded(statistics.mean(last)), "last_std": spread(last)}
    return {"mean": rounded(statistics.mean(best)), "std": spread(best), "best": max(best), **ends}


def same(history: Mapping[str, Any]) -> Any:
    """What the seeds of a row have in common."""
    config = Config(**{**history["config"], "seed": 0})
    return history["rule"], history["dataset"], history["options"], config, history["recipe"], history.get("limit_train"), history.get("hold_out")


def changed(history: Mapping[str, Any]) -> dict[str, Any]:
    """Where the training departs from its recipe."""
    recipe = recipes.load(history["recipe"])
    rule = configured(recipe.rule, recipe.options)
    config = Config.of(rule, **{**SETTINGS.get(recipe.dataset, {}), **recipe.train}, network=recipe.network)
    of_data = ("limit_train", "hold_out")
    written, done = {**asdict(config), **asdict(rule)}, {**history["config"], **history["options"]}
    done |= {key: history.get(key) for key in of_data}
    return {key: value for key, value in done.items() if key != "seed" and written.get(key) != value}


def command(typed: str, dropped: Sequence[str] = ("--seed", "--out")) -> str:
    """The command without what is of one machine, or of one seed."""
    words, kept = iter(shlex.split(typed)), []
    for word in words:
        if word in dropped:
            next(words, None)
        elif word == "--data-root":
            next(words, None)
            kept += [word, "DIR"]
        elif word != "--resume":
            kept.append(word)
    return shlex.join(kept)


def curve(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = [rounded(100 * epoch["test_accuracy"]) for epoch in epochs]
    trained = [rounded(100 * epoch["train_accuracy"]) for epoch in epochs]
    return {"best": max(found), "best_epoch": found.index(max(found)) + 1, "last": found[-1], "test_accuracy": found, "train_accuracy": trained}


def average(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: mean(each[key] for each in found) for key in found[0]}


def mean(values: Iterable[float]) -> float:
    return rounded(statistics.mean(values), 4)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation; none of one seed."""
    return rounded(statistics.stdev(values), 3) if len(values) > 1 else None


def rounded(value: float, digits: int = 2) -> float:
    return round(float(value), digits)


# ---- showing ---------------------------------------------------------------------------------------------------------


def name(result: Mapping[str, Any]) -> str:
    parts = [result["rule"], result["dataset"], result["network"], *(f"{key}-{value}" for key, value in result["changed"].items())]
    return "-".join(parts)


def results() -> list[dict[str, Any]]:
    """All rows: those of a paper first, the other rules on the same network after it."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    rows = [result for result in found if "curves" in result]
    return sorted(rows, key=lambda r: (r["dataset"], r["network"], not r["paper"], r["rule"], len(r["changed"]), name(r)))


def table() -> str:
    lines = [head(COLUMNS, 3)]
    for r in results():
        ours = f"{r['mean']:.2f}{plus(r['std'])} ({r['best']:.2f})"
        lines.append(row(label(r), r["dataset"], r["network"], r["config"]["T"], of_paper(r), seeds(r), paper(r), ours, last(r)))
    lines += ["", head(f"{COLUMNS.split(' | T')[0]} | {COSTS}", 3)]
    for r in results():
        firing = ", ".join(f"{rate:.3f}" for rate in r["firing_rates"].values())
        warm = ", ".join(f"{value:.2f}" for key, value in r["counted"].items() if key.endswith("warmup_fraction"))
        costs = f"{r['time']['seconds_per_epoch']:.1f}", f"{r['peak_memory_mb']:,.0f}", f"{sum(r['synops'].values()):,.0f}"
        lines.append(row(label(r), r["dataset"], r["network"], *costs, firing, warm))
    return "\n".join(lines) + "\n"


def short() -> str:
    """Each row of a paper by its longest training, and surrogate gradients on the same network beside it."""
    runs = sorted((r for r in results() if set(r["changed"]) <= {"epochs"}), key=lambda r: r["epochs"])
    longest = {(r["dataset"], r["network"], r["rule"]): r for r in runs}
    lines = [head("rule | data | network | T | epochs | seeds | ours | paper | surrogate (epochs)", 3)]
    for key in sorted(key for key, r in longest.items() if r["paper"]):
        r, beside = longest[key], longest.get((*key[:2], "surrogate"))
        ours, there = (f"{one['mean']:.2f}{plus(one['std'])}" if one else "-" for one in (r, beside))
        there += f" ({beside['epochs']})" if beside else ""
        lines.append(row(r["rule"], *key[:2], r["config"]["T"], of_paper(r), len(r["seeds"]), ours, f"{r['paper']['mean']:.2f}", there))
    return "\n".join(lines) + "\n"


def cross() -> str:
    """The same network under every rule: the mean of the best epochs, in brackets T, the epochs and the number of seeds."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for r in results():
        if set(r["changed"]) <= {"T", "epochs"}:  # no ablation
            about = f"T {r['config']['T']}, {r['epochs']} epochs, {len(r['seeds'])} seed{'s' * (len(r['seeds']) > 1)}"
            found.setdefault((r["dataset"], r["network"]), {}).setdefault(r["rule"], f"{r['mean']:.2f}{plus(r['std'])} ({about})")
    shared = {key: cells for key, cells in found.items() if len(cells) > 1}
    rules = sorted({rule for cells in shared.values() for rule in cells}, key=lambda rule: (rule != "surrogate", rule))
    lines = [head(f"data | network | {' | '.join(rules)}", 2)]
    lines += [row(*key, *(cells.get(rule, "-") for rule in rules)) for key, cells in shared.items()]
    return "\n".join(lines) + "\n"


def label(r: Mapping[str, Any]) -> str:
    settings = ", ".join(f"`{key}={value}`" for key, value in r["changed"].items())
    return f"{r['rule']}, {settings}" if settings else str(r["rule"])


def paper(r: Mapping[str, Any]) -> str:
    best = f" ({r['paper']['best']:.2f})" if "best" in r["paper"] else ""
    return f"{r['paper']['mean']:.2f}{best}" if r["paper"] and not r["changed"] else "-"


def of_paper(r: Mapping[str, Any]) -> str:
    return f"{r['epochs']} of {r['paper']['epochs']}" if "epochs" in r["paper"] else str(r["epochs"])


def seeds(r: Mapping[str, Any]) -> str:
    return ", ".join(map(str, r["seeds"]))


def last(r: Mapping[str, Any]) -> str:
    return f"{r['last_mean']:.2f}{plus(r['last_std'])}"


def plus(value: float | None) -> str:
    return "" if value is None else f" ± {value:.2f}"


def head(columns: str, left: int) -> str:
    return f"| {columns} |\n|{'---|' * left}{'---:|' * (columns.count('|') + 1 - left)}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    app()
