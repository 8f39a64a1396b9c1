"""What the commands print with: two consoles, tables, a progress bar, warnings as single lines."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

out = Console(markup=False, highlight=False, emoji=False)
err = Console(markup=False, highlight=False, emoji=False, stderr=True)
first_to_say: Callable[[str], bool] = lambda text: True  # noqa: E731  of several processes that train together


def say(text: str, style: str) -> None:
    """A refusal or a warning: one line on stderr."""
    line = f"snn-rules: {' '.join(text.split())}"
    if first_to_say(line):
        err.print(line, style=style, soft_wrap=True)


@contextmanager
def writable() -> Iterator[None]:
    """Characters that the terminal's encoding lacks are written as "?"; a stdout that takes nothing more is one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        yield
    except OSError as cause:
        try:
            print(flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes there when Python ends
            say(f"stdout cannot be written ({cause.strerror}); give it a place with room", "red")
            raise SystemExit(2) from cause
        raise


def table(*columns: str, right: int | None = None) -> Table:
    """A table without frame; columns from index `right` on hold numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        justify: Any = "right" if right is not None and index >= right else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=index == 0)  # a name stays in one piece
    return made


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar that is gone when it is done; meanwhile warnings are single yellow lines above it."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with warnings.catch_warnings(), Progress(*columns, console=out, transient=True, disable=out.quiet or not out.is_terminal) as bar:
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", "yellow")
        yield bar


def plain(value: Any) -> str:
    """A value as one writes it: no quotes, no braces."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={plain(v)}" for key, v in value.items()) or "none"
    return "none" if value is None else str(value)
