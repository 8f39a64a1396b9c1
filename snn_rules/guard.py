"""What a plugin does to the process while it is imported: what it prints is kept off stdout, what it replaces is put back."""

from __future__ import annotations

import builtins
import importlib
import inspect
import io
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

# whose functions, classes and methods every rule stands on
SHARED = [
    "torch", "torch.nn", "torch.nn.functional", "torch.nn.init", "torch.optim",
    "spikingjelly.activation_based.base", "spikingjelly.activation_based.functional",
    "spikingjelly.activation_based.layer", "spikingjelly.activation_based.neuron", "snn_rules.conversion",
]  # fmt: skip


@dataclass
class Seen:
    """What was seen of an import."""

    seconds: float = 0.0
    printed: str = ""
    changed: list[str] = field(default_factory=list)  # undone


@contextmanager
def watch() -> Iterator[Seen]:
    """Watch the import inside; afterwards `Seen` is filled, and everything it changed of others is as before."""
    for name in SHARED:  # their import is not the plugin's time
        importlib.import_module(name)
    spaces, settings, loaded = _spaces(), _settings(), set(sys.modules)
    before = [(where, space, dict(vars(space))) for where, space in spaces]
    values = {name: read() for name, (read, _) in settings.items()}
    seen, said, began = Seen(), io.StringIO(), time.perf_counter()
    try:
        with redirect_stdout(said):
            yield seen
    finally:
        seen.seconds, seen.printed = time.perf_counter() - began, said.getvalue()
        for where, space, was in before:
            for name, value in list(vars(space).items()):
                if value is was.get(name) or not _is_foreign(value, loaded):
                    continue
                if name in was:
                    setattr(space, name, was[name])
                elif inspect.isclass(space):  # it hid what the class inherits
                    delattr(space, name)
                else:
                    continue
                seen.changed.append(f"{where}.{name}")
        for name, (read, write) in settings.items():
            if read() != values[name]:
                write(values[name])
                seen.changed.append(name)


def _spaces() -> list[tuple[str, Any]]:
    """Modules and classes by their names: those in `SHARED`, all of this package, and the builtins."""
    own = [name for name in sys.modules if name == __package__ or name.startswith(f"{__package__}.")]
    found: dict[int, tuple[str, Any]] = {id(builtins): ("builtins", builtins)}
    for name in [*SHARED, *own]:
        module = sys.modules[name]
        found[id(module)] = name, module
        for part in list(vars(module).values()):
            if inspect.isclass(part) and part.__module__.partition(".")[0] in ("torch", "spikingjelly", __package__):
                found.setdefault(id(part), (f"{part.__module__}.{part.__qualname__}", part))
    return list(found.values())


def _is_foreign(value: Any, loaded: set[str]) -> bool:
    """It was written in a module that was not there before; what torch loads late is its own."""
    origin = _origin(value)
    return bool(origin) and origin not in loaded and origin.partition(".")[0] not in ("torch", "spikingjelly")


def _origin(value: Any) -> str:
    """The module in which a function or class was written, also under functools.wraps."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        return str(value.__globals__.get("__name__", ""))
    return str(getattr(value if inspect.isclass(value) else type(value), "__module__", ""))


def _settings() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Settings of the process that a rule has no business with: how each is read, and set."""
    import torch

    return {
        "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "torch's grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
        "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    }
