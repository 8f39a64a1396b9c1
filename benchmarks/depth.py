"""How a gradient grows from layer to layer: a chain of convolution, batch normalisation and neuron, under every rule.

    OMP_NUM_THREADS=1 python benchmarks/depth.py

Some seconds. Writes `benchmarks/results/depth.json`, which docs/factories.md (`python benchmarks/factories.py --table`) shows.
"""

import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import snn_rules
from snn_rules.experiments import versions, write_json

RESULTS = Path(__file__).parent / "results" / "depth.json"
CASES: list[tuple[str, dict[str, Any]]] = [
    ("surrogate", {}),
    ("tssl", {}),
    ("tssl", {"bound": 2.0}),
    ("strsbp", {}),
    ("strsbp", {"t_ref": 0}),
    ("stdbp", {"unit": 4}),
    ("stdbp", {"unit": 4, "revive": 0.01}),
    ("stdbp", {"unit": 4, "revive": 1.0}),
]
DEPTH, CHANNELS, SIDE, T, N, SEEDS = 12, 16, 8, 8, 2, (0, 1, 2)


def chain(rule: str, options: dict[str, Any], seed: int) -> dict[str, float]:
    """By what factor dL/ds grows from a neuron to the neuron before it, and dL/dx over dL/ds at a neuron: geometric means."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    for _ in range(DEPTH):
        net.extend([layer.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), layer.BatchNorm2d(CHANNELS), neuron.LIFNode(decay_input=False)])
    functional.set_step_mode(net, "m")
    snn_rules.convert(net, rule, **options)
    arriving: list[float] = []
    leaving: list[float] = []

    def watch(module: nn.Module, dx: Any, ds: Any) -> None:
        arriving.append(float(ds[0].norm()))
        leaving.append(float(dx[0].norm()))

    for module in net:
        if isinstance(module, snn_rules.RuleNode):
            module.register_full_backward_hook(watch)
    out = net(torch.rand(T, N, CHANNELS, SIDE, SIDE))
    (out * torch.randn_like(out)).sum().backward()
    growth = (arriving[-1] / arriving[0]) ** (1 / (DEPTH - 1))
    return {
        "growth": growth,
        "gain": statistics.geometric_mean(b / a for a, b in zip(arriving, leaving, strict=True)),
        "rate": float(out.detach().mean()),
    }


def main() -> None:
    warnings.filterwarnings("ignore", message="'tau' has no meaning")
    found = []
    for rule, options in CASES:
        runs = [chain(rule, options, seed) for seed in SEEDS]
        found.append({"rule": rule, "options": options, "runs": runs})
        print(rule, options, [{key: round(value, 3) for key, value in run.items()} for run in runs], flush=True)
    about = {"command": "python benchmarks/depth.py", "versions": versions(), "depth": DEPTH, "channels": CHANNELS, "T": T, "N": N, "seeds": SEEDS}
    write_json(RESULTS, {**about, "cases": found})


if __name__ == "__main__":
    main()
