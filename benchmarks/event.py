"""STDBP's event layer against the same mathematics written with torch's sort and cumsum; and its memory.

    OMP_NUM_THREADS=2 python benchmarks/event.py

Half a minute on two cores. Prints a table and writes `benchmarks/results/event.json`. Time: forward and backward of one
layer, autograd included, the median of its runs, and of the rounds in which it and its peer take turns; memory: what the peak of a fresh
process grows by over such a step.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from snn_rules_stdbp.event import FirstSpikeConv2d, FirstSpikeLinear
from torch import Tensor, nn

import snn_rules
from snn_rules.bench import milliseconds
from snn_rules.experiments import surroundings, write_json

RESULTS = Path(__file__).parent / "results" / "event.json"
RULE = snn_rules.get_rule("stdbp", mode="event")
ACTIVE = 0.2  # of the inputs
LINEAR = [(128, 784, 400), (512, 784, 800)]  # batch, inputs, outputs
CONV = (128, 1, 16, 28, 5)  # batch, channels in and out, width of the image, of the kernel
RUNS, ROUNDS = 31, 5  # of the layer, in each of the rounds with one run of its peer


def peer(times: Tensor, weight: Tensor) -> Tensor:
    """Eq. 12 over all causal sets at once: `[batch, inputs, outputs]` tensors, differentiated by autograd."""
    ordered, index = times.clamp(max=RULE.window).sort(dim=1)
    w = weight.t()[index] * (ordered < RULE.window)[..., None]
    slope, moment = w.cumsum(1), (w * ordered[..., None]).cumsum(1)
    crossing = (RULE.v_threshold + moment) / slope
    following = torch.cat([ordered[:, 1:], torch.full_like(ordered[:, :1], RULE.window)], 1)[..., None]
    valid = (slope > 0) & (crossing > ordered[..., None]) & (crossing <= following)
    return torch.where(valid, crossing, RULE.window).amin(1)


def linear(inputs: int, outputs: int) -> nn.Module:
    return fused(nn.Linear(inputs, outputs, bias=False), FirstSpikeLinear)


def fused(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    net = snn_rules.convert(nn.Sequential(layer, snn_rules.RuleNode("stdbp")), RULE)
    RULE.initialize(net)
    layer.weight.data.div_(ACTIVE)  # the sum over the inputs that fire
    assert isinstance(layer, kind)
    return layer


def spike_times(*shape: int) -> Tensor:
    return torch.where(torch.rand(shape) < ACTIVE, torch.rand(shape), RULE.window).requires_grad_()


def step(forward: Callable[[Tensor], Tensor], times: Tensor, weight: Tensor) -> None:
    times.grad = weight.grad = None
    out = forward(times)
    out.backward(torch.ones_like(out))


def compare(batch: int, inputs: int, outputs: int) -> dict[str, Any]:
    """The layer and the peer on the same numbers; they agree, or there is no comparison."""
    entry, (layer, times) = ours_alone(batch, inputs, outputs), made(batch, inputs, outputs)
    found = []
    for forward in (layer, lambda t: peer(t, layer.weight)):
        step(forward, times, layer.weight)
        found.append((forward(times).detach(), times.grad, layer.weight.grad))
    for mine, same in zip(*found, strict=True):
        alike = (mine - same).abs() <= 1e-3 * same.abs().max()
        assert float(alike.float().mean()) > 0.999  # in float32 the two may disagree on which of two inputs a crossing lies between
    rounds = [(timed(lambda t: peer(t, layer.weight), times, layer.weight, 1), timed(layer, times, layer.weight)) for _ in range(ROUNDS)]
    peer_ms, ms = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {**entry, "ms": ms, "peer_ms": peer_ms, "ratio": statistics.median(theirs / mine for theirs, mine in rounds)}


def timed(forward: Callable[[Tensor], Tensor], times: Tensor, weight: Tensor, runs: int = RUNS) -> float:
    return milliseconds(lambda: step(forward, times, weight), runs, warm=1)


def made(batch: int, inputs: int, outputs: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return linear(inputs, outputs), spike_times(batch, inputs)


def ours_alone(batch: int, inputs: int, outputs: int) -> dict[str, Any]:
    layer, times = made(batch, inputs, outputs)
    return {"layer": f"Linear {inputs}-{outputs}", "batch": batch, **measured(layer, times)}


def convolution() -> dict[str, Any]:
    batch, channels, out, width, kernel = CONV
    torch.manual_seed(0)
    layer = fused(nn.Conv2d(channels, out, kernel, bias=False), FirstSpikeConv2d)
    times = spike_times(batch, channels, width, width)
    return {"layer": f"Conv2d {channels}-{out}, {kernel}x{kernel}, {width}x{width}", "batch": batch, **measured(layer, times)}


def measured(layer: Any, times: Tensor) -> dict[str, float]:
    with torch.no_grad():
        fired = float((layer(times) < RULE.window).float().mean())
    return {"ms": timed(layer, times, layer.weight), "fired": fired}


def growth(batch: int, inputs: int, outputs: int) -> float:
    """MB by which the resident memory grows at its peak, in one forward and backward pass; meant for a fresh process."""
    small, (layer, times) = linear(64, 64), made(batch, inputs, outputs)
    step(small, spike_times(64, 64), small.weight)  # compiles, and starts what is started once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    step(layer, times, layer.weight)
    return peak() - before


def peak() -> float:
    """MB, of the resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def growth_in_a_process(batch: int, inputs: int, outputs: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--memory", str(batch), str(inputs), str(outputs)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"layer": f"Linear {inputs}-{outputs}", "batch": batch, "MB": float(said), "one_peer_tensor_MB": 4 * batch * inputs * outputs / 2**20}


def main() -> None:
    about = {
        "command": "OMP_NUM_THREADS=2 python benchmarks/event.py",
        **surroundings(RULE),
        "dtype": "float32",
        "active_inputs": ACTIVE,
        "medians_of": {"rounds": ROUNDS, "layer": RUNS, "peer": 1},
    }
    rows, memory = [compare(*LINEAR[0]), ours_alone(*LINEAR[1]), convolution()], growth_in_a_process(*LINEAR[1])
    table = Table(
        "layer", "batch", "ms", "sort + cumsum, ms", "ratio", "neurons that fire", title=f"forward + backward, {torch.get_num_threads()} threads"
    )
    for row in rows:
        peers = [f"{row['peer_ms']:.0f}", f"{row['ratio']:.0f}"] if "ratio" in row else ["-", "-"]
        table.add_row(row["layer"], str(row["batch"]), f"{row['ms']:.2f}", *peers, f"{row['fired']:.0%}")
    Console(width=120).print(table)
    print(f"{memory['layer']}, batch {memory['batch']}: {memory['MB']:.1f} MB; one [batch, in, out] tensor is {memory['one_peer_tensor_MB']:.0f} MB")
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, {**about, "time": rows, "memory": memory})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(growth(*map(int, sys.argv[2:])))
    else:
        main()
