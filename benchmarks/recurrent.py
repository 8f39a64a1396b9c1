"""Recurrent layers by kernels against eager torch, and against their matrix products alone.

    OMP_NUM_THREADS=2 python benchmarks/recurrent.py

Each row runs in a process of its own. Prints two tables and writes `benchmarks/results/recurrent.json`: median milliseconds of a
training step of 784-400-R400-10 (forward, loss, backward, Adam, reset), and of forward and backward of a `RecurrentNode` alone.
In the rows of eager torch the recurrent layer alone runs so; feed-forward neurons stay on kernels.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

RESULTS = Path(__file__).parent / "results" / "recurrent.json"
STEPS = [("strsbp", 400), ("strsbp", 100)]  # rule, T
LAYERS = [("strsbp", 400), ("strsbp", 100), ("tssl", 100), ("stdbp", 100), ("surrogate", 100)]
BATCH, FEATURES = 50, 400
RUNS = {"step": (11, 5), "layer": (15, 5), "products": (15, 0)}  # counted repetitions by kernels, on eager torch


def measure(what: str, rule: str, T: int, eager: bool) -> dict[str, float]:
    """Median and fastest milliseconds in this process, after a first run."""
    import torch

    from snn_rules.kernels import Eager, autograd

    torch.manual_seed(0)
    if eager:
        chosen = autograd.executor
        autograd.executor = lambda rule, x, recurrent=False: Eager() if recurrent else chosen(rule, x)
    run = {"step": training_step, "layer": layer_alone, "products": products_alone}[what](rule, T)
    found = []
    for _ in range(RUNS[what][eager] + 1):
        begun = time.perf_counter()
        run()
        found.append(1000 * (time.perf_counter() - begun))
    return {"ms": statistics.median(found[1:]), "fastest_ms": min(found[1:])}


def training_step(name: str, T: int) -> Callable[[], object]:
    import torch
    from spikingjelly.activation_based import functional

    import snn_rules
    from snn_rules.network import network

    rule = snn_rules.get_rule(name)
    net, x, labels = network(f"{FEATURES}-R{FEATURES}-10", rule, (784,)), rule.encode(torch.rand(BATCH, 784), T), torch.arange(BATCH) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        rule.loss(net(x), labels).backward()
        optimizer.step()
        functional.reset_net(net)

    return run


def layer_alone(name: str, T: int) -> Callable[[], object]:
    import torch

    import snn_rules

    node = snn_rules.RecurrentNode(FEATURES, name)
    x = (torch.randn(T, BATCH, FEATURES) + 0.5) * {"strsbp": 8.0, "stdbp": 0.02}.get(name, 1.0)
    x, g = x.requires_grad_(), torch.randn(T, BATCH, FEATURES)

    def run() -> None:
        x.grad = node.weight.grad = None
        node(x).backward(g)
        node.reset()

    return run


def products_alone(name: str, T: int) -> Callable[[], object]:
    """Those of the layer: one a step forward; backward the weights' and one a step or, for a rule that solves the layer, one and its solve."""
    import torch

    import snn_rules

    weight, s = torch.randn(FEATURES, FEATURES) / FEATURES, torch.randn(T, BATCH, FEATURES)
    r, eye, solver = torch.empty(BATCH, FEATURES), torch.eye(FEATURES), getattr(snn_rules.get_rule(name), "solver", "")

    def run() -> None:
        for t in range(T):
            torch.mm(s[t], weight, out=r)
        s.flatten(0, 1).t() @ s.flatten(0, 1)
        if solver == "taylor":
            torch.mm(s[0], weight, out=r)
        elif solver == "exact":
            e = torch.einsum("tni,tnp->nip", s, s)
            torch.linalg.solve(eye + 1e-6 * e, s[0])
        else:
            for t in range(T):
                torch.mm(s[t], weight, out=r)

    return run


def apart(*what: str) -> dict[str, float]:
    return json.loads(subprocess.run([sys.executable, __file__, "--only", ",".join(what)], capture_output=True, text=True, check=True).stdout)


def main(only: Annotated[str, typer.Option(help="what,rule,T,executor: measure this row alone, in this process, and print JSON.")] = "") -> None:
    if only:
        what, rule, T, executor = only.split(",")
        print(json.dumps(measure(what, rule, int(T), executor == "eager")))
        return
    from rich.console import Console
    from rich.table import Table

    from snn_rules.experiments import surroundings, write_json

    about = {
        "command": "OMP_NUM_THREADS=2 python benchmarks/recurrent.py",
        **surroundings(),
        "batch": BATCH,
        "features": FEATURES,
        "dtype": "float32",
    }
    found: dict[str, dict[str, object]] = {"step": {}, "layer": {}}
    for what, rows in {"step": STEPS, "layer": LAYERS}.items():
        title = "training step of 784-400-R400-10" if what == "step" else f"RecurrentNode({FEATURES}), forward + backward"
        table = Table("rule", "T", "kernels, ms", "eager torch, ms", "products alone, ms", "eager / kernels", title=f"{title}, batch {BATCH}")
        for rule, T in rows:
            entry = {by: apart(what, rule, str(T), by) for by in ("kernels", "eager")}
            if what == "layer":
                entry["products"] = apart("products", rule, str(T), "-")
            ratio = entry["eager"]["ms"] / entry["kernels"]["ms"]
            table.add_row(
                rule, str(T), *(f"{entry[by]['ms']:.1f}" if by in entry else "-" for by in ("kernels", "eager", "products")), f"{ratio:.1f}"
            )
            found[what][f"{rule}, T={T}"] = {**entry, "ratio": ratio}
        Console(width=120).print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, {**about, **found})


if __name__ == "__main__":
    typer.run(main)
