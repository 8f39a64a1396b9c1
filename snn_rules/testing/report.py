"""What `snn-rules check` prints."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.text import Text

from ..console import out, progress, table
from ..rule import LearningRule
from .kit import CHECKS, EXPECTED, FAILED, PASSED, SKIPPED, Report, run_checks

STYLES = {PASSED: "green", FAILED: "red", SKIPPED: "yellow", EXPECTED: "yellow"}


def show(rule: LearningRule, only: Sequence[str], reasons: bool) -> None:
    """Run the kit and print a table; exit code 1 if a check fails."""
    if reasons:
        shown = table("check", "why it matters")
        for check in CHECKS.values():
            shown.add_row(check.name, check.reason)
        out.print(shown)
        return
    report, shown = Report(rule), table("check", "result", "s", "why")
    with progress() as bar:
        task = bar.add_task(rule.name, total=len(only) or len(CHECKS))
        for result in run_checks(rule, only=only):
            report.results.append(result)
            shown.add_row(result.check.name, Text(result.outcome, style=STYLES[result.outcome]), f"{result.seconds:.1f}", result.why)
            bar.advance(task)
    out.print(shown)
    out.print(str(report), style="bold red" if report.failures else "bold green", soft_wrap=True)
    if report.failures:
        raise typer.Exit(1)
