"""Layers that leave out the zeros of spike trains (`snn_rules.skip_zeros`), beside the same layers as torch computes them.

    OMP_NUM_THREADS=2 python benchmarks/zeros.py

Median milliseconds of the layers' products, and of training steps (forward, loss, backward, Adam, reset), with and without in turn.
Prints three tables and writes `benchmarks/results/zeros.json`.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from spikingjelly.activation_based import functional
from torch.nn.grad import conv2d_weight

import snn_rules
from snn_rules.experiments import surroundings, write_json
from snn_rules.kernels import zeros, zeros_conv
from snn_rules.network import network

RESULTS = Path(__file__).parent / "results" / "zeros.json"
ROWS = 20000  # steps times samples
LAYERS = [(784, 400), (400, 400), (400, 10)]
DENSITIES = [0.01, 0.02, 0.05, 0.1, 0.125, 0.25]
CONVS = [  # images, channels, height and width, output channels, kernel, padding
    (5000, 1, 28, 15, 5, 0),
    (5000, 15, 12, 40, 5, 0),
    (80, 64, 56, 64, 3, 1),
    (80, 128, 28, 128, 3, 1),
    (80, 256, 14, 256, 3, 1),
]
CONV_DENSITIES = [0.01, 0.05, 0.08, 0.125]
STEPS = [
    ("strsbp", "400-400-10", 100),
    ("strsbp", "400-R400-10", 100),
    ("strsbp", "400-R400-10", 400),
    ("strsbp", "15C5-P2n-40C5-P2n-300-10", 100),
    ("tssl", "400-400-10", 100),
]
BATCH = 50


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """In milliseconds, in turn, after a first round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if k:
                times[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in times.items()}


def products(inputs: int, outputs: int, density: float, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    x, weight, g = (torch.rand(ROWS, inputs) < density).float(), torch.randn(outputs, inputs), torch.randn(ROWS, outputs)
    runs: dict[str, Callable[[], object]] = {
        "linear": lambda: F.linear(x, weight),
        "without zeros": lambda: zeros.product(x, weight, None),
        "gradient": lambda: g.t() @ x,
        "gradient without zeros": lambda: zeros.weight_gradient(g, x),
    }
    return {"inputs": inputs, "outputs": outputs, "density": density, **medians(runs, rounds)}


def convolutions(images: int, channels: int, size: int, outputs: int, kernel: int, padding: int, density: float, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    x, weight = (torch.rand(images, channels, size, size) < density).float(), torch.randn(outputs, channels, kernel, kernel)
    how, around = ((1, 1), (padding, padding)), dict(padding=padding)
    g = torch.randn_like(F.conv2d(x, weight, **around))
    runs: dict[str, Callable[[], object]] = {
        "conv2d": lambda: F.conv2d(x, weight, **around),
        "without zeros": lambda: zeros_conv.product(x, weight, None, *how),
        "gradient": lambda: conv2d_weight(x, weight.shape, g, **around),
        "gradient without zeros": lambda: zeros_conv.weight_gradient(g, x, weight, *how),
    }
    about = {"images": images, "channels": channels, "size": size, "outputs": outputs, "kernel": kernel, "padding": padding}
    return {**about, "density": density, **medians(runs, rounds)}


def step(name: str, text: str, T: int, rounds: int) -> dict[str, Any]:
    """Of a network with its first weights, on spikes as sparse as Fashion-MNIST's in the recipes: one input in twenty."""
    rule = snn_rules.get_rule(name)
    torch.manual_seed(0)
    net, x, labels = network(text, rule, (1, 28, 28)), (torch.rand(T, BATCH, 1, 28, 28) < 0.05).float(), torch.arange(BATCH) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)

    def run(how: Callable[[], AbstractContextManager[Any]]) -> None:
        optimizer.zero_grad()
        with how():
            out = net(x)
        rule.loss(out, labels).backward()
        optimizer.step()
        functional.reset_net(net)

    found = medians({"linear": lambda: run(nullcontext), "without zeros": lambda: run(snn_rules.skip_zeros)}, rounds)
    return {"rule": name, "network": text, "T": T, **found}


def main(rounds: Annotated[int, typer.Option(help="Repetitions of which the median is taken.", min=1)] = 15) -> None:
    snn_rules.tune_cpu_allocator()  # or the first results would pay for fresh memory
    about = {
        "command": "OMP_NUM_THREADS=2 python benchmarks/zeros.py",
        **surroundings(),
        "rows": ROWS,
        "batch": BATCH,
        "dtype": "float32",
    }
    layers = [products(*layer, density, rounds) for layer in LAYERS for density in DENSITIES]
    shown = Table("layer", "not zero", "output, ms", "without zeros", "gradient, ms", "without zeros", title=f"{ROWS} rows, float32")
    for row in layers:
        times = [f"{row[name]:.1f}" for name in ("linear", "without zeros", "gradient", "gradient without zeros")]
        shown.add_row(f"{row['inputs']}-{row['outputs']}", f"{row['density']:.1%}", *times)
    convs = [convolutions(*layer, density, rounds) for layer in CONVS for density in CONV_DENSITIES]
    folded = Table("images", "layer", "not zero", "output, ms", "without zeros", "gradient, ms", "without zeros", title="convolutions, float32")
    for row in convs:
        times = [f"{row[name]:.1f}" for name in ("conv2d", "without zeros", "gradient", "gradient without zeros")]
        what = f"{row['channels']} x {row['size']} x {row['size']}, {row['outputs']}C{row['kernel']}p{row['padding']}"
        folded.add_row(str(row["images"]), what, f"{row['density']:.1%}", *times)
    steps = [step(*what, rounds) for what in STEPS]
    trained = Table("rule", "network", "T", "ms", "without zeros", "times faster", title=f"training step, batch {BATCH}")
    for row in steps:
        a, b = row["linear"], row["without zeros"]
        trained.add_row(row["rule"], row["network"], str(row["T"]), f"{a:.0f}", f"{b:.0f}", f"{a / b:.2f}")
    Console(width=120).print(shown, folded, trained)
    write_json(RESULTS, {**about, "layers": layers, "convolutions": convs, "steps": steps})


if __name__ == "__main__":
    typer.run(main)
