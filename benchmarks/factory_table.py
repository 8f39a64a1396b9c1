"""docs/factories.md, from the results of benchmarks/factories.py and benchmarks/depth.py."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "factories.json"
DEPTH = ROOT / "benchmarks" / "results" / "depth.json"
TABLE = ROOT / "docs" / "factories.md"
RULES: dict[str, dict[str, Any]] = {
    "surrogate": {"rule": "surrogate"},
    "tssl": {"rule": "tssl"},
    "strsbp": {"rule": "strsbp"},
    "stdbp": {"rule": "stdbp", "rule_options": {"unit": 4}},
    "stdbp, event": {"rule": "stdbp", "rule_options": {"mode": "event"}},
}
HUGE = 1e6  # gradients longer than that many times the one of `surrogate` are marked


def sensible(row: dict[str, Any], column: str) -> bool:
    """Whether a rule could be expected to work there: all but spike times on the wire, and what the model's own forward pass rules out."""
    return column != "stdbp, event" and not any(word in row["cells"][column].get("why", "") for word in ("averages its output", "runs step by step"))


def growth(found: dict[str, Any]) -> str:
    """What benchmarks/depth.py measured."""

    def line(case: dict[str, Any]) -> str:
        options = "".join(f", `{key}={value}`" for key, value in case["options"].items())
        grown = [run["growth"] for run in case["runs"]]
        gain = statistics.geometric_mean(run["gain"] for run in case["runs"])
        return f"| `{case['rule']}`{options} | {statistics.geometric_mean(grown):.2f} | {min(grown):.2f} to {max(grown):.2f} | {gain:.2f} |"

    lines = "\n".join(line(case) for case in found["cases"])
    return f"""A surrogate's slope damps the gradient in every neuron; the papers' rules damp it less, and batch normalisation of sparse spikes
amplifies it again. By `{found["command"]}`, in a chain of {found["depth"]} times convolution, batch normalisation and
neuron, over {len(found["seeds"])} seeds:

| rule | growth of the gradient from layer to layer | range over seeds | of it in the neuron |
|---|---:|---|---:|
{lines}

In a network of a hundred layers that is the whole range of float32. Clip the gradient (`torch.nn.utils.clip_grad_norm_`; TSSL-BP's own recipe
has a norm of 1), or use an optimiser that does not depend on its length. `revive` of `stdbp`, which `snn-rules train` sets to 1, is for
networks of a few layers: in deep ones leave it at 0."""


def table(found: dict[str, Any]) -> str:
    """docs/factories.md."""
    rows = found["rows"]
    notes = dict.fromkeys(f"with {entry['with']}" for row in rows.values() for entry in row["cells"].values() if "with" in entry)
    marks = {note: mark for note, mark in zip(notes, "abcdef", strict=False)}
    asked = [row["cells"][column] for row in rows.values() for column in RULES if sensible(row, column)]
    works = sum(entry["state"] == "works" for entry in asked)

    def shown(row: dict[str, Any], column: str) -> str:
        entry = row["cells"][column]
        mark = f"<sup>{marks['with ' + entry['with']]}</sup>" if "with" in entry else ""
        large = " !" if entry["state"] == "works" and entry["norm"] > HUGE * row["cells"]["surrogate"].get("norm", math.inf) else ""
        return entry["state"] + mark + large

    why: dict[str, dict[str, list[str]]] = {"refused": {}, "failed": {}}
    for name, row in rows.items():
        for column, entry in row["cells"].items():
            if entry["state"] in why:
                why[entry["state"]].setdefault(f"{column}: {entry['why']}", []).append(f"`{name}`")
    reasons = {state: "\n".join(f"- {reason} ({', '.join(names)})" for reason, names in entries.items()) for state, entries in why.items()}
    body = "\n".join(
        f"| `{name}` | {row['module']} | {row['parameters']} of {row['of']} | {' | '.join(shown(row, column) for column in RULES)} |"
        for name, row in rows.items()
    )
    four = [row["cells"][column]["state"] for row in rows.values() for column in RULES if column != "stdbp, event"]
    counts = ", ".join(f"{four.count(state)} {state}" for state in ("works", "refused", "failed") if state in four)
    helped = sum("with" in entry and entry["state"] == "works" for entry in asked)
    share = round(100 * works / len(asked))
    about = (
        ", ".join(f"{name} {found['versions'][name]}" for name in ("spikingjelly", "torch"))
        .replace("spikingjelly", "SpikingJelly")
        .replace("torch", "PyTorch")
    )
    longer = "the whole gradient is more than 10<sup>6</sup> times as long as under `surrogate`"
    return f"""# SpikingJelly's model factories under every rule

Made by `python benchmarks/factories.py`, which keeps the numbers in `benchmarks/results/factories.json`. {about}, CPU.
Any of these names, or the factory itself, is the first argument of `snn_rules.build`.

**{works} of {len(asked)} cells that make sense work: {share} %.** Not counted is what cannot be, and is refused: spike times on the wire
(`stdbp, event`) in models with batch normalisation, sums or average pooling, and models whose forward pass goes step by step or
averages spike times away. With these two, the {len(four)} cells of the four rules are: {counts}.
{helped} of those that work need what their letter says.

- *works*: in one training step, every parameter (tensor) that gets a gradient other than zero under `surrogate`, or with SpikingJelly's
  own neurons, gets a finite one other than zero. The step is taken on a digit of each of {found["N"]} classes (4 where the last map is a
  pixel), enlarged to a small size that the factory takes, over {found["T"]} time steps, by the rule's own `encode` and `loss`, from the
  factory's own weights: those of MS-ResNet's branches start behind a zero, the later ones of a VGG without normalisation behind silence,
  and no rule reaches them at first. It says that a rule reaches the network, not how well the network then learns.
{"".join(f"- <sup>{mark}</sup> {note}.{chr(10)}" for note, mark in marks.items())}- *!*: {longer}; see [below](#gradients-grow-with-depth).
- *refused*: `build` and `convert` say why, before anything has changed. The reasons stand below.

| factory | module | parameters reached | {" | ".join(f"`{column}`" for column in RULES)} |
|---|---|---:|{"---|" * len(RULES)}
{body}

## Gradients grow with depth

{growth(json.loads(DEPTH.read_text()))}

## Refused, in one line each

{reasons["refused"] or "Nothing."}

## Failed

{reasons["failed"] or "Nothing."}
"""
