"""Data sets of spike trains: recordings of event cameras and of artificial ears, as frames of {0, 1}, `[N, S, *]` over S steps.

The recordings are read by tonic (`pip install 'snn-rules[events]'`), from its folders beneath the data root; a place has a
spike at a step if it had an event in that time. "spoken-digits" is a file of spike trains of its own, see `spoken_digits`.
"""

from __future__ import annotations

import importlib
import itertools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .console import progress
from .data import Data
from .rule import RuleError


@dataclass(frozen=True)
class Recordings:
    """What tonic calls a data set, what of it lies on disk, and how its time becomes steps."""

    tonic: str
    parts: tuple[str, str]  # of training and test
    window: int  # microseconds a step
    steps: int
    classes: int
    size: int | None = None  # pixels on a side, where the camera has more


RECORDINGS = {
    "nmnist": Recordings("NMNIST", ("Train", "Test"), 3000, 100, 10),  # TSSL-BP, supplement 2.5.2: 300 ms
    "shd": Recordings("SHD", ("shd_train.h5", "shd_test.h5"), 10_000, 140, 20),
    "dvs-gesture": Recordings("DVSGesture", ("ibmGestureTrain", "ibmGestureTest"), 50_000, 120, 11, 32),
}
SPOKEN = "fsdd_lyon_bsa.npz"
SPOKEN_REMEDY = "pip install 'snn-rules[speech]', then benchmarks/audio_to_spikes.py of a checkout"
SPOKEN_STEPS = 700  # of 1.6 ms; ST-RSBP, speech: longer samples are cut, shorter ones silent at their end


def load(name: str, root: Path, download: bool = False) -> Data:
    """Recordings by their name in `RECORDINGS`, or "spoken-digits"."""
    return recordings(name, root, download) if name in RECORDINGS else spoken_digits(name, root)


def recordings(name: str, root: Path, download: bool) -> Data:
    what = RECORDINGS[name]
    try:
        datasets, transforms = importlib.import_module("tonic.datasets"), importlib.import_module("tonic.transforms")
    except ImportError as cause:
        raise RuleError(f"data set {name!r} is read by the package tonic; pip install 'snn-rules[events]'") from cause
    stock = getattr(datasets, what.tonic)
    there = [root / what.tonic / part for part in what.parts]
    if not download and not all(path.exists() for path in there):
        paths = " and ".join(map(str, there))
        raise RuleError(f"data set {name!r}: no {paths}; pass --data-root with the folder that holds {what.tonic}, or --download")
    # without --download, what is there is taken, however little: tonic's own class would fetch the rest
    cls = stock if download else type(what.tonic, (stock,), {"_check_exists": lambda self: True})
    size = stock.sensor_size
    steps = []
    if what.size is not None:
        steps.append(transforms.Downsample(sensor_size=size, target_size=(what.size, what.size)))
        size = (what.size, what.size, size[2])
    steps.append(transforms.ToFrame(sensor_size=size, time_window=what.window, start_time=0, end_time=what.steps * what.window))
    shape = size[2:0:-1] + size[:1] if size[1] > 1 else size[:1]
    try:
        train, test = (cls(save_to=str(root), train=train, transform=transforms.Compose(steps)) for train in (True, False))
        parts = [_read(part, f"{name}, {label}", (what.steps, *shape)) for part, label in ((train, "training"), (test, "test"))]
    except (OSError, KeyError, IndexError, ValueError, RuntimeError) as cause:
        reason = " ".join(str(cause).split())
        raise RuleError(f"data set {name!r}: {str(root / what.tonic)!r} cannot be read ({reason}); fetch it again, or pass --download") from cause
    (train_x, train_y), (test_x, test_y) = parts
    if not len(train_y) or not len(test_y):
        raise RuleError(f"data set {name!r}: {str(root / what.tonic)!r} holds no recordings; fetch it again, or pass --download")
    return Data(name, train_x, train_y, test_x, test_y, what.classes, temporal=True)


def _read(part: Any, title: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The frames and labels of a part; files that are named by numbers in the order of their numbers, not class by class."""
    files = [Path(file).stem for file in part.data]
    order = sorted(range(len(part)), key=lambda i: (files[i], i) if files and files[i].isdecimal() and len(files[i]) == 5 else ("", i))
    x, y = torch.zeros((len(part), *shape), dtype=torch.uint8), torch.zeros(len(part), dtype=torch.long)
    with progress() as bar:
        for place, i in enumerate(bar.track(order, description=f"reading {title}")):
            frames, label = part[i]
            x[place] = torch.from_numpy((frames > 0).astype(np.uint8)).view(shape)
            y[place] = int(label)
    return x, y


def spoken_digits(name: str, root: Path) -> Data:
    """The Free Spoken Digit Dataset as 78 spike trains of Lyon's ear model and BSA, the way ST-RSBP's authors prepared TI46.

    `fsdd_lyon_bsa.npz` holds `spikes` (bits, eight channels a byte, the steps of all samples after one another), `offsets` (where
    each sample begins, and the end), `labels`, `speaker`, and `test`, the official split, whose speakers are in both parts.
    "spoken-digits-NAME" tests on the speaker NAME, whom the training has not heard.
    """
    path, speaker = root / SPOKEN, name.removeprefix("spoken-digits").removeprefix("-")
    if not path.is_file():
        raise RuleError(f"data set {name!r}: no {path}; pass --data-root with the folder that holds it, or make it: {SPOKEN_REMEDY}")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            held = {key: file[key] for key in ("spikes", "offsets", "labels", "speaker", "test")}
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as cause:
        raise RuleError(f"data set {name!r}: {str(path)!r} cannot be read ({' '.join(str(cause).split())}); make it again") from cause
    speakers = sorted(set(held["speaker"].tolist()))
    if speaker and speaker not in speakers:
        raise RuleError(f"data set {name!r}: no speaker {speaker!r}; there are {', '.join(speakers)}")
    test = held["speaker"] == speaker if speaker else held["test"].astype(bool)
    x = torch.from_numpy(np.stack(list(_trains(held["spikes"], held["offsets"]))))
    y, chosen = torch.from_numpy(held["labels"]).long(), torch.from_numpy(test)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))  # not speaker by speaker
    train = order[~chosen[order]]
    return Data(name, x[train], y[train], x[chosen], y[chosen], 10, temporal=True)


def _trains(spikes: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    for begin, end in itertools.pairwise(offsets):
        train = np.unpackbits(spikes[begin:end][:SPOKEN_STEPS], axis=1)[:, :78]
        yield np.pad(train, ((0, SPOKEN_STEPS - len(train)), (0, 0)))
