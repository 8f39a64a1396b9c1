"""Curves of accuracy over epochs, one colour a rule."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import checkpoint

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
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    checkpoint.write(path, lambda file: file.write(picture.getvalue()))
