"""Compiles CUDA C without a GPU, by the NVRTC library that comes with torch's CUDA wheel."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..kernels.cuda import OPTIONS

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)  # Turing, Ampere (A100, others), Ada, Hopper, Blackwell (B200, others)


class NoNvrtc(Exception):
    """Why NVRTC cannot be used here, in one line."""


class CompileError(Exception):
    """What NVRTC said."""


@dataclass(frozen=True)
class Usage:
    """What a kernel takes of a multiprocessor."""

    registers: int  # a thread
    spills: int  # bytes, loads and stores


@dataclass(frozen=True)
class Built:
    log: str
    ptx: str  # for an architecture to be named by `ptx`
    kernels: dict[str, Usage]


def build(source: str, arch: int, options: Iterable[str] = OPTIONS) -> Built:
    """Machine code for `sm_ARCH`, with what each kernel uses; warnings are in the log."""
    return _compile(source, (*options, "--ptxas-options=-v", f"--gpu-architecture=sm_{arch}"))


def ptx(source: str, arch: int = 80, options: Iterable[str] = OPTIONS) -> str:
    """The intermediate code for `compute_ARCH`, as text."""
    return _compile(source, (*options, f"--gpu-architecture=compute_{arch}")).ptx


def architectures() -> list[int]:
    """Those of `ARCHITECTURES` that this NVRTC knows."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(known))
    return [arch for arch in ARCHITECTURES if arch in known]


@lru_cache(maxsize=1)
def _library() -> Any:
    found = importlib.util.find_spec("nvidia")
    places = found.submodule_search_locations if found else None
    paths = sorted(str(path) for place in places or () for path in Path(place).glob("*/lib/libnvrtc.so.*") if ".alt." not in path.name)
    for path in [*paths, ctypes.util.find_library("nvrtc")]:
        if path:
            return ctypes.CDLL(path)
    raise NoNvrtc("no NVRTC library: torch's CUDA wheels bring one, as does pip install nvidia-cuda-nvrtc")


def _check(code: int) -> None:
    if code:
        raise CompileError(f"NVRTC answers {code}")


@lru_cache(maxsize=256)
def _compile(source: str, options: tuple[str, ...]) -> Built:
    nvrtc, program = _library(), ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"rule.cu", 0, None, None))
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode()
        if failed:
            raise CompileError(log.strip() or f"NVRTC answers {failed}")
        text = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode()
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return Built(log, text, dict(_usage(log)))


def _text(size: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    count = ctypes.c_size_t()
    if size(program, ctypes.byref(count)) or not count.value:
        return b""
    made = ctypes.create_string_buffer(count.value)
    _check(get(program, made))
    return made.value


def _usage(log: str) -> Iterable[tuple[str, Usage]]:
    one = r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    for name, stores, loads, registers in re.findall(one, log, re.DOTALL):
        yield name, Usage(int(registers), int(stores) + int(loads))
