"""Through the lens while a network trains: surrogate and tssl at the same weights, on 8 x 8 digits, five seeds.

    OMP_NUM_THREADS=1 python benchmarks/lens.py

One core needs some minutes. Writes `benchmarks/results/lens.json` and prints the tables of docs/lens.md. The network is
100-10 of LIF neurons (tau_m 2, threshold 1), so that both rules make the same spikes; both train it with the same
settings, CONFIG, and after some of the epochs all 1,437 samples for training are looked at.
"""

import copy
import statistics
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from snn_rules import compare_gradients, convert, get_rule
from snn_rules.data import load
from snn_rules.experiments import versions, write_json
from snn_rules.lens_report import plain
from snn_rules.train import Config, History, fit

RESULTS = Path(__file__).parent / "results" / "lens.json"
SEEDS = (0, 1, 2, 3, 4)
RULES = ("surrogate", "tssl")
LOOK = (1, 5, 20)  # after so many epochs
STEPS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
CONFIG = {"T": 10, "batch_size": 32, "lr": 3e-3, "epochs": LOOK[-1], "clip": None, "reduction": "mean", "normalize": False}


def network() -> nn.Module:
    neurons = [neuron.LIFNode(decay_input=False) for _ in range(2)]
    net = nn.Sequential(layer.Flatten(), layer.Linear(64, 100, bias=False), neurons[0], layer.Linear(100, 10, bias=False), neurons[1])
    functional.set_step_mode(net, "m")
    return net


def train(name: str, seed: int) -> list[dict[str, Any]]:
    """What the lens saw of one training: with each rule's own loss, and with that of the rule that trains."""
    digits, seen = load("digits"), []
    torch.manual_seed(seed)
    net = convert(network(), name)

    def look(epoch: int, history: History) -> None:
        if epoch + 1 in LOOK:
            x, y = digits.train_x, digits.train_y
            both = (compare_gradients(copy.deepcopy(net), x, y, RULES, T=10, steps=STEPS, loss=loss, seed=seed) for loss in (None, name))
            own, common = both
            assert own.same_forward
            accuracy = {"train": history.last.train_accuracy, "test": history.last.test_accuracy}
            seen.append({"trained_by": name, "seed": seed, "epoch": epoch + 1, "accuracy": accuracy, "own": plain(own), "common": plain(common)})

    fit(net, get_rule(name), digits, Config.of(get_rule(name), **CONFIG, seed=seed), on_epoch=look)
    return seen


def tables(runs: list[dict[str, Any]]) -> str:
    """Means and standard deviations over the seeds: accuracy and cosines; and the fall of either loss along three directions."""
    directions = (*RULES, "random")
    cosines = ["| trained by | epoch | test accuracy, % | cosine, own losses | cosine, one loss |", "|---|---:|---:|---:|---:|"]
    falls = [f"| trained by | epoch | loss of | {' | '.join(f'falls along {along}, %' for along in directions)} |", "|---|---:|---|---:|---:|---:|"]
    for name in RULES:
        for epoch in LOOK:
            seen = [run for run in runs if (run["trained_by"], run["epoch"]) == (name, epoch)]
            accuracy = spread([100 * run["accuracy"]["test"] for run in seen], 1)
            both = [spread([run[loss]["cosine"][-1][0][1] for run in seen], 2) for loss in ("own", "common")]
            cosines.append(f"| {name} | {epoch} | {accuracy} | {' | '.join(both)} |")
            for under, judge in enumerate(RULES):
                cells = [spread([fall(run["own"]["loss"][under][along]) for run in seen], 1) for along in range(len(directions))]
                falls.append(f"| {name} | {epoch} | {judge} | {' | '.join(cells)} |")
    return "\n".join([*cosines, "", *falls])


def fall(losses: list[float]) -> float:
    """The largest fall over the lengths of the step, in percent of the loss."""
    return 100 * (1 - min(losses) / losses[0])


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    torch.set_num_threads(1)
    runs = [run for name in RULES for seed in SEEDS for run in train(name, seed)]
    about = {"command": "python benchmarks/lens.py", "versions": versions(*map(get_rule, RULES)), "threads": 1, "dataset": "digits"}
    write_json(RESULTS, {**about, "config": CONFIG, "runs": runs})
    print(tables(runs))


if __name__ == "__main__":
    main()
