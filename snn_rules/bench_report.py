"""The tables of `snn-rules bench`, printed as they are made and written to one JSON file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import bench
from .console import out, progress, table
from .experiments import surroundings, write_json
from .kernels.build import NoCompiler
from .registry import get_rule
from .rule import RuleError

Row = dict[str, Any]


def run(command: str, rules: Sequence[str], wanted: Sequence[str], rounds: int, path: Path | None) -> None:
    """Make the wanted tables, in their order."""
    unknown = [name for name in wanted if name not in TABLES]
    if unknown:
        raise RuleError(f"bench: there is no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    configured = [get_rule(name) for name in rules]
    about, found = {"command": command, **surroundings(*configured)}, dict[str, list[Row]]()
    for name in wanted:
        title, make, show = TABLES[name]
        with progress() as bar:
            task, found[name] = bar.add_task(title, total=None), []
            try:
                for row in make(rules, rounds):
                    found[name].append(row)
                    bar.advance(task)
            except NoCompiler as cause:
                raise RuleError(f"bench: there are no kernels to measure: {cause}") from cause
        out.print(f"\n{title}", style="bold", soft_wrap=True)
        out.print(_shown(show(found[name])))
    if path:
        write_json(path, {**about, **found})


def _shown(rows: list[Row]) -> Any:
    made = table(*rows[0], right=1)
    for row in rows:
        made.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    return made


def _neurons(rows: list[Row]) -> list[Row]:
    def cell(figures: Row) -> str:
        return f"{figures['ms']:.2f} ms, {figures['ratio']:.1f}x, {figures['peak_mb']:.0f} MB"

    return [
        {"T x N x features": " x ".join(map(str, row["shape"])), **{k: cell(v) for k, v in row.items() if k not in ("shape", "rounds")}}
        for row in rows
    ]


def _steps(rows: list[Row]) -> list[Row]:
    def cell(figures: Row) -> str:
        return f"{figures['ms']:.1f} ms, {figures['of_products']:.2f} of products, {figures['ratio']:.1f}x"

    return [{"T": row["T"], **{who: cell(figures) for who, figures in row.items() if who != "T"}} for row in rows]


def _lengths(rows: list[Row]) -> list[Row]:
    return [
        {"neurons": row["neurons"], "rule": row["rule"], **{f"T = {T}": f"{ms:.2f} ms" for T, ms in row["ms"].items()}, "last / first": row["ratio"]}
        for row in rows
    ]


TABLES: dict[str, tuple[str, Callable[[Sequence[str], int], Iterable[Row]], Callable[[list[Row]], list[Row]]]] = {
    "neurons": (
        "One layer, forward + backward: median time, times faster than LIFNode, peak memory of the process; and a copy of the same size",
        lambda rules, rounds: bench.neurons(rules, rounds=rounds),
        _neurons,
    ),
    "stream": ("Kernels alone, 67 MB arrays: memory moved, beside a triad with ordinary stores", lambda rules, _: bench.stream(rules), list),
    "lengths": ("Kernels alone: time over the length of the train", lambda rules, _: bench.lengths(rules), _lengths),
    "steps": (
        "A training step of 784-400-400-10, batch 100: median time, in products alone, times faster than LIFNode's",
        lambda rules, _: bench.steps(rules),
        _steps,
    ),
    "starts": ("Until kernels run, ms: traced, emitted, compiled (cold), or from the cache (warm)", lambda rules, _: bench.starts(rules), list),
}
