"""What ST-RSBP's options are worth: elastic distortion, weight regularisation, lateral inhibition, sparse wiring; three seeds.

    OMP_NUM_THREADS=1 python benchmarks/options.py --data-root DIR
    make docs

Writes benchmarks/results/options.json after each row, and goes on where it was stopped; the second
command puts the table into docs/results.md. On 8 x 8 digits under strsbp, with the constants of benchmarks/readings.py; and, since images
of 8 x 8 have little to distort, on the first 2,000 images of MNIST under tssl with its defaults. Within a group all is the same but for what
is tried.
"""

import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import papers
import torch
import typer
from readings import COMMON, SETTINGS

from snn_rules.console import progress
from snn_rules.data import load
from snn_rules.experiments import made, versions, write_json
from snn_rules.train import Config, configured, fit

RESULTS = Path(__file__).parent / "results" / "options.json"
SEEDS = (0, 1, 2)
# Simard's distortion, scaled from images of 29 x 29 to 8 x 8: movement and reach alike
ELASTIC = {"augment": "elastic", "elastic_alpha": 2.6, "elastic_sigma": 1.1}
GROUPS: dict[str, dict[str, Any]] = {  # data, rule, its options, settings
    "digits": {"rule": "strsbp", "options": SETTINGS["strsbp"]["options"], "train": {**COMMON, **SETTINGS["strsbp"]["train"]}},
    "mnist": {"rule": "tssl", "options": {}, "train": {**COMMON, "epochs": 20, "lr": 1e-3}},
}
LIMIT = 2000  # training images of MNIST; all 10,000 are tested
TRIED: list[tuple[str, str, dict[str, Any]]] = [
    ("digits", "100-10", {}),
    ("digits", "100-10", ELASTIC),
    ("digits", "100-10", {"regularize": "mean", "exp_lambda": 10.0}),
    ("digits", "100-10", {"regularize": "mean", "exp_lambda": 1.0}),
    ("digits", "100-10", {"regularize": "mean", "exp_lambda": 0.1}),
    ("digits", "100-10", {"inhibition": 0.1}),
    ("digits", "100-10", {"inhibition": 0.5}),
    ("digits", "100-10", {**ELASTIC, "regularize": "mean", "exp_lambda": 0.1, "inhibition": 0.1}),
    ("digits", "100-D0.2-10", {}),
    ("digits", "100-R5x5x4-10", {}),
    ("digits", "100-R100-10", {}),
    ("mnist", "100-10", {}),
    ("mnist", "100-10", {"augment": "elastic"}),
    ("mnist", "100-10", {"augment": "elastic", "rotation": 12.0, "scaling": 0.12}),
]


def table() -> str:
    """For docs/results.md."""
    lines = [papers.head("data | rule | network | options | test accuracy, % | seeds 0, 1, 2 | training accuracy, % | firing rates", 4)]
    for entry in json.loads(RESULTS.read_text())["runs"]:
        runs = list(entry["seeds"].values())
        found = [100 * run["test_accuracy"] for run in runs]
        options = ", ".join(f"`{key}={value}`" for key, value in entry["tried"].items()) or "none"
        firing = ", ".join(f"{statistics.mean(run['firing'][layer] for run in runs):.3f}" for layer in runs[0]["firing"])
        means = [f"{statistics.mean(found):.1f}", ", ".join(f"{value:.1f}" for value in found)]
        trained = f"{statistics.mean(100 * run['train_accuracy'] for run in runs):.1f}"
        lines.append(papers.row(entry["dataset"], entry["rule"], entry["network"], options, *means, trained, firing))
    return "\n".join(lines) + "\n"


def trained(dataset: str, network: str, tried: dict[str, Any], data_root: Path) -> dict[str, Any]:
    """A row: the last epoch of each seed."""
    group = GROUPS[dataset]
    rule, samples = configured(group["rule"], group["options"]), load(dataset, data_root).limit(LIMIT)
    seeds = {}
    for seed in SEEDS:
        config, begun = Config.of(rule, **{**group["train"], **tried}, seed=seed, network=network), time.perf_counter()
        torch.manual_seed(seed)
        last = fit(made(rule, samples, config), rule, samples, config).last
        kept = {key: getattr(last, key) for key in ("test_accuracy", "train_accuracy", "firing")}
        seeds[str(seed)] = {**kept, "seconds": round(time.perf_counter() - begun, 1)}
    settings = {key: value for key, value in asdict(config).items() if key != "seed"}
    of_row = {"dataset": dataset, "rule": rule.name, "network": network, "tried": tried}
    return {**of_row, "samples": len(samples.train_y), "seeds": seeds, "options": asdict(rule), "config": settings}


def main(data_root: Annotated[Path, typer.Option(help="Folder of the data files.")] = Path("data")) -> None:
    """Train every row that is not there yet."""
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    there = {json.dumps([row["dataset"], row["network"], row["tried"]]): row for row in rows}
    about = {"command": "OMP_NUM_THREADS=1 python benchmarks/options.py --data-root DIR", "versions": versions(), "threads": 1}
    with progress() as bar:
        for tried in bar.track(TRIED, description="options"):
            key = json.dumps(list(tried))
            there[key] = there.get(key) or trained(*tried, data_root)
            runs = [there[key] for key in map(json.dumps, map(list, TRIED)) if key in there]
            write_json(RESULTS, {**about, "runs": runs})
    print(table(), end="")


if __name__ == "__main__":
    typer.run(main)
