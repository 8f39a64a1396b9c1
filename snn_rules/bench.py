"""How fast the rules are here, each figure beside a peer of the same run: for `snn-rules bench`.

Neurons run in processes of their own, in turn: memory that one has freed flatters the next.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from .kernels import build, compiled
from .kernels import program as plans
from .neuron import RuleNode
from .registry import get_rule
from .rule import LearningRule
from .train import configured

SHAPES = ((5, 50, 800), (100, 50, 400), (400, 16, 400), (8, 32, 65536))
OPTIONS: dict[str, dict[str, Any]] = {"strsbp": {"v_threshold": 2.0}}  # its own threshold is for weaker leaks than these inputs have time for
LENGTHS = (50, 100, 200, 400, 800, 1600)
NEURONS = (6400, 25600, 131072)  # of the table over lengths: caches hold the first's longest train, and of the last hardly the shortest
STREAM = (8, 2097152)  # 67 MB
YOUNG, MEASURED = 100, 500  # milliseconds: until memory, clock and Python's own caches of a process have settled; and of runs then, at least
TRIAD = """
#include <cstdint>
extern "C" void triad(void** p, int64_t n, int threads) {
  float* const a = (float*)p[0]; const float *b = (float*)p[1], *c = (float*)p[2];
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) a[i] = b[i] + 3.f * c[i];
}
"""


def rule_of(name: str) -> LearningRule:
    return get_rule(name, **OPTIONS.get(name, {}))


def milliseconds(run: Callable[[], object], repeats: int, warm: int = 3) -> float:
    """The median of `repeats` runs, after some that are not counted."""
    return in_turn({run: run}, repeats, warm)[run]


def in_turn(runs: Mapping[Any, Callable[[], object]], repeats: int, warm: int) -> dict[Any, float]:
    """The same of several, each run once in each round: what slows the machine for a while slows them all."""
    taken: dict[Any, list[float]] = {who: [] for who in runs}
    for _ in range(warm + repeats):
        for who, run in runs.items():
            begun = time.perf_counter()
            run()
            taken[who].append(1e3 * (time.perf_counter() - begun))
    return {who: statistics.median(ms[warm:]) for who, ms in taken.items()}


# ---- neurons -----------------------------------------------------------------------------------------------------------


def neurons(rules: Sequence[str], shapes: Sequence[Sequence[int]] = SHAPES, rounds: int = 1, repeats: int = 25) -> Iterator[dict[str, Any]]:
    """Forward and backward of a layer, autograd included: a copy of the same size, `LIFNode`, and each rule; one row a shape."""
    for shape in shapes:
        found = [{who: _apart(who, shape, repeats) for who in ("copy", "LIFNode", *rules)} for _ in range(rounds)]
        row: dict[str, Any] = {"shape": list(shape), "rounds": rounds}
        for who in found[0]:
            ms, peak = (statistics.median(one[who][key] for one in found) for key in ("ms", "peak_mb"))
            row[who] = {"ms": ms, "ratio": statistics.median(one["LIFNode"]["ms"] / one[who]["ms"] for one in found), "peak_mb": peak}
        yield row


def _apart(who: str, shape: Sequence[int], repeats: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "snn_rules.bench", json.dumps([who, list(shape), repeats])]
    made = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    return dict(json.loads(made.stdout))


def one_neuron(who: str, shape: Sequence[int], repeats: int) -> dict[str, float]:
    """The figures of one neuron, in this process."""
    x, g = torch.randn(*shape, requires_grad=True), torch.randn(*shape)
    node = neuron.LIFNode(step_mode="m") if who == "LIFNode" else RuleNode(rule_of(who), step_mode="m") if who != "copy" else None

    def step() -> None:
        if node is None:
            x.detach().clone()
            return
        node(x).backward(g)
        node.reset()
        x.grad = None

    once = milliseconds(step, 3)
    ms = milliseconds(step, max(repeats, int(MEASURED / once)), int(YOUNG / once))
    return {"ms": ms, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


# ---- kernels alone -----------------------------------------------------------------------------------------------------


def _kernels(rule: LearningRule, x: Tensor, g: Tensor, out: Tensor) -> list[tuple[str, Callable[[], object], int]]:
    """(name, call, values moved) of each kernel; `x`, `g` and room for what comes out are `[T, M]`."""
    (T, M), run = x.shape, compiled.kernels(rule, len(x), torch.float32)
    whole = {"x": x, "g": g, "s": out, "dx": out, "out_late": torch.empty(rule.delay, M), "marks": run.marks(x[0], T)}
    made: list[tuple[str, Callable[[], object], int]] = []
    for k, names in enumerate(run.program.pointers):
        ends = {name: torch.empty(M) for name in names if name.startswith(("out_", "c_")) and name not in whole}
        given = whole | ends | {name: torch.zeros(M) for name in names if name.startswith("n_") and name != "n_scale"}
        tensors = [given.get(name) for name in names]
        moved = (3 if k else 2) * T * M + len(ends) * M
        made.append((f"backward {k - 1}" if k else "forward", lambda k=k, tensors=tensors: run(k, tensors, T, M), moved))  # type: ignore[misc]
    return made


def stream(rules: Sequence[str], repeats: int = 15) -> list[dict[str, Any]]:
    """Memory moved by each kernel over arrays of 67 MB, beside a triad (a = b + 3 c) with ordinary stores. Bytes count as moved once."""
    T, M = STREAM
    arrays = [torch.randn(T, M) for _ in range(3)]
    call, pointers = build.build(TRIAD).triad, (ctypes.c_void_p * 3)(*(a.data_ptr() for a in arrays))
    triad = 12 * T * M / milliseconds(lambda: call(pointers, ctypes.c_int64(T * M), torch.get_num_threads()), repeats) / 1e6
    rows = [{"rule": "", "kernel": "triad", "GB/s": triad, "of_triad": 1.0}]
    for name in rules:
        for kernel, run, values in _kernels(rule_of(name), *arrays):
            speed = 4 * values / milliseconds(run, repeats) / 1e6
            rows.append({"rule": name, "kernel": kernel, "GB/s": speed, "of_triad": speed / triad})
    return rows


def lengths(rules: Sequence[str], repeats: int = 5) -> Iterator[dict[str, Any]]:
    """Time of all kernels of a rule over the length of the train; linear would be a ratio of 32."""
    for M in NEURONS:
        arrays = [torch.randn(LENGTHS[-1], M) for _ in range(3)]
        for name in rules:
            runs = {(T, k): run for T in LENGTHS for k, run, _ in _kernels(rule_of(name), *(array[:T] for array in arrays))}
            taken = in_turn(runs, repeats, 1)
            ms = {T: sum(value for (t, _), value in taken.items() if t == T) for T in LENGTHS}
            yield {"rule": name, "neurons": M, "ms": {str(T): value for T, value in ms.items()}, "ratio": ms[LENGTHS[-1]] / ms[LENGTHS[0]]}


def starts(rules: Sequence[str], T: int = 100) -> Iterator[dict[str, Any]]:
    """Milliseconds until a rule's kernels can run: traced, emitted and compiled; and from the cache."""
    for name in rules:
        taken = {}
        with tempfile.TemporaryDirectory() as folder:
            before, os.environ["SNN_RULES_CACHE_DIR"] = os.environ.get("SNN_RULES_CACHE_DIR"), folder
            try:
                for when in ("cold", "warm"):
                    plans._program.cache_clear()
                    rule, begun = rule_of(name), time.perf_counter()
                    made = compiled.Kernels(plans.program(rule, T), torch.float32, None)
                    taken[when] = 1e3 * (time.perf_counter() - begun)
            finally:
                os.environ.pop("SNN_RULES_CACHE_DIR")
                os.environ.update({} if before is None else {"SNN_RULES_CACHE_DIR": before})
        yield {"rule": name, "kernels": 1 + len(made.program.stages), **taken}


