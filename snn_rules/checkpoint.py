"""One file that holds a training: written whole or not at all, read without running what is in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from .rule import RuleError

FORMAT = 1
KEYS = ("format", "identity", "config", "epoch", "network", "optimizer", "rng", "history")


def previous(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_name(path.name + ".previous")


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path`; what was there becomes `*.previous`. A crash leaves one of the two whole."""
    write(path, lambda file: torch.save({"format": FORMAT, **state}, file), keep=True)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Only tensors and plain values are read: code in the file is refused, not run."""
    spare = f"; the one before it can be used: copy {str(previous(path))!r} over it" if previous(path).exists() else ""
    if not path.exists():
        raise RuleError(f"checkpoint {str(path)!r} does not exist{spare or '; train without --resume first, or pass the --out that holds one'}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch.load raises whatever it stumbles over
        raise RuleError(f"checkpoint {str(path)!r} cannot be read: it is damaged, or holds code, which is never run{spare}") from cause
    if not isinstance(state, dict) or state.get("format") != FORMAT or not set(KEYS) <= set(state):
        raise RuleError(f"checkpoint {str(path)!r} was not written by this version of snn-rules train{spare}")
    return state


def begin(path: Path, resume: bool, held: ExitStack) -> dict[str, Any] | None:
    """Take the folder of `path` for one training, until `held` is closed; what `resume` is to go on with."""
    if path.parent.is_dir() or not resume:
        held.enter_context(_alone(path.parent))
    if resume:
        return load(path)
    if path.exists():
        raise RuleError(f"{str(path.parent)!r} holds a training already; pass --resume to go on with it, or another --out")
    return None


def write(path: Path, put: Callable[[IO[bytes]], object], keep: bool = False) -> None:
    """Let `put` write a file that takes the place of `path` once it is safely on disk; `keep` what was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            put(file)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            _keep(path)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as cause:  # torch.save turns a full disk into a RuntimeError
        reason = " ".join(str(cause).split())
        raise RuleError(f"{str(path)!r} cannot be written ({reason}); what was there is untouched, make room or choose another --out") from cause
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _keep(path: Path) -> None:
    """A second name for what `path` holds: there is a checkpoint at `path` all the while."""
    second = path.with_name(f".{path.name}.{os.getpid()}.second.part")
    try:
        os.link(path, second)
    except OSError:  # a file system without links: for a moment there is only the previous one, and `load` says so
        second = path
    os.replace(second, previous(path))
    if second != path:
        second.unlink(missing_ok=True)  # where both were the same file already, `replace` has left it


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a second training in the same folder; clear away what one that was killed has left half written."""
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
        for half in folder.glob(".*.[0-9]*.part"):
            half.unlink()
    except filelock.Timeout as cause:
        raise RuleError(f"{str(folder)!r} is in use by another training; wait for it, or choose another --out") from cause
    except OSError as cause:
        raise RuleError(f"{str(folder)!r} cannot be used as a folder for the training ({cause.strerror}); choose another --out") from cause
    try:
        yield
    finally:
        lock.release()
