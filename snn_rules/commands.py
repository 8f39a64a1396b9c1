"""How every command of `snn-rules` ends: as it should, or in one line."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer
from typer.core import TyperGroup

from .console import say, writable
from .rule import RuleError

_MEMORY = re.compile(r"(tried|unable) to allocate [\d.]+ \w+", re.IGNORECASE)  # of torch on a CPU, of CUDA, of numpy


class Commands(TyperGroup):
    """Ends every refusal as one red line and exit code 2; `--debug`, wherever it stands, shows the traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with writable():
            return super().main(*args, **kwargs)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj = shlex.join(["snn-rules", *args])
        return super().parse_args(ctx, sorted(args, key=lambda word: word != "--debug"))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            say(str(stop) or "stopped before the end; no results are written", "yellow")
            raise typer.Exit(130) from stop
        except (RuleError, MemoryError, RuntimeError) as refusal:
            memory = _MEMORY.search(str(refusal))
            if ctx.params.get("debug") or not (memory or isinstance(refusal, RuleError)):
                raise
            say(f"out of memory ({memory[0]}); lower --batch-size or --T, or take a smaller network" if memory else str(refusal), "red")
            raise typer.Exit(2) from refusal