# ---- a training step ---------------------------------------------------------------------------------------------------


def steps(rules: Sequence[str], lengths: Sequence[int] = (5, 100), repeats: int = 11) -> Iterator[dict[str, Any]]:
    """A training step of 784-400-400-10, batch 100: each rule, `LIFNode`, and the matrix products alone."""
    for T in lengths:
        with warnings.catch_warnings(action="ignore"):  # five steps are too few for a rule or another to learn from
            ms = in_turn({who: _step(who, T) for who in ("products", "LIFNode", *rules)}, repeats, 2)
        yield {"T": T, **{who: {"ms": value, "of_products": value / ms["products"], "ratio": ms["LIFNode"] / value} for who, value in ms.items()}}


def _step(who: str, T: int) -> Callable[[], object]:
    torch.manual_seed(0)
    rule = configured("surrogate" if who in ("products", "LIFNode") else who)
    net = nn.Sequential()
    for k, (n_in, n_out) in enumerate(((784, 400), (400, 400), (400, 10))):
        net.add_module(f"dense{k}", layer.Linear(n_in, n_out, bias=False))
        if who != "products":
            net.add_module(f"neuron{k}", neuron.LIFNode(decay_input=False) if who == "LIFNode" else RuleNode(rule))
    functional.set_step_mode(net, "m")
    rule.initialize(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)
    x, labels, g = rule.encode(torch.rand(100, 784), T), torch.arange(100) % 10, torch.randn(T, 100, 10)

    def step() -> None:
        optimizer.zero_grad()
        if who == "products":
            net(x).backward(g)
            return
        loss = rule.loss(net(x), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        functional.reset_net(net)

    return step


if __name__ == "__main__":
    print(json.dumps(one_neuron(*json.loads(sys.argv[1]))))
