"""The demo: every rule learns real digits in one SpikingJelly network, then takes five steps in SpikingJelly's ResNet-18.

    make demo

Prints a table; writes `demo/results.json` and `demo/accuracy.png`. Two cores need about a minute.
"""

import json
import time
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from spikingjelly.activation_based import functional
from swap_rule import SETTINGS, train

import snn_rules
from snn_rules import plot
from snn_rules.data import load

FOLDER = Path("demo")
SEED = 0


def learn_digits(bar: Progress) -> tuple[dict[str, dict[str, float]], dict[str, list[list[float]]]]:
    """The loop of swap_rule.py under each rule: {rule: {accuracy, seconds}} and the curves."""
    data, results, curves = load("digits"), {}, {}
    for name, settings in SETTINGS.items():
        begun, curve = time.perf_counter(), []
        for accuracy in bar.track(train(name, data, SEED), settings["epochs"], description=f"{name:9} learns digits"):
            curve.append(accuracy)
        results[name] = {"accuracy": curve[-1], "seconds": time.perf_counter() - begun}
        curves[name] = [curve]
    return results, curves


def step_resnet(name: str) -> tuple[float, float]:
    """Five training steps of `spiking_resnet18` on one batch of random images; the first and the last loss."""
    torch.manual_seed(SEED)
    rule = snn_rules.get_rule(name)
    net = snn_rules.build("spiking_resnet18", rule=name, num_classes=10)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    images, labels, losses = torch.rand(4, 3, 32, 32), torch.arange(4), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = rule.loss(net(rule.encode(images, 4)), labels)
        loss.backward()
        optimizer.step()
        functional.reset_net(net)
        losses.append(loss.item())
    return losses[0], losses[-1]


def main() -> None:
    torch.set_num_threads(2)
    console = Console()
    table = Table("rule", "test accuracy", "seconds", "ResNet-18: loss of step 1", "of step 5", title="64-100-10 on scikit-learn's digits")
    with warnings.catch_warnings(), Progress(console=console, transient=True) as bar:
        warnings.filterwarnings("ignore", message="'tau' has no meaning for rule 'stdbp'")
        results, curves = learn_digits(bar)
        for name, result in results.items():
            first, last = step_resnet(name)
            table.add_row(name, f"{result['accuracy']:.1%}", f"{result['seconds']:.1f}", f"{first:.2f}", f"{last:.2f}")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot.accuracy(FOLDER / "accuracy.png", curves, f"64-100-10 on scikit-learn's digits, seed {SEED}")
    console.print(table)
    console.print(f"written: {FOLDER}/results.json, {FOLDER}/accuracy.png")


if __name__ == "__main__":
    main()
