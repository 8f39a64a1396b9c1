"""Compiles C++ with the system's compiler and keeps the result: a plain shared object, found again by what it was made of."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

FLAGS = (
    "-O1", "-ftree-slp-vectorize",  # the text is vectors and unrolled already: more makes kernels no faster, and takes twice the time
    "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC", "-w",
    "-ffp-contract=off",  # a fused multiply-add flips a spike here and there, and one flipped spike changes all after it
    "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
NUMBERS = """#if __FINITE_MATH_ONLY__
#error "kernels look for NaN, and are told that there is none; take -ffast-math, -Ofast or -ffinite-math-only out"
#endif
"""


class NoCompiler(Exception):
    """Why kernels cannot be compiled here, in one line."""


def added() -> list[str]:
    """The flags of `SNN_RULES_CXXFLAGS`: they come last, and so win."""
    return _words("SNN_RULES_CXXFLAGS")


def _words(name: str) -> list[str]:
    """A variable of the environment, taken apart as by a shell."""
    given = os.environ.get(name, "")
    try:
        return shlex.split(given)
    except ValueError as cause:
        raise NoCompiler(f"{name}={given!r} has {str(cause).lower()}; mend its quotes") from cause


def cache_dir() -> Path:
    """`SNN_RULES_CACHE_DIR`, or `snn_rules` in the user's cache folder."""
    given = os.environ.get("SNN_RULES_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snn_rules"


def _temporary_dir() -> Path:
    """The second choice: a folder that nobody else can have put a library into."""
    folder = Path(tempfile.gettempdir()) / f"snn_rules-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by others")
    return folder


@lru_cache(maxsize=1)
def compiler() -> tuple[str, str]:
    """The command and its version. `CXX` wins, such as "ccache g++"; else g++, then clang++."""
    given = os.environ.get("CXX")
    for program, *options in filter(None, [_words("CXX")] if given else [["g++"], ["clang++"]]):
        found = shutil.which(program)
        if found:
            version = subprocess.run([found, *options, "--version"], capture_output=True, text=True, check=False).stdout.partition("\n")[0]
            return shlex.join([found, *options]), version
    raise NoCompiler(f"CXX={given!r} is no program" if given else "neither g++ nor clang++ is installed")


@lru_cache(maxsize=1)
def _machine() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def build(source: str) -> ctypes.CDLL:
    """The shared object of `source`, compiled unless the cache has it. `NoCompiler` where neither works."""
    command, version = compiler()
    source = NUMBERS + source
    key = hashlib.sha256("\n".join([source, command, version, *FLAGS, *added(), _machine()]).encode()).hexdigest()[:32]
    failed: list[Exception] = []
    for folder in (cache_dir, _temporary_dir):
        try:
            path = _compiled(folder(), key, source, command)
            library = ctypes.CDLL(str(path))
        except (OSError, RuntimeError) as cause:  # a folder that cannot be written, a full disk, no home: the next one
            failed.append(cause)
            continue
        if failed:
            say_once(f"kernels are kept in {path.parent}: {failed[0]}; set SNN_RULES_CACHE_DIR to a folder that can be written")
        return library
    raise NoCompiler(f"no folder for compiled kernels can be written ({failed[-1]}); set SNN_RULES_CACHE_DIR")


@lru_cache(maxsize=64)
def say_once(message: str) -> None:
    """A warning, once in this process."""
    warnings.warn(message, stacklevel=3)


def _compiled(folder: Path, key: str, source: str, command: str) -> Path:
    path = folder / f"{key}.so"
    if path.exists() and _whole(path):
        return path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as work:  # two processes may do so at once: the last to rename wins, both are right
        text, made = Path(work, "kernel.cpp"), Path(work, "kernel.so")
        text.write_text(source)
        options = [*FLAGS, *added(), str(text), "-o", str(made)]
        done = subprocess.run([*shlex.split(command), *options], capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            reason = next((line for line in said if "error" in line or "cannot find" in line), said[0])
            raise NoCompiler(f"{' '.join([command, *added()])} failed: {reason.removeprefix(f'{work}/')}")
        if not made.exists():
            raise NoCompiler(f"{command} makes no file; set CXX to a C++ compiler")
        _seal(made)
        os.replace(made, path)
    return path


def _seal(path: Path) -> None:
    """Ends a library by the digest of its bytes, which loaders do not look at, and waits until it is on disk."""
    with path.open("r+b") as file:
        file.write(hashlib.sha256(file.read()).digest())
        file.flush()
        os.fsync(file.fileno())


def _whole(path: Path) -> bool:
    """Whether it is as it was sealed: one that was cut short ends Python where a page of it is missing."""
    made = path.read_bytes()
    return made[-32:] == hashlib.sha256(made[:-32]).digest()
