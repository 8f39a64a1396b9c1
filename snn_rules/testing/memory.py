"""Global memory of the interpreter: every access is checked for bounds, alignment and races between threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SPACE = 44  # bits: each array has 16 TiB for itself, so that no overrun ends in another one
WORD = 4  # bytes, or a value if it is smaller: what two threads may not share
NONE, MANY = -1, -2


class MemoryFault(Exception):
    """Which thread did what to which array, in one line."""


@dataclass
class _Block:
    name: str
    data: Array  # its bytes
    address: int  # of its first byte, to whoever allocated it
    writer: Array  # of each word: the thread that wrote it
    reader: Array  # of each word: the thread that read it, or MANY
    word: int  # its bytes

    def seen_as(self, dtype: np.dtype[Any]) -> Array:
        return self.data[: self.data.size // dtype.itemsize * dtype.itemsize].view(dtype)


class Memory:
    """The arrays that one launch may touch, by name. A launch is one step: its threads run in any order."""

    def __init__(self, arrays: Mapping[str, Array]):
        self._blocks: list[_Block] = []
        for name, array in arrays.items():
            if not array.flags.c_contiguous:
                raise MemoryFault(f"{name!r} is not contiguous")
            data, word = array.reshape(-1).view(np.uint8), min(WORD, array.itemsize)
            empty = np.full(-(-array.nbytes // word), NONE, np.int64)
            self._blocks.append(_Block(name, data, array.__array_interface__["data"][0], empty, empty.copy(), word))

    def address(self, pointer: int, parameter: str) -> int:
        """Where the kernel finds what `pointer` means to the host; null stays null."""
        for k, block in enumerate(self._blocks):
            if block.address <= pointer < block.address + max(block.data.size, 1):
                return ((k + 1) << SPACE) + pointer - block.address
        if pointer:
            raise MemoryFault(f"parameter {parameter!r} points at {pointer:#x}, which is in no tensor of this launch")
        return 0

    def load(self, addresses: Array, dtype: type[Any], threads: Array) -> Array:
        found = np.empty(addresses.size, dtype)
        for block, chosen, at in self._parts(addresses, np.dtype(dtype), threads, "reads"):
            found[chosen] = block.seen_as(found.dtype)[at // found.itemsize]
            for word in _words(at, found.itemsize, block.word):
                self._meet(block, block.writer[word], threads[chosen], word, "reads what thread {} writes")
                was, thread = block.reader[word], threads[chosen]
                block.reader[word] = np.where((was == NONE) | (was == thread), thread, MANY)
                block.reader[word[block.reader[word] != thread]] = MANY
        return found

    def store(self, addresses: Array, values: Array, threads: Array) -> None:
        for block, chosen, at in self._parts(addresses, values.dtype, threads, "writes"):
            thread = threads[chosen]
            for word in _words(at, values.itemsize, block.word):
                self._meet(block, block.writer[word], thread, word, "writes what thread {} writes")
                self._meet(block, block.reader[word], thread, word, "writes what thread {} reads")
                block.writer[word] = thread
                self._meet(block, block.writer[word], thread, word, "writes what thread {} writes")
            block.seen_as(values.dtype)[at // values.itemsize] = values[chosen]

    def _parts(self, addresses: Array, dtype: np.dtype[Any], threads: Array, does: str) -> list[tuple[_Block, Array, Array]]:
        """For each array: which of the accesses go there, and at which bytes of it."""
        which = (addresses >> SPACE) - 1
        parts = []
        for k in np.unique(which):
            chosen = np.flatnonzero(which == k)
            at = addresses[chosen] - ((k + 1) << SPACE)
            if not 0 <= k < len(self._blocks):  # before the first byte of the first array, or null
                raise MemoryFault(f"thread {threads[chosen[0]]} {does} address {addresses[chosen[0]]:#x}: a null pointer, or out of bounds")
            block = self._blocks[k]
            bad = np.flatnonzero((at + dtype.itemsize > block.data.size) | (at % dtype.itemsize != 0))
            if bad.size:
                wrong = "out of bounds" if at[bad[0]] % dtype.itemsize == 0 else "misaligned"
                where = f"byte {at[bad[0]]} of {block.name!r}, which has {block.data.size}"
                raise MemoryFault(f"thread {threads[chosen[bad[0]]]} {does} {where}: {wrong}")
            parts.append((block, chosen, at))
        return parts

    @staticmethod
    def _meet(block: _Block, others: Array, threads: Array, words: Array, what: str) -> None:
        bad = np.flatnonzero((others != NONE) & (others != threads))
        if bad.size:
            other = "another" if others[bad[0]] == MANY else str(others[bad[0]])
            raise MemoryFault(f"race: thread {threads[bad[0]]} {what.format(other)}, word {words[bad[0]]} of {block.name!r}")


def _words(at: Array, size: int, word: int) -> list[Array]:
    return [at // word + k for k in range(max(size // word, 1))]
