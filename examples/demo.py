"""The demo: every rule learns real digits in one SpikingJelly network, then takes six steps in SpikingJelly's ResNet-18.

    make demo

Prints a table, and where that is no terminal a line after each part; writes `demo/results.json` and
`demo/accuracy.png`. Two cores need about a minute.
"""

import json
import time
import warnings
from collections.abc import Callable
from functools import partial
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
SEED, STEPS = 0, 6


def learn_digits(bar: Progress, tell: Callable[[str], None]) -> tuple[dict[str, dict[str, float]], dict[str, list[list[float]]]]:
    """The loop of swap_rule.py under each rule: {rule: {accuracy, seconds}} and the curves."""
    data, results, curves = load("digits"), {}, {}
    for name, settings in SETTINGS.items():
        begun, curve = time.perf_counter(), []
        for accuracy in bar.track(train(name, data, SEED), settings["epochs"], description=f"{name:9} learns digits"):
            curve.append(accuracy)
        results[name] = {"accuracy": curve[-1], "seconds": time.perf_counter() - begun}
        curves[name] = [curve]
        tell(f"{name}: {curve[-1]:.1%} of the test digits after {results[name]['seconds']:.1f} s")
    return results, curves


def step_resnet(name: str) -> tuple[float, float]:
    """Six training steps of `spiking_resnet18` on one batch of random images; the first and the last loss.

    Small steps along the gradient: Adam moves every weight at once, after which the loss of some networks is one of chance.
    """
    torch.manual_seed(SEED)
    rule = snn_rules.get_rule(name)
    net = snn_rules.build("spiking_resnet18", rule=name, num_classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    images, labels, losses = torch.rand(4, 3, 32, 32), torch.arange(4), []
    for _ in range(STEPS):
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
    tell: Callable[[str], None] = (lambda _: None) if console.is_terminal else partial(print, flush=True)
    table = Table("rule", "test accuracy", "seconds", "ResNet-18: loss of step 1", f"of step {STEPS}", title="64-100-10 on scikit-learn's digits")
    with warnings.catch_warnings(), Progress(console=console, transient=True) as bar:
        warnings.filterwarnings("ignore", message="'tau' has no meaning for rule 'stdbp'")
        results, curves = learn_digits(bar, tell)
        for name, result in results.items():
            first, last = step_resnet(name)
            tell(f"{name}: ResNet-18's loss from {first:.2f} to {last:.2f} in {STEPS} steps")
            table.add_row(name, f"{result['accuracy']:.1%}", f"{result['seconds']:.1f}", f"{first:.2f}", f"{last:.2f}")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot.accuracy(FOLDER / "accuracy.png", curves, f"64-100-10 on scikit-learn's digits, seed {SEED}")
    console.print(table)
    console.print(f"written: {FOLDER}/results.json, {FOLDER}/accuracy.png")


if __name__ == "__main__":
    main()
