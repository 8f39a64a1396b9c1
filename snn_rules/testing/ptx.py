"""Interprets the PTX that NVRTC makes of a rule's kernels, all threads at once, instruction by instruction.

Threads that branch apart wait for the one that is farthest behind. What is not IEEE arithmetic in a fixed order (an
approximate division, a rounding mode) is refused: it would break the agreement with the other executors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arithmetic import TYPES, Unsupported, compute
from .memory import Array, Memory

MAX_STEPS = 5_000_000


class PtxError(Exception):
    """What is wrong with a launch or with the code, in one line."""


@dataclass(frozen=True)
class Instruction:
    text: str
    predicate: str | None
    negated: bool
    op: tuple[str, ...]
    args: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A kernel: its parameters (type, name) in order, its registers' types by prefix, its code."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    registers: dict[str, str]
    code: tuple[Instruction, ...]
    labels: dict[str, int]


def parse(text: str) -> dict[str, Entry]:
    """The kernels of a PTX module."""
    text = re.sub(r"//[^\n]*", "", text)
    found = re.findall(r"\.entry\s+(\w+)\s*\((.*?)\)[^{]*\n\{(.*?)\n\}", text, re.DOTALL)
    return {name: _entry(name, parameters, body) for name, parameters, body in found}


def _entry(name: str, parameters: str, body: str) -> Entry:
    code, labels, registers = list[Instruction](), dict[str, int](), dict[str, str]()
    for raw in re.split(r"[;\n]", body):
        line = raw.strip()
        if line.startswith(".reg"):
            kind, prefix = re.findall(r"\.reg\s+\.(\w+)\s+(%\w+?)<", line)[0]
            registers[prefix] = kind
        elif line.endswith(":"):
            labels[line[:-1]] = len(code)
        elif line and not line.startswith(".pragma"):
            code.append(_instruction(line))
    return Entry(name, tuple(re.findall(r"\.param\s+\.(\w+)(?:\s+\.\w+(?:\s+\d+)?)*\s+(\w+)", parameters)), registers, tuple(code), labels)


def _instruction(line: str) -> Instruction:
    guard, rest = re.match(r"(?:@(!?%\w+)\s+)?(.*)", line).groups()  # type: ignore[union-attr]
    op, _, args = rest.partition(" ")
    split = tuple(arg.strip() for arg in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", args))
    return Instruction(line, guard.lstrip("!") if guard else None, bool(guard and guard[0] == "!"), tuple(op.split(".")), split)


def launch(entry: Entry, grid: int, block: int, arguments: Sequence[np.generic], memory: Memory) -> None:
    """Run a kernel. Arguments: `uint64` is a pointer, `int64` a size."""
    if len(arguments) != len(entry.parameters):
        raise PtxError(f"kernel {entry.name!r} takes {len(entry.parameters)} arguments and was given {len(arguments)}")
    values = {name: _argument(entry, name, kind, given, memory) for (kind, name), given in zip(entry.parameters, arguments, strict=True)}
    with np.errstate(all="ignore"):
        _Machine(entry, grid, block, values, memory).run()


def _argument(entry: Entry, name: str, kind: str, given: np.generic, memory: Memory) -> Array:
    wanted = np.dtype(TYPES[kind])
    if not isinstance(given, np.generic) or given.dtype.itemsize != wanted.itemsize or (given.dtype.kind == "f") != (wanted.kind == "f"):
        what = getattr(given, "dtype", type(given).__name__)
        raise PtxError(f"kernel {entry.name!r}: parameter {name!r} is .{kind}, {wanted.itemsize} bytes; it was given {what}")
    if given.dtype == np.uint64:
        return np.array(memory.address(int(given), name), np.uint64)
    return np.array(given).view(wanted)


class _Machine:
    """All threads of a launch: their registers, and where each stands."""

    def __init__(self, entry: Entry, grid: int, block: int, parameters: dict[str, Array], memory: Memory):
        self.entry, self.memory, self.parameters = entry, memory, parameters
        self.count = grid * block
        self.threads = np.arange(self.count)
        self.place = np.zeros(self.count, np.int64)
        special: dict[str, Any] = {"%tid.x": self.threads % block, "%ctaid.x": self.threads // block, "%ntid.x": block, "%nctaid.x": grid}
        self.registers: dict[str, Array] = {name: np.broadcast_to(np.uint32(v), self.count) for name, v in special.items()}
        self.special = frozenset(special)

    def run(self) -> None:
        """Those farthest behind go first, up to where others stand or one of them branches."""
        done, steps = len(self.entry.code), 0
        while (here := int(self.place.min())) < done:
            mask = self.place == here
            ahead = self.place[~mask]
            until = int(ahead.min()) if ahead.size else done
            while here < until:
                instruction = self.entry.code[here]
                here, steps = here + 1, steps + 1
                active = mask if instruction.predicate is None else mask & (self._read(instruction.predicate, "pred") ^ instruction.negated)
                if instruction.op[0] in ("bra", "ret"):
                    self.place[mask] = here
                    self.place[active] = done if instruction.op[0] == "ret" else self.entry.labels[instruction.args[0]]
                    break
                self._step(instruction, active)
            else:
                self.place[mask] = here
            if steps > MAX_STEPS:
                raise PtxError(f"kernel {self.entry.name!r} does not end")

    def _step(self, instruction: Instruction, active: Array) -> None:
        op, args = instruction.op, instruction.args
        if not active.any():
            return
        try:
            if op[:2] == ("ld", "param"):
                self._write(args[0], op[-1], self.parameters[args[1].strip("[]")].view(TYPES[op[-1]]), active)
            elif op[:2] in (("ld", "global"), ("st", "global")):
                self._access(op, args, active)
            elif op[0] == "cvta":
                self._write(args[0], "u64", self._read(args[1], "u64"), active)
            else:
                kind, value = compute(op, lambda k, kind: self._read(args[k], kind))
                self._write(args[0], kind, value, active)
        except (Unsupported, KeyError, IndexError) as cause:
            raise PtxError(f"kernel {self.entry.name!r}: the interpreter does not know {instruction.text!r} ({cause})") from cause

    def _access(self, op: tuple[str, ...], args: tuple[str, ...], active: Array) -> None:
        kind, load = op[-1], op[0] == "ld"
        register, offset = re.match(r"\[([^+\]]+)\+?(-?\d+)?\]", args[1 if load else 0]).groups()  # type: ignore[union-attr]
        addresses = self._read(register, "u64")[active].view(np.int64) + int(offset or 0)
        values = [name.strip() for name in args[0 if load else 1].strip("{}").split(",")]
        for k, name in enumerate(values):  # more than one: a vector
            at, threads = addresses + k * np.dtype(TYPES[kind]).itemsize, self.threads[active]
            if load:
                full = np.zeros(self.count, TYPES[kind])
                full[active] = self.memory.load(at, TYPES[kind], threads)
                self._write(name, kind, full, active)
            else:
                size = max(np.dtype(TYPES[kind]).itemsize, self.registers[name].itemsize if name in self.registers else 0)
                value = self._read(name, f"{kind[0]}{8 * size}")  # the lower part of a wider register
                self.memory.store(at, np.broadcast_to(value, self.count)[active].astype(TYPES[kind]), threads)

    def _read(self, name: str, kind: str) -> Array:
        """A register or a number, as a type of its own width."""
        if not name.startswith("%"):
            return _number(name, kind)
        if name not in self.registers:
            raise PtxError(f"kernel {self.entry.name!r} reads {name} before anything is written there")
        held = self.registers[name]
        if held.itemsize != np.dtype(TYPES[kind]).itemsize:
            raise PtxError(f"kernel {self.entry.name!r} reads {name}, of {held.itemsize} bytes, as .{kind}")
        return held if name in self.special else held.view(TYPES[kind])

    def _write(self, name: str, kind: str, value: Any, active: Array) -> None:
        declared = TYPES[self.entry.registers[re.sub(r"\d+$", "", name)]]
        held = self.registers.setdefault(name, np.zeros(self.count, declared))
        if held.itemsize != np.dtype(TYPES[kind]).itemsize:
            raise PtxError(f"kernel {self.entry.name!r} writes {name}, of {held.itemsize} bytes, as .{kind}")
        np.copyto(held.view(TYPES[kind]), value, where=active)


def _number(text: str, kind: str) -> Array:
    """0f and 0d are followed by the bits of a float; all else is an integer."""
    if text[:2] in ("0f", "0d"):
        return np.array(int(text[2:], 16), np.uint32 if text[1] == "f" else np.uint64).view(TYPES[kind])
    if kind == "pred":
        return np.array(bool(int(text)))
    return np.array(int(text, 0) % (1 << int(kind[1:])), TYPES[f"b{kind[1:]}"]).view(TYPES[kind])
