"""What trained networks do, as the papers draw it: STDBP's Fig. 5 for spike times, TSSL-BP's Figs. 7 and 8 for spikes.

    python benchmarks/figures.py --data-root DIR runs/stdbp-mnist-400-seed0 runs/tssl-fashion-mnist-400-400-seed0

Each folder is that of a training by a recipe. The network of its checkpoint sees the whole test set; the picture goes to
docs/figures/, the numbers under it to benchmarks/results/figures.json.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from snn_rules import LearningRule, RuleNode, Trained, data, load
from snn_rules.experiments import write_json
from snn_rules.plot import COLOURS

ROOT = Path(__file__).parents[1]
PICTURES, RESULTS = ROOT / "docs" / "figures", ROOT / "benchmarks" / "results" / "figures.json"


def main(
    folders: Annotated[list[Path], typer.Argument(help="Of trainings by a recipe.")],
    data_root: Annotated[Path, typer.Option(help="Folder of the data files.")] = Path("data"),
) -> None:
    """Pictures of what trained networks do on their test set."""
    said = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for folder in folders:
        history = json.loads((folder / "history.json").read_text())
        name = history["recipe"].replace("/", "-")
        trained = load(folder)
        layers, right = seen(trained, data.load(history["dataset"], data_root))
        rule = trained.rule
        draw = times if rule.capabilities.signal == "times" else counts
        figure = Figure(figsize=(8.5, 3.2), dpi=150, layout="constrained")
        numbers = draw(figure, layers, rule, history["config"])
        figure.suptitle(f"{history['rule']}, {history['network']} on {history['dataset']}, seed {history['config']['seed']}", x=0.01, ha="left")
        PICTURES.mkdir(exist_ok=True)
        figure.savefig(PICTURES / f"{name}.png")
        said[name] = {"seed": history["config"]["seed"], "test_accuracy": round(100 * right, 2), **numbers}
        typer.echo(f"{name}: {said[name]}")
    write_json(RESULTS, dict(sorted(said.items())))


def seen(trained: Trained, samples: data.Data) -> tuple[list[Tensor], float]:
    """For each layer of neurons spike counts `[N, F]`, or spike times; and the accuracy."""
    passed: list[list[Tensor]] = []
    for node in (module for module in trained.network.modules() if isinstance(module, RuleNode)):
        passed.append([])
        node.register_forward_hook(lambda _, __, out, kept=passed[-1]: kept.append(out.sum(0).flatten(1)))  # one step where it sends times
    right = trained.predict(samples.test_x) == samples.test_y
    return [torch.cat(kept) for kept in passed], float(right.double().mean())


def times(figure: Figure, layers: list[Tensor], rule: LearningRule, config: dict[str, Any]) -> dict[str, Any]:
    """When neurons fire, and when the network decides: at the first spike of its last layer."""
    decided, hidden = layers[-1].min(1).values, torch.cat(layers[:-1], 1)
    before = float((hidden < decided[:, None]).float().mean())
    fired = float((hidden < rule.window).float().mean())
    axes = figure.subplots()
    for values, label, colour in ((hidden[hidden < rule.window], "hidden neurons", COLOURS[0]), (decided, "first output spike", COLOURS[1])):
        axes.hist(values.numpy(), bins=80, range=(0, rule.window), density=True, histtype="stepfilled", alpha=0.6, color=colour, label=label)
    axes.set_title(
        f"{100 * before:.1f} % of the hidden neurons have fired when the class is decided, {100 * fired:.1f} % ever", loc="left", fontsize="medium"
    )
    axes.set(xlabel="spike time", ylabel="density")
    finish(figure, axes)
    return {"hidden_fired_before_decision": round(100 * before, 1), "hidden_fired": round(100 * fired, 1)}


def counts(figure: Figure, layers: list[Tensor], rule: LearningRule, config: dict[str, Any]) -> dict[str, Any]:
    """How often neurons fire: the share of those with 0, 1, ..., T spikes."""
    T, whole = config["T"], torch.cat(layers, 1)
    shares = [[float((layer == k).float().mean()) for k in range(T + 1)] for layer in (*layers, whole)]
    axes = figure.subplots()
    width = 0.8 / len(layers)
    for place, (share, colour) in enumerate(zip(shares[:-1], COLOURS, strict=False)):
        label = f"layer {place + 1}, {layers[place].shape[1]} neurons"
        axes.bar([k + (place - (len(layers) - 1) / 2) * width for k in range(T + 1)], [100 * s for s in share], width, color=colour, label=label)
    axes.set_title(
        f"{100 * shares[-1][0]:.1f} % of all neurons are silent, {100 * shares[-1][-1]:.1f} % fire at every step", loc="left", fontsize="medium"
    )
    axes.set(xlabel=f"spikes in {T} steps", ylabel="% of the neurons")
    finish(figure, axes)
    return {"percent_with_k_spikes": [round(100 * share, 2) for share in shares[-1]]}


def finish(figure: Figure, axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside right upper", fontsize="small")


if __name__ == "__main__":
    typer.run(main)
