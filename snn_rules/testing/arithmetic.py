"""What PTX instructions compute: IEEE arithmetic, and denormal numbers flushed where the instruction says `.ftz`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .memory import Array

TYPES: dict[str, type[Any]] = {
    "pred": np.bool_,
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
}  # fmt: skip

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "ne": lambda a, b: (a < b) | (a > b), "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)), "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b), "leu": lambda a, b: ~(a > b), "gtu": lambda a, b: ~(a <= b), "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b), "nan": lambda a, b: (a != a) | (b != b),
}  # fmt: skip
UNARY: dict[str, Callable[[Any], Any]] = {
    "mov": lambda a: a, "neg": np.negative, "abs": np.abs, "not": np.invert, "rcp": lambda a: a.dtype.type(1) / a, "sqrt": np.sqrt,
}  # fmt: skip
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.fmin, "max": np.fmax,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
ROUNDED = {"div", "rcp", "sqrt"}  # of floats: exact only where they say `.rn`
ROUND: dict[str, Callable[[Any], Any]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
SMALLEST = np.float32(1.17549435e-38)

Operand = Callable[[int, str], Array]  # (which, as what type)


class Unsupported(Exception):
    """Why an instruction is refused."""


def compute(op: tuple[str, ...], operand: Operand) -> tuple[str, Any]:
    """The type and value of what an instruction writes; its operands count from 1."""
    name, kind, flush = op[0], op[-1], "ftz" in op

    def given(k: int, kind: str = kind) -> Array:
        value = operand(k, kind)
        return flushed(value) if flush and kind == "f32" else value

    if name == "fma" and kind != "f32":
        raise Unsupported("a fused multiply-add of doubles: compile with --fmad=false")
    if set(op) & {"approx", "full", "rz", "rm", "rp", "sat"} or (name in ROUNDED and kind[0] == "f" and "rn" not in op):
        raise Unsupported("not rounded to nearest: compile without --use_fast_math")
    if name == "setp":
        return "pred", COMPARE[op[1]](given(1), given(2))
    if name == "selp":
        return kind, np.where(operand(3, "pred"), operand(1, kind), operand(2, kind))
    if name == "cvt":
        return op[-2], _convert(given(1), op)
    if name in ("shl", "shr"):
        count, shift = operand(2, "u32"), np.left_shift if name == "shl" else np.right_shift
        if (count >= 8 * given(1).itemsize).any():
            raise Unsupported("a shift by the whole width")
        return kind, shift(given(1), count.astype(TYPES[kind]))
    if "wide" in op:
        wide = f"{kind[0]}{2 * int(kind[1:])}"
        product = given(1).astype(TYPES[wide]) * given(2).astype(TYPES[wide])
        return wide, product + operand(3, wide) if name == "mad" else product
    if name == "mad":
        return kind, given(1) * given(2) + given(3)
    if kind[0] != "f" and "hi" in op:
        raise Unsupported("the upper half of a product")
    if kind[0] != "f" and name in ("div", "rem"):
        return kind, _divide(given(1), given(2), name)
    operands, function = FUNCTIONS[name]
    value = function(*(given(k) for k in range(1, operands + 1)))
    return kind, flushed(value) if flush and kind == "f32" else value


def fused(a: Array, b: Array, c: Array) -> Array:
    """`a * b + c` of float32, rounded once: the product is exact in float64, and the sum is rounded to odd there before it is to float32."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = np.asarray(product + addend)
    error = (product - (total - (total - product))) + (addend - (total - product))
    inexact = np.isfinite(total) & (error != 0) & (total.view(np.int64) & 1 == 0)
    return np.where(inexact, np.nextafter(total, np.copysign(np.inf, error)), total).astype(np.float32)


FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    **{name: (1, function) for name, function in UNARY.items()},
    **{name: (2, function) for name, function in BINARY.items()},
    "fma": (3, fused),
}


def flushed(x: Array) -> Array:
    """Denormal numbers are zeros of their sign."""
    small = np.abs(x) < SMALLEST
    return np.where(small, np.copysign(np.float32(0), x), x) if small.any() else x


def _divide(a: Array, b: Array, name: str) -> Array:
    """Of integers, towards zero. Threads that stand elsewhere may hold a zero there."""
    b = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // b
    quotient += (quotient < 0) & (quotient * b != a)  # numpy's rounds down
    return quotient if name == "div" else a - quotient * b


def _convert(x: Array, op: tuple[str, ...]) -> Array:
    dtype = TYPES[op[-2]]
    if x.dtype.kind != "f" or op[-2][0] == "f":
        return x.astype(dtype)
    rounded = ROUND[op[1]](x).astype(np.float64)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max  # numbers beyond end there; NaN is 0
    return np.select([rounded >= float(high), rounded <= float(low), rounded == rounded], [dtype(high), dtype(low), rounded.astype(dtype)], dtype(0))
