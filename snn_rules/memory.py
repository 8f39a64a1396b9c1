"""The most memory that something has held."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Count the peak anew from here, where the system lets one: Linux, and CUDA."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # not Linux, or a container that forbids it: the peak is then that of the whole process
        _REFS.write_text("5")


def peak_memory(device: str = "cpu") -> float:
    """MB held at most since `reset_peak`: by CUDA's tensors, or by the whole process in main memory."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    if _STATUS.exists():
        (peak,) = (line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak) * 1.024e-3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
