"""The mean S-PSP of random trains against the firing counts: ST-RSBP's Fig. 3, and what the rule takes from it.

    python benchmarks/spsp.py

Some twenty seconds. As in the paper (supplement, section 2.3): tau_m 64, tau_s 8, 600 steps, counts of 1 to 50, and 500 pairs of random
trains for each pair of counts; the refractory period of two steps is that of its Table 1. Besides, the slopes at the counts that the
loss wants of the output neurons in 400 and in 100 steps. Draws docs/figures/strsbp-spsp.png and writes the numbers to
benchmarks/results/spsp.json.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.polynomial import Polynomial
from snn_rules_strsbp import spsp

from snn_rules import get_rule
from snn_rules.console import progress
from snn_rules.experiments import versions, write_json
from snn_rules.plot import COLOURS

ROOT = Path(__file__).parents[1]
PICTURE, RESULTS = ROOT / "docs" / "figures" / "strsbp-spsp.png", ROOT / "benchmarks" / "results" / "spsp.json"
TAU_M, TAU_S, T, T_REF = 64.0, 8.0, 600, 2
COUNTS = np.arange(1, 51)
HELD = 10  # the count that stays in panels B and C
WANTED = ((400, 5), (400, 35), (100, 1), (100, 9))  # steps, and the rule's `undesired` and `desired` in them, rounded


def means() -> np.ndarray:
    """The mean of e_ij (Eq. 6) over random pairs of trains, `[o_i, o_j]`."""
    generator = np.random.default_rng(1)
    before = [spsp._trains(generator, count, T, T_REF) for count in COUNTS]
    found = []
    with progress() as bar:
        for count in bar.track(COUNTS, description="S-PSP"):
            h = spsp._h(spsp._trains(generator, count, T, T_REF), TAU_M, TAU_S, T_REF)
            found.append([float((h * trains).sum(0).mean()) for trains in before])
    return np.array(found)


def main() -> None:
    e = means()
    counts, each = spsp.mean_spsp(TAU_M, TAU_S, T, T_REF)  # what the rule fits, for one presynaptic spike
    cubic = Polynomial.fit(counts, each, 3)
    papers = Polynomial.fit(COUNTS, e[:, HELD - 1] / HELD, 3)
    of_rule = COUNTS[None, :] * cubic(COUNTS)[:, None]
    write_json(
        RESULTS,
        {
            "command": "python benchmarks/spsp.py",
            "versions": versions(get_rule("strsbp")),
            **{"tau_m": TAU_M, "tau_s": TAU_S, "T": T, "t_ref": T_REF, "trains": spsp.TRAINS},
            "B: departure from a line through 0, percent": percent(e[HELD - 1] - through_zero(e[HELD - 1]) * COUNTS, e[HELD - 1]),
            "C: departure from a line through 0, percent": percent(e[:, HELD - 1] - through_zero(e[:, HELD - 1]) * COUNTS, e[:, HELD - 1]),
            "A: departure from o_j r(o_i), percent": percent(e - of_rule, e),
            "C: departure of the cubic over 1 to 50, percent": percent(e[:, HELD - 1] - HELD * papers(COUNTS), e[:, HELD - 1]),
            "C: departure of the rule's cubic, percent": percent(e[:, HELD - 1] - HELD * cubic(COUNTS), e[:, HELD - 1]),
            "the rule's cubic is over counts up to": int(counts[-1]),
            "slope in o_i per presynaptic spike, at o_i": {
                str(o): {
                    "measured": round(through_zero(e[o + 1] - e[o - 3]) / 4, 4),  # between the counts o - 2 and o + 2
                    "cubic over 1 to 50": round(float(papers.deriv()(o)), 4),
                    "rule": round(float(spsp.slope(o, TAU_M, TAU_S, T, T_REF)), 4),
                }
                for o in (3, 5, 10, 20, 35)
            },
            "slope in o_i at the counts wanted of the output neurons": {
                f"{steps} steps, o_i = {o}": {
                    "measured": measured(o, steps),
                    "rule": round(float(spsp.slope(o, TAU_M, TAU_S, steps, T_REF)), 4),
                }
                for steps, o in WANTED
            },
        },
    )
    draw(e, through_zero(e[HELD - 1]), cubic, papers, int(counts[-1]))


def measured(o: int, steps: int) -> float:
    """The slope in o_i of the mean S-PSP of one presynaptic spike, between the counts o - 1 (1 at least) and o + 1: 20 times 500 trains."""
    low, high = max(1, o - 1), o + 1
    generator = np.random.default_rng(2)
    ends = [np.mean([spsp._h(spsp._trains(generator, count, steps, T_REF), TAU_M, TAU_S, T_REF).mean() for _ in range(20)]) for count in (low, high)]
    return round(float(ends[1] - ends[0]) / (high - low), 4)


def through_zero(values: np.ndarray) -> float:
    """The slope of the line through 0 that is nearest to values at the counts."""
    return float(values @ COUNTS / (COUNTS @ COUNTS))


def percent(error: np.ndarray, of: np.ndarray) -> float:
    """Root mean square, in percent of the mean."""
    return round(100 * float(np.sqrt((error**2).mean()) / of.mean()), 1)


def draw(e: np.ndarray, line: float, cubic: Any, papers: Any, largest: int) -> None:
    figure = Figure(figsize=(10.5, 3.4), dpi=150, layout="constrained")
    a, b, c = figure.subplots(1, 3)
    shade = a.imshow(e, origin="lower", extent=(0.5, 50.5, 0.5, 50.5), cmap="cividis", aspect="auto")
    a.contour(COUNTS, COUNTS, e, levels=6, colors="white", linewidths=0.6)
    a.set(title="A  mean S-PSP", xlabel="presynaptic count $o_j$", ylabel="postsynaptic count $o_i$")
    figure.colorbar(shade, ax=a)
    dots = {"linestyle": "", "marker": "o", "markersize": 3, "color": COLOURS[0], "label": "mean of 500 pairs"}
    b.plot(COUNTS, e[HELD - 1], **dots)
    b.plot(COUNTS, line * COUNTS, color=COLOURS[1], label="a line through 0")
    b.set(title=f"B  $o_i$ = {HELD}", xlabel="presynaptic count $o_j$", ylabel="mean $e_{ij}$")
    c.plot(COUNTS, e[:, HELD - 1], **dots)
    c.plot(COUNTS, HELD * papers(COUNTS), color=COLOURS[1], label="cubic over 1 to 50, the paper's")
    c.plot(COUNTS, HELD * cubic(COUNTS), color=COLOURS[2], linestyle="--", label=f"cubic over 1 to {largest}, the rule's")
    c.set(title=f"C  $o_j$ = {HELD}", xlabel="postsynaptic count $o_i$", ylabel="mean $e_{ij}$")
    for axes in (b, c):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
