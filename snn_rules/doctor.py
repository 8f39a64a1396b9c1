"""What is installed here, what would run each rule, and what each kernel takes of a GPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from .console import table
from .experiments import machine, versions
from .kernels import build, executor, zeros, zeros_conv
from .kernels.launch import remedy
from .recurrent import check_recurrent
from .registry import RuleInfo, get_rule
from .rule import LearningRule, RuleError


def examine(known: Mapping[str, RuleInfo], kernels: bool = False) -> dict[str, Any]:
    """The report on the rules `known`; with `kernels`, theirs are compiled for every architecture."""
    cuda, found = torch.cuda.is_available(), [_rule(info) for info in sorted(known.values(), key=lambda info: info.name)]
    report: dict[str, Any] = versions() | {
        "machine": machine(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "compiler": _compiler(),
        "cache": str(build.cache_dir()),
        "cached": _cached(),
        "skip_zeros": zeros.missing(torch.float32) or zeros.missing(torch.float32, zeros_conv._kernels) or "compiled for the CPU",
        "cuda": torch.cuda.get_device_name() if cuda else f"no device (torch is built for {torch.version.cuda or 'the CPU alone'})",
        "driver": _driver(),
        "cupy": _cupy(),
        "left out": os.environ.get("SNN_RULES_DISABLE", "") or "no rule (SNN_RULES_DISABLE)",
        "rules": found,
    }
    return report | ({"kernels": _kernels([rule["name"] for rule in found if rule["loads"]])} if kernels else {})


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The rules and, where asked for, the kernels: registers a thread and spilled bytes on each architecture."""
    shown = table("rule", "distribution", "version", "loads", "runs here by")
    for rule in report["rules"]:
        by = "-"
        if rule["loads"]:
            by = f"{rule['executor']}: {rule['why']}" + (f"; its own layers {rule['own layers']}" if rule["own layers"] else "")
            by += f"; recurrent layers: {rule['recurrent']}" if rule["recurrent"] != rule["executor"] else ""
        state = Text("yes", style="green") if rule["loads"] else Text(f"no: {rule['error']}", style="red")
        shown.add_row(rule["name"], rule["distribution"], rule["version"], state, by)
    rows = report.get("kernels")
    if rows is None:
        return [shown]
    archs = sorted({row["arch"] for row in rows})
    taken = table("rule", "kernel", *(f"sm_{arch}" for arch in archs), right=2)
    by_kernel: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        cell = f"{row['registers']}" + (f", spills {row['spills']} B" if row["spills"] else "") if row["compiled"] else row["error"]
        by_kernel.setdefault((row["rule"], row["kernel"]), {})[row["arch"]] = cell
    for (rule, kernel), cells in by_kernel.items():
        taken.add_row(rule, kernel, *(cells.get(arch, "-") for arch in archs))
    return [shown, taken]


def _rule(info: RuleInfo) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": info.name, "distribution": info.distribution, "version": info.version}
    try:
        rule, x = get_rule(info.name), torch.zeros(1, 1, 1)
        runner, own = executor(rule, x), rule.own_layers(x)
        said = {"executor": runner.name, "why": runner.why, "recurrent": _recurrent(rule, x), "own layers": ": ".join(own) if own else None}
        return entry | {"loads": True, "error": None} | said
    except Exception as refusal:  # of anybody's code: the other rules are still to be seen
        return entry | {"loads": False, "error": str(refusal) or type(refusal).__name__, "executor": None, "why": None}


def _recurrent(rule: LearningRule, x: torch.Tensor) -> str:
    """What runs a recurrent layer, or why none can be trained."""
    try:
        check_recurrent(rule, "refused")
    except RuleError as refusal:
        return str(refusal)
    return executor(rule, x, recurrent=True).name


def _compiler() -> str:
    try:
        return ": ".join(build.compiler()) + (f", with SNN_RULES_CXXFLAGS={added}" if (added := os.environ.get("SNN_RULES_CXXFLAGS")) else "")
    except build.NoCompiler as cause:
        return f"none: {cause}"


def _cached() -> str:
    """What lies in the cache: nothing is taken out of it, and nothing is missed that somebody removes."""
    sizes = [path.stat().st_size for path in build.cache_dir().glob("*.so")]
    return f"{len(sizes)} files of kernels, {sum(sizes) / 1e6:.1f} MB; any of them may be removed"


def _driver() -> str:
    """The NVIDIA driver, asked without torch: it may be there while torch is built for the CPU."""
    try:
        driver, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        code = driver.cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return "none (libcuda.so.1 is not installed)"
    return f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}" if not code else f"answers {code}"


def _cupy() -> str:
    """What is installed under the name of cupy; it is not imported."""
    owners = importlib.metadata.packages_distributions().get("cupy")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(owners))) if owners else f"not installed; {remedy()}"


def _kernels(names: list[str]) -> list[dict[str, Any]]:
    from .testing import nvrtc, proof

    try:
        archs = nvrtc.architectures()
    except nvrtc.NoNvrtc as cause:
        raise RuleError(f"doctor --kernels: {cause}") from cause
    found: list[dict[str, Any]] = []
    for name in names:
        try:
            found += [asdict(row) for row in proof.resources(get_rule(name), archs)]
        except RuleError as refusal:  # cannot be traced
            found.append({"rule": name, "kernel": "-", "arch": archs[0], "compiled": False, "registers": 0, "spills": 0, "error": str(refusal)})
    return found
