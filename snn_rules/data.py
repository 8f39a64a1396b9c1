"""Data sets, read from where they lie: small images here, spike trains in events.py. Nothing is downloaded unless that is asked for."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .rule import LearningRule, RuleError

IMAGES = ("digits", "mnist", "fashion-mnist")
DATASETS = (*IMAGES, "nmnist", "shd", "dvs-gesture", "spoken-digits")  # and spoken-digits-SPEAKER
FOLDERS = {  # beneath the data root: torchvision's, a plain one, the root itself; and that of Debian's package
    "mnist": (("MNIST/raw", "mnist", "."), ()),
    "fashion-mnist": (("FashionMNIST/raw", "fashion-mnist", "."), ("/usr/share/datasets/fashion-mnist",)),
}
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


# what a data set wants of a training, in preference to the rule's own settings, which are for 60,000 samples
SETTINGS: dict[str, dict[str, Any]] = {"digits": {"batch_size": 32, "lr": 3e-3, "epochs": 20}}


@dataclass(frozen=True)
class Data:
    """Samples `[N, C, H, W]` with values in [0, 1], class indices `[N]`; or, `temporal`, spike trains `[N, S, *]` over S steps."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    temporal: bool = False
    held_out: int = 0  # samples of the training set that stand in for the test set

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample at one step: (C, H, W), or (F,)."""
        return tuple(self.train_x.shape[2 if self.temporal else 1 :])

    @property
    def steps(self) -> int | None:
        """Of a recording; images have none of their own."""
        return self.train_x.shape[1] if self.temporal else None

    def encode(self, rule: LearningRule, x: Tensor, T: int) -> Tensor:
        """`[T, N, *]`: samples in the rule's own code; of spike trains the first T steps, silent after their end."""
        if not self.temporal:
            return rule.encode(x, T)
        if rule.capabilities.signal == "times":
            raise RuleError(f"data set {self.name!r} holds spike trains, but {rule.name!r} sends one spike time; choose images, or mode='clock'")
        return frames(x, T)

    def binned(self, steps: int) -> Data:
        """Spike trains in coarser time: a step has a spike where there was one in any of `steps` steps."""
        if steps == 1:
            return self
        if not self.temporal:
            raise RuleError(f"data set {self.name!r}: bin={steps} puts steps of spike trains together, but these are images; leave it out")
        return replace(self, train_x=binned(self.train_x, steps), test_x=binned(self.test_x, steps))

    def limit(self, train: int | None) -> Data:
        """The first `train` samples for training, all for the test."""
        if train is not None and train < 1:
            raise RuleError(f"data: {train} samples for training are too few; take at least 1")
        return replace(self, train_x=self.train_x[:train], train_y=self.train_y[:train])

    def hold_out(self, count: int | None) -> Data:
        """The last `count` samples for training in the place of the test set, which is left alone: to choose settings by."""
        if count is None:
            return self
        if not 1 <= count < len(self.train_y):
            raise RuleError(f"data: {count} samples cannot be held out of {len(self.train_y)} for training; take at least 1, and leave some")
        x, y = self.train_x, self.train_y
        return replace(self, train_x=x[:-count], train_y=y[:-count], test_x=x[-count:], test_y=y[-count:], held_out=count)


def load(name: str, root: str | Path = "data", download: bool = False) -> Data:
    """A data set by its name; `root` is the folder of the data sets that lie in files.

    "digits" (8 x 8, 1,437 for training and 360 for the test) comes with scikit-learn and needs no file. "mnist" and
    "fashion-mnist" (28 x 28, 60,000 and 10,000) are idx files, gzipped or not, in torchvision's folders under `root`,
    in `root/NAME`, or in `root`. With `download`, torchvision fetches what is not there. The others are spike trains: see
    `events`.
    """
    if name not in DATASETS and not name.startswith("spoken-digits-"):
        raise RuleError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}, spoken-digits-SPEAKER")
    if name not in IMAGES:
        from . import events

        return events.load(name, Path(root), download)
    return _digits() if name == "digits" else _idx(name, Path(root), download)


def _digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 1, 8, 8) / 16, labels, test_size=0.2, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return Data("digits", train_x.float(), train_y.long(), test_x.float(), test_y.long(), 10)


def _idx(name: str, root: Path, download: bool) -> Data:
    under, fixed = FOLDERS[name]
    folders = [*(root / folder for folder in under), *map(Path, fixed)]
    files = _find(folders)
    if files is None and download:
        _download(name, root)
        files = _find(folders)
    if files is None:
        remedy = f"pass --data-root with the folder that holds them, or --download{', or apt install dataset-fashion-mnist' if fixed else ''}"
        raise RuleError(f"data set {name!r}: no {FILES[0]}[.gz] and its three companions in {', '.join(map(str, folders))}; {remedy}")
    train_x, train_y, test_x, test_y = (_read(path) for path in files)
    for images, labels, path in ((train_x, train_y, files[0]), (test_x, test_y, files[2])):
        if images.dim() != 3 or labels.shape != images.shape[:1] or not len(labels):
            shapes = f"{list(images.shape)} beside labels of shape {list(labels.shape)}"
            raise RuleError(f"data set {name!r}: {str(path)!r} holds images of shape {shapes}; fetch the four files again")
        if int(labels.max()) > 9 or images.shape[1:] != train_x.shape[1:]:
            found = f"labels up to {int(labels.max())} and images of {list(images.shape[1:])}"
            raise RuleError(f"data set {name!r}: {str(path)!r} and its labels have {found}, which is another data set; fetch the four files again")
    return Data(name, _images(train_x), train_y.long(), _images(test_x), test_y.long(), 10)


def binned(x: Tensor, steps: int) -> Tensor:
    """Spike trains `[N, S, *]` to `[N, ceil(S / steps), *]`."""
    return torch.stack([part.amax(1) for part in torch.split(x, steps, dim=1)], dim=1)


def frames(x: Tensor, T: int) -> Tensor:
    """Spike trains `[N, S, *]` to `[T, N, *]`: the first T steps, silent after their end."""
    first = x[:, :T].transpose(0, 1).float()
    return torch.cat([first, first.new_zeros(T - len(first), *first.shape[1:])])


def _images(pixels: Tensor) -> Tensor:
    return pixels.unsqueeze(1).float() / 255


def _find(folders: Sequence[Path]) -> list[Path] | None:
    """The four files, from the first folder that holds them all."""
    for folder in folders:
        found = [next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None) for name in FILES]
        if all(found):
            return [path for path in found if path]
    return None


def _read(path: Path) -> Tensor:
    """An idx file of bytes: two zeros, the type (8), the number of axes, their sizes (big-endian), the values."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read()
        if data[:3] != b"\0\0\x08":
            raise ValueError(f"it begins with {data[:4]!r}, not with that of an idx file of bytes")
        axes = data[3]
        shape = np.frombuffer(data, ">i4", axes, 4)
        return torch.from_numpy(np.frombuffer(data, np.uint8, -1, 4 + 4 * axes).reshape(shape).copy())
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as cause:
        raise RuleError(f"data: {str(path)!r} cannot be read ({cause}); fetch it again") from cause


def _download(name: str, root: Path) -> None:
    from torchvision import datasets

    try:
        (datasets.MNIST if name == "mnist" else datasets.FashionMNIST)(str(root), download=True)
    except (OSError, RuntimeError) as cause:
        reason = " ".join(str(cause).split())
        raise RuleError(f"data set {name!r}: the download to {str(root)!r} failed ({reason}); fetch it by hand and pass --data-root") from cause
