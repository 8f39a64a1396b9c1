"""Large tensors on recycled memory: for them, what a kernel costs is mostly the first touch of fresh pages.

Blocks of at least `SMALLEST` bytes are mapped in huge pages and come back when the last tensor on them dies. At most
`SNN_RULES_POOL_MB` (default 1024; 0: none) wait for the next tensor; the longest waiting make room. Such a tensor cannot resize its storage.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from ..rule import RuleError

SMALLEST = 4 << 20
PAGE = 2 << 20  # a huge page


class Pool:
    def __init__(self, capacity: int):
        self.capacity, self.waiting = capacity, 0
        self._blocks: dict[int, list[mmap.mmap]] = {}
        self._sizes = deque[int]()  # of the blocks, the longest waiting first
        self._lock = threading.RLock()  # a collection inside may give a block back: there is never a size without its block

    def take(self, size: int) -> ctypes.Array[ctypes.c_char]:
        """Memory of at least `size` bytes; it returns to the pool when nothing refers to it any more."""
        size = -(-size // PAGE) * PAGE
        with self._lock:
            block = self._out(size).pop() if size in self._sizes else None  # the last one may be in a cache
        if block is None:
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # a kernel without huge pages
                    block.madvise(mmap.MADV_HUGEPAGE)
        memory = (ctypes.c_char * size).from_buffer(block)
        weakref.finalize(memory, self._give_back, block, size).atexit = False
        return memory

    def _give_back(self, block: mmap.mmap, size: int) -> None:
        with self._lock:
            if size > self.capacity:
                return
            while self._sizes and self.waiting + size > self.capacity:  # of a size that is used no more, as it seems
                self._out(self._sizes[0]).pop(0)
            self._blocks.setdefault(size, []).append(block)
            self._sizes.append(size)
            self.waiting += size

    def _out(self, size: int) -> list[mmap.mmap]:
        """The blocks of that size, of which one is to go."""
        self._sizes.remove(size)
        self.waiting -= size
        return self._blocks[size]


def _capacity(given: str) -> int:
    """Bytes, from the megabytes that the environment gives."""
    try:
        megabytes = int(given)
    except ValueError:
        megabytes = -1
    if megabytes < 0:
        raise RuleError(f"SNN_RULES_POOL_MB={given!r} should be a whole number of megabytes, at least 0; leave it out for 1024")
    return megabytes << 20


_pool = Pool(_capacity(os.environ.get("SNN_RULES_POOL_MB", "1024")))


def memory(x: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes results like other tensors, which are contiguous and none of them larger than `x`: the large on recycled memory."""
    return torch.empty_like if x.nbytes < SMALLEST or not _pool.capacity else _like


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x) if x.nbytes < SMALLEST else torch.frombuffer(_pool.take(x.nbytes), dtype=x.dtype, count=x.numel()).view(x.shape)


def tune_cpu_allocator() -> bool:
    """Let the whole process keep the memory that it frees (glibc's `mallopt`); True if the C library took it.

    Torch's own large tensors then stay on pages that have been touched, too. The process holds its largest size until
    it ends. Call it once, at the start.
    """
    keep = {-4: 0, -1: 2**31 - 1, -2: 256 << 20}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in keep.items())
