"""Curves of a training for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .rule import RuleError
from .train import Epoch


class Board:
    """Writes an epoch's numbers beneath `folder`, in which `tensorboard --logdir` shows them."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as cause:
            raise RuleError("train: --tensorboard needs the package tensorboard; pip install 'snn-rules[tensorboard]'") from cause
        if any(path.exists() and not path.is_dir() for path in (folder, folder.parent)):
            raise RuleError(f"train: --tensorboard writes into the folder {str(folder)!r}, but a file is there; move it, or choose another --out")
        self._open: Any = SummaryWriter
        self._folder = str(folder)
        self._writer: Any = None

    def epoch(self, number: int, epoch: Epoch) -> None:
        """`number` counts from 1; what a broken-off training has written of it and later ones is gone."""
        self._writer = self._writer or self._open(self._folder, purge_step=number)
        values = {"loss": epoch.loss, "accuracy/train": epoch.train_accuracy, "accuracy/test": epoch.test_accuracy, "seconds": epoch.seconds}
        values |= {f"firing/{path}": rate for path, rate in epoch.firing.items()}
        values |= {name.replace(" ", "/"): value for name, value in epoch.counted.items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()
