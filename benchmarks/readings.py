"""What the readings of the papers are worth: each option that decides between two, on 8 x 8 digits, three seeds.

    OMP_NUM_THREADS=1 python benchmarks/readings.py

One core needs some minutes. Writes `benchmarks/results/readings.json` and prints the table of docs/results.md. The
network is 100-10; everything but the option under test is a row of SETTINGS, the same for all variants of a rule. It runs
on eager torch unless SNN_RULES_EXECUTOR says otherwise: kernels sum in another order, and so make other curves.
"""

import os
import statistics
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from snn_rules import kernels
from snn_rules.data import load
from snn_rules.experiments import versions, write_json
from snn_rules.network import network
from snn_rules.rule import LearningRule
from snn_rules.train import Config, configured, fit

RESULTS = Path(__file__).parent / "results" / "readings.json"
SEEDS = (0, 1, 2)
NETWORK = "100-10"
COMMON = {"batch_size": 32, "schedule": "cosine", "optimizer": "adam"}
SETTINGS: dict[str, dict[str, Any]] = {  # of training, over the rule's own; and options of the rule
    "tssl": {"train": {"lr": 5e-3, "epochs": 15}, "options": {}},
    "strsbp": {"train": {"T": 60, "lr": 5e-3, "epochs": 20}, "options": {"tau_m": 16.0, "tau_s": 4.0, "v_threshold": 2.0}},
    "stdbp": {"train": {"lr": 3e-3, "epochs": 15}, "options": {"mode": "event"}},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [  # the first of a rule is what `snn-rules train` takes
    ("tssl", {}),
    ("tssl", {"warmup": "layer"}),
    ("tssl", {"warmup": "off"}),
    ("tssl", {"dadt": "shift"}),
    ("tssl", {"dadt": "continuous"}),
    ("tssl", {"intra": False}),
    ("tssl", {"leak": False}),
    ("strsbp", {"silent": "expected"}),
    ("strsbp", {"silent": "zero"}),
    ("stdbp", {"revive": 1.0}),
    ("stdbp", {"revive": 0.0}),
]


def run(rule: LearningRule, config: Config) -> dict[str, Any]:
    """One training: the last epoch, and what the neurons count of the last backward pass."""
    data, begun = load("digits"), time.perf_counter()
    torch.manual_seed(config.seed)
    net = network(NETWORK, rule, data.shape, data.classes)
    last = fit(net, rule, data, config).last
    with torch.no_grad():
        x = (data.test_x - data.train_x.mean()) / data.train_x.std() if config.normalize else data.test_x
        out = net.eval()(rule.encode(x, config.T))
    fired = out < rule.window if rule.capabilities.signal == "times" else out > 0
    counted = {f"{path} {name}": getattr(node, name) for path, node in net.named_children() for name in rule.diagnostics if hasattr(node, name)}
    return {
        "test_accuracy": last.test_accuracy,
        "train_accuracy": last.train_accuracy,
        "firing": last.firing,
        "silent_outputs": int((~fired.flatten(0, 1).any(0)).sum()),  # classes that no test sample makes fire
        "counted": counted,
        "seconds": time.perf_counter() - begun,
    }


def row(entry: dict[str, Any]) -> str:
    """A line of the table."""
    runs = list(entry["seeds"].values())
    found = [100 * run["test_accuracy"] for run in runs]
    trained = statistics.mean(100 * run["train_accuracy"] for run in runs)
    changed = ", ".join(f"{key}={value}" for key, value in entry["changed"].items()) or "as it is"
    counted = [f"{name.split()[1]} {statistics.mean(run['counted'][name] for run in runs):.2f}" for name in runs[0]["counted"] if "neuron1" in name]
    seeds = ", ".join(f"{value:.1f}" for value in found)
    silent = ", ".join(str(run["silent_outputs"]) for run in runs)
    return f"| {entry['rule']} | {changed} | {statistics.mean(found):.1f} | {seeds} | {trained:.1f} | {silent} | {', '.join(counted)} |"


def main() -> None:
    torch.set_num_threads(1)
    kernels.FORCED = os.environ.get("SNN_RULES_EXECUTOR", "eager")
    warnings.filterwarnings("ignore", message=".*gradient of exactly zero")
    warnings.filterwarnings("ignore", message="'tau' has no meaning")
    found: list[dict[str, Any]] = []
    columns = ("rule", "option", "test accuracy, %", "seeds 0, 1, 2", "training accuracy, %", "silent outputs of 10", "counted in layer 1")
    print(f"| {' | '.join(columns)} |\n|---|---|---:|---|---:|---|---|")
    for name, changed in VARIANTS:
        settings = SETTINGS[name]
        rule = configured(name, {**settings["options"], **changed})
        configs = {seed: Config.of(rule, **COMMON, **settings["train"], seed=seed, network=NETWORK) for seed in SEEDS}
        entry = {"rule": name, "changed": changed, "options": asdict(rule), "config": asdict(configs[SEEDS[0]])}
        entry["executor"] = kernels.executor(rule, torch.zeros(1, 1, 1)).name
        entry["seeds"] = {str(seed): run(rule, config) for seed, config in configs.items()}
        found.append(entry)
        print(row(entry), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"command": "python benchmarks/readings.py", "versions": versions(), "threads": torch.get_num_threads(), "network": NETWORK}
    write_json(RESULTS, {**about, "dataset": "digits", "runs": found})


if __name__ == "__main__":
    main()
