"""What a `RuleNode` costs beside its kernels: one forward and backward, at a shape so small that the kernels cost almost nothing, and at
the smallest shape of `snn-rules bench`.

    OMP_NUM_THREADS=2 python benchmarks/overhead.py

Medians for each rule, in microseconds: SpikingJelly's `LIFNode` and the node (forward, backward through autograd; resets are not counted),
the node's kernels alone (called with pointers that are ready), an `autograd.Function` that does nothing, which torch itself takes, and
the node after 4 MB of other memory were touched, as the layers around it do ("cold").
The overhead is the node less its kernels; less torch's part, too, it is that of this package. Prints a table and writes
`benchmarks/results/overhead.json`.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from spikingjelly.activation_based import neuron

import snn_rules
from snn_rules.experiments import surroundings, write_json
from snn_rules.kernels import compiled

SHAPES = (5, 1, 16), (5, 50, 800)
NEURONS: dict[str, dict[str, float]] = {"surrogate": {}, "tssl": {}, "strsbp": {"v_threshold": 2.0}, "stdbp": {}}
RESULTS = Path(__file__).parent / "results" / "overhead.json"


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


def medians(runs: dict[str, Callable[[], object]], between: Callable[[], object], rounds: int) -> dict[str, float]:
    """In microseconds; a hundred of each in turn, so that all see the same moods of the machine. `between` runs after each, uncounted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds + 1):
        for name, run in runs.items():
            for _ in range(100):
                begun = time.perf_counter()
                run()
                taken = time.perf_counter() - begun
                between()
                if k:  # the first round warms up
                    times[name].append(1e6 * taken)
    return {name: statistics.median(values) for name, values in times.items()}


def kernels_of(node: snn_rules.RuleNode, x: torch.Tensor, g: torch.Tensor) -> Callable[[], object]:
    """The compiled functions, on the tensors that the node gave them."""
    seen: list[tuple[int, list[torch.Tensor | None], int, int]] = []
    loaded = compiled.kernels(node.rule, len(x), dtype=torch.float32)
    whole = compiled.Kernels.__call__

    def recording(self: compiled.Kernels, index: int, tensors: list[torch.Tensor | None], T: int, M: int) -> int:
        seen.append((index, tensors, T, M))  # which keeps them alive
        return whole(self, index, tensors, T, M)

    compiled.Kernels.__call__ = recording  # type: ignore[method-assign]
    try:
        torch.autograd.grad(node(x), x, g)
    finally:
        compiled.Kernels.__call__ = whole  # type: ignore[method-assign]
    node.reset()
    calls = []
    for index, tensors, T, M in seen:
        function, _, pack = loaded._run[index]
        calls.append((function, pack(*[0 if t is None else t.data_ptr() for t in tensors]), T, M))
    threads = torch.get_num_threads() if x.numel() >= compiled.PARALLEL else 1
    return lambda: ([function(pointers, T, M, threads) for function, pointers, T, M in calls], seen)


def measure(rule: str, shape: tuple[int, ...], rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    node, stock = snn_rules.RuleNode(rule, step_mode="m", **NEURONS[rule]), neuron.LIFNode(step_mode="m")
    x, g = torch.rand(shape, requires_grad=True), torch.randn(shape)
    runs: dict[str, Callable[[], object]] = {
        "lifnode_us": lambda: torch.autograd.grad(stock(x), x, g),
        "node_us": lambda: torch.autograd.grad(node(x), x, g),
        "kernels_us": kernels_of(node, x, g),
        "empty_function_us": lambda: torch.autograd.grad(Nothing.apply(x), x, g),
    }
    other = torch.zeros(1 << 20)
    cold = medians({"cold_node_us": runs["node_us"]}, lambda: (node.reset(), other.add_(1.0)), rounds)
    taken = medians(runs, lambda: (node.reset(), stock.reset()), rounds)
    overhead = taken["node_us"] - taken["kernels_us"]
    return {**taken, "overhead_us": overhead, "own_us": overhead - taken["empty_function_us"], **cold}


def main(
    rounds: Annotated[int, typer.Option(help="Counted rounds, of a hundred repetitions each.")] = 30,
    write: Annotated[bool, typer.Option(help="Write the results file.")] = True,
) -> None:
    columns = "T x N x features", "rule", "LIFNode", "node", "its kernels", "empty function", "overhead", "without torch's", "node, cold"
    about = {**surroundings(), "repeats": 100 * rounds}
    table, found = Table(*columns, title="forward + backward, median us"), []
    for shape in SHAPES:
        for rule in NEURONS:
            taken = measure(rule, shape, rounds)
            found.append({"shape": shape, "rule": rule, **taken})
            table.add_row(" x ".join(map(str, shape)), rule, *(f"{value:.1f}" for value in taken.values()))
    Console(width=120).print(table)
    if write:
        write_json(RESULTS, {**about, "results": found})


if __name__ == "__main__":
    typer.run(main)
