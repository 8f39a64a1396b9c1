"""The commands that look at rules without training by them; cli.py registers them, torch is imported where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DatasetOption, DownloadOption, LimitOption, NetworkOption, RootOption, StepsOption
from .rule import RuleError


def lens(
    ctx: typer.Context,
    rules: Annotated[str, typer.Option(help="Rules, joined by ',', with options as in compare; the first sets the stage.", metavar="A,B,...")],
    network: NetworkOption = "100-10",
    dataset: DatasetOption = "digits",
    data_root: RootOption = Path("data"),
    download: DownloadOption = False,
    samples: Annotated[int, typer.Option(help="The batch: the first N samples of the training set.", metavar="N")] = 256,
    epochs: Annotated[int, typer.Option(help="Train by the first rule for so long before looking; 0 looks at the first weights.")] = 1,
    limit_train: LimitOption = None,
    T: StepsOption = None,
    loss: Annotated[str | None, typer.Option(help="Take the loss of this rule for all. Default: each rule's own.", metavar="RULE")] = None,
    own_code: Annotated[bool, typer.Option("--own-code", help="Each rule gets its own input code and T, not those of the first.")] = False,
    steps: Annotated[str, typer.Option(help="Lengths of the steps, in norms of all the weights, joined by ','.")] = "0.001,0.003,0.01,0.03,0.1",
    seed: Annotated[int, typer.Option(help="Of weights, order, random input codes and the random direction.")] = 0,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for lens.json and lens.png. Default: a new one, runs/DATASET-lens-N.", metavar="DIR")
    ] = None,
) -> None:
    """Hold the rules' gradients against each other: cosine and norms by layer, and how far the loss falls along each.

    Every rule looks at the same weights and batch, in LIF neurons whose constants (tau_m 2, threshold 1) it takes over; options win: tssl:tau_s=3.

    Where the rules' spikes differ nevertheless, the output says how many.
    """
    from . import experiments, lens_report

    try:
        lengths = [float(word) for word in steps.split(",")]
    except ValueError:
        raise RuleError(f"lens: --steps {steps!r} should be numbers joined by ',', such as 0.01,0.1") from None
    task = experiments.Task(ctx.obj, network, dataset, data_root, download, limit_train, {"T": T, "epochs": epochs})
    labels = list(dict.fromkeys(label.strip() for label in rules.split(",")))
    lens_report.look(task, labels, samples, loss, own_code, lengths, seed, folder)


def bench(
    ctx: typer.Context,
    rules: Annotated[str, typer.Option(help="Rules, joined by ','.", metavar="A,B,...")] = "surrogate,tssl,strsbp,stdbp",
    tables: Annotated[
        str, typer.Option(help="Of neurons, stream, lengths, steps, starts: those to make, joined by ','.", metavar="A,B,...")
    ] = "neurons",
    rounds: Annotated[int, typer.Option(help="Rounds of the table of neurons, in each of which every neuron has its turn.", min=1)] = 1,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.", metavar="FILE")] = None,
) -> None:
    """How fast the rules' kernels are here, beside SpikingJelly's LIFNode, a copy, a triad or the matrix products of the same run.

    Let nothing else run meanwhile, and set the threads: OMP_NUM_THREADS=2 snn-rules bench.

    The table of neurons takes some two minutes a round, the others one together.
    """
    from . import bench_report

    bench_report.run(ctx.obj, [name.strip() for name in rules.split(",")], [name.strip() for name in tables.split(",")], rounds, json)
