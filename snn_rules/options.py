"""The options that several commands of `snn-rules` share."""

from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .console import out


def _version(asked: bool) -> None:
    if asked:
        out.print(f"snn-rules {__version__}")
        raise typer.Exit


VersionOption = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and nothing else.")]
NetworkOption = Annotated[
    str,
    typer.Option(
        help="Layers after the input, joined by '-': 400 dense, R400 recurrent, R5x5x16 sparsely so, 15C5 convolution, 12C5p1 padded, P2 pooling, "
        "P2n pooling by neurons, D0.2 dropout. Ends in the classes."
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        help="digits (8 x 8, needs no files), mnist or fashion-mnist (28 x 28); spike trains: nmnist, shd, dvs-gesture, spoken-digits, "
        "spoken-digits-SPEAKER (one speaker is the test)."
    ),
]
RootOption = Annotated[
    Path, typer.Option(help="Folder of the data files, in torchvision's layout or as plain idx files, gzipped or not; in tonic's for recordings.")
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Let torchvision or tonic fetch what is missing into the data root; otherwise nothing is downloaded.")
]
EpochsOption = Annotated[int | None, typer.Option(help="Walks over the training set. Default: the recipe's, or 10, and 20 for digits.")]
StepsOption = Annotated[
    int | None,
    typer.Option("--T", help="Time steps a sample (ST-RSBP: ms). Default: the recipe's, or the rule's own; for recordings, all of theirs."),
]
RateOption = Annotated[float | None, typer.Option("--lr", help="Learning rate. Default: the recipe's, or the rule's own; 0.003 for digits.")]
BatchOption = Annotated[int | None, typer.Option(help="Samples a training step. Default: the recipe's, or the rule's own; 32 for digits.")]
ScheduleOption = Annotated[str, typer.Option(help="Learning rate over epochs: constant, sqrt (lr / sqrt(epoch)) or cosine (down to 0).")]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Another setting of the training, as in a recipe's \\[train], such as augment=elastic or weight_decay=0.01; can be repeated. "
        "A wrong KEY lists them.",
    ),
]
LimitOption = Annotated[int | None, typer.Option(help="Train on the first N samples only.", metavar="N")]
HoldOption = Annotated[
    int | None,
    typer.Option(help="Test on the last N training samples, not on the test set: to choose settings by.", metavar="N"),
]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
