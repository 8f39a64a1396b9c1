"""One layer of neurons, forward and backward with autograd: every rule against SpikingJelly's `LIFNode`.

    OMP_NUM_THREADS=2 python benchmarks/neurons.py

Each neuron runs in a process of its own (freed memory flatters whoever comes second). Prints a table and writes
`benchmarks/results/neurons.json`: median milliseconds, the ratio to `LIFNode` in the same run, and peak memory.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

SHAPES = ("5x50x800", "100x50x400", "400x16x400", "8x32x65536")
NEURONS = {"LIFNode": {}, "surrogate": {}, "tssl": {}, "strsbp": {"v_threshold": 2.0}, "stdbp": {}}
RESULTS = Path(__file__).parent / "results" / "neurons.json"


def measure(name: str, shape: str, repeats: int) -> dict[str, float]:
    """Median milliseconds of forward, backward and reset, and the peak memory of the process."""
    import torch
    from spikingjelly.activation_based import neuron

    import snn_rules

    node = neuron.LIFNode(step_mode="m") if name == "LIFNode" else snn_rules.RuleNode(name, step_mode="m", **NEURONS[name])
    size = [int(n) for n in shape.split("x")]
    x, g, times = torch.randn(size, requires_grad=True), torch.randn(size), []
    for _ in range(repeats + 3):
        begun = time.perf_counter()
        out = node(x)
        out.backward(g)
        times.append(1000 * (time.perf_counter() - begun))
        node.reset()
        x.grad = out = None
    return {"ms": statistics.median(times[3:]), "fastest_ms": min(times[3:]), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def apart(name: str, shape: str, repeats: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--only", name, "--shape", shape, "--repeats", str(repeats)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main(
    only: Annotated[str, typer.Option(help="Measure this neuron alone, in this process, and print JSON.")] = "",
    shape: Annotated[str, typer.Option(help="T x N x features; empty: all of the table.")] = "",
    repeats: Annotated[int, typer.Option(help="Counted repetitions.")] = 25,
) -> None:
    if only:
        print(json.dumps(measure(only, shape, repeats)))
        return
    import torch
    from rich.console import Console
    from rich.table import Table

    import snn_rules

    table, found = Table("T x N x features", *NEURONS, title="forward + backward, median ms (times faster than LIFNode)"), {}
    for size in [shape] if shape else SHAPES:
        found[size] = {name: apart(name, size, repeats) for name in NEURONS}
        peer = found[size]["LIFNode"]["ms"]
        for result in found[size].values():
            result["ratio"] = peer / result["ms"]
        table.add_row(size, *(f"{r['ms']:.2f} ({r['ratio']:.1f}x)" for r in found[size].values()))
    about = {
        "date": date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "machine": platform.processor() or platform.machine(),
    }
    versions = {"snn_rules": snn_rules.__version__, "torch": torch.__version__}
    Console(width=120).print(table)
    if not shape:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**about, "versions": versions, "repeats": repeats, "results": found}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
