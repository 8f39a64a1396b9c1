"""Pictures: curves of accuracy over epochs, one colour a rule; what the lens saw."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import combinations, cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import checkpoint

if TYPE_CHECKING:
    from .lens import Lens

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))  # tell the rules apart in grey, too


def accuracy(path: Path, curves: Mapping[str, Sequence[Sequence[float]]], title: str) -> None:
    """Write a PNG of test accuracy over epochs: `curves[rule][seed][epoch]`, 0 to 1.

    The line is the mean over the seeds, the band one standard deviation to each side.
    """
    figure = Figure(figsize=(8.5, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (name, runs), colour, style in zip(curves.items(), cycle(COLOURS), cycle(STYLES), strict=False):
        values = 100 * np.asarray(runs, dtype=float)
        epochs, mean, std = np.arange(1, values.shape[1] + 1), values.mean(0), values.std(0, ddof=min(1, len(values) - 1))
        axes.plot(epochs, mean, color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=3, label=f"{name}  {mean[-1]:.1f} %")
        if len(values) > 1:
            axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    seeds = max(len(runs) for runs in curves.values())
    axes.set_title(title, loc="left")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy (%)" + (f", mean ± std of {seeds} seeds" if seeds > 1 else ""))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper", fontsize="small", handlelength=2.8)
    _write(figure, path)


def lens(path: Path, seen: Lens, title: str) -> None:
    """Write a PNG: heat maps of cosine and ratio of norms, by layer and pair of rules; and the loss along each gradient."""
    pairs, rules, rows = list(combinations(range(len(seen.rules)), 2)), len(seen.rules), len(seen.layers)
    heights = [(0.5 if rows < 12 else 0.3) * rows + 1.0, 3.2] if pairs else [3.2]
    figure = Figure(figsize=(max(8.5, 3.0 * rules, 1.7 * len(pairs) + 2), sum(heights) + 0.8), dpi=150, layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    if pairs:
        names = [f"{seen.rules[a]}\n{seen.rules[b]}" for a, b in pairs]
        values = [np.array([[float(m[k, b, a]) for a, b in pairs] for k in range(rows)]) for m in (seen.cosine, seen.ratio)]
        shades = [values[0], np.log10(values[1])]
        titles = ["cosine of the gradients", "norm of the first to that of the second"]
        spans = [1.0, max(1.0, float(np.nanmax(np.abs(shades[1]), initial=0.0)))]
        for axes, value, shade, span, colours, form, said in zip(
            grid[0].subgridspec(1, 2).subplots(squeeze=False)[0], values, shades, spans, ("RdBu", "PuOr"), ("{:+.2f}", "{:.2g}"), titles, strict=True
        ):
            axes.imshow(shade, cmap=colours, vmin=-span, vmax=span, aspect="auto")
            for at, number in np.ndenumerate(value):
                ink = "white" if abs(shade[at]) > 0.6 * span else "black"
                axes.text(at[1], at[0], "-" if np.isnan(number) else form.format(number), ha="center", va="center", fontsize="small", color=ink)
            axes.set_xticks(range(len(names)), names, fontsize="small")
            axes.set_yticks(range(rows), seen.layers, fontsize="small")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(said, loc="left", fontsize="medium")
    for r, axes in enumerate(grid[-1].subgridspec(1, rules).subplots(squeeze=False)[0]):
        for d, (direction, colour, style) in enumerate(zip(seen.directions, cycle(COLOURS), cycle(STYLES), strict=False)):
            drawn = ("#888888", ":") if direction == "random" else (colour, style)
            axes.plot(seen.loss[r, d], color=drawn[0], linestyle=drawn[1], marker="o", markersize=3, linewidth=1.6, label=direction)
        start, low, high = float(seen.loss[r, 0, 0]), float(seen.loss[r].min()), float(seen.loss[r].max())
        top = min(high, start + max(start - low, 0.25 * start))  # falls are looked for: what soars leaves the frame
        if top > low:
            axes.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low))
        axes.tick_params(labelsize="small")
        axes.set_xticks(range(len(seen.steps)), [f"{length:g}" for length in seen.steps])
        whose = "" if seen.losses[r] == seen.rules[r].partition(":")[0] else f"\n(that of {seen.losses[r]})"
        axes.set_title(f"loss under {seen.rules[r]}{whose}", loc="left", fontsize="medium")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if r == 0:
            axes.set_xlabel("step, in norms of the weights", loc="left", fontsize="small")
            about = {"title": "step against the gradient of", "alignment": "left", "fontsize": "small", "frameon": False}
            figure.legend(loc="outside lower left", ncols=len(seen.directions), **about)
    figure.suptitle(title, x=0.01, ha="left")
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    checkpoint.write(path, lambda file: file.write(picture.getvalue()))
