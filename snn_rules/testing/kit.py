"""The conformance kit: what a rule promises to SpikingJelly's users, to its paper and to its kernels, checked.

    from snn_rules.testing import check_rule, parametrize_with_checks

    @parametrize_with_checks(["my_rule"])  # pytest: a test for each check
    def test_kit(rule, check):
        check(rule)

    check_rule("my_rule")  # without pytest; on the command line: snn-rules check my_rule

A check that a rule fails by design is named in `LearningRule.expected_failed_checks`, or in the argument of that name, with
the reason. Such a check must fail: a promise that is kept after all is an error as well.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..console import out
from ..registry import get_rule
from ..rule import LearningRule, RuleError, _warned
from . import behaviour, mathematics
from .case import CHECKS, Case, Check, Reference, Skip

__all__ = ["CHECKS", "CheckError", "Report", "Result", "behaviour", "check_rule", "mathematics", "parametrize_with_checks", "run_checks"]

PASSED, FAILED, SKIPPED, EXPECTED = "passed", "failed", "skipped", "expected to fail"


class CheckError(AssertionError):
    """The checks that a rule fails, a line each."""


@dataclass(frozen=True)
class Result:
    """What one check found."""

    check: Check
    outcome: str
    why: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    """What the checks of a rule found."""

    rule: LearningRule
    results: list[Result] = field(default_factory=list)

    def of(self, outcome: str) -> list[Result]:
        return [result for result in self.results if result.outcome == outcome]

    @property
    def failures(self) -> list[Result]:
        return self.of(FAILED)

    def __str__(self) -> str:
        ran = len(self.results) - len(self.of(SKIPPED))
        counts = f"{self.rule.name}: {ran} checks ran in {sum(r.seconds for r in self.results):.1f} s, {len(self.of(SKIPPED))} skipped"
        return f"{counts}, {len(self.of(EXPECTED))} expected to fail, {len(self.failures)} failed"

    def raise_failures(self) -> None:
        """One error for all failures, if there are any."""
        if self.failures:
            lines = "".join(f"\n  {result.check.name}: {result.why}" for result in self.failures)
            raise CheckError(f"{self}{lines}")


def check_rule(
    rule: str | LearningRule,
    expected_failed_checks: Mapping[str, str] | None = None,
    reference: Reference | None = None,
    only: Iterable[str] = (),
) -> Report:
    """Run the kit on a rule (a name, or one with its options), print what came of it, raise `CheckError` if a check fails.

    `reference(rule, x, g)` maps `x[T, N]` and `g[T, N] = dL/ds`, float64 arrays, to spikes and dL/dx, by slow loops from the
    paper; without it, `spikes_and_gradient` of a module `reference` beside the rule's is taken. `only` names some checks.
    """
    report = Report(get_rule(rule))
    report.results += run_checks(report.rule, expected_failed_checks, reference, only)
    out.print(str(report), soft_wrap=True)
    for result in [*report.of(SKIPPED), *report.of(EXPECTED)]:
        out.print(f"  {result.outcome}: {result.check.name}: {result.why}", soft_wrap=True)
    report.raise_failures()
    return report


def run_checks(
    rule: LearningRule,
    expected_failed_checks: Mapping[str, str] | None = None,
    reference: Reference | None = None,
    only: Iterable[str] = (),
) -> Iterable[Result]:
    """The results of the checks, one after another."""
    expected, case = _expected(rule, expected_failed_checks), Case(rule, reference)
    chosen = list(only)
    _known(chosen, "only")
    for check in CHECKS.values():
        if not chosen or check.name in chosen:
            yield _result(check, case, expected.get(check.name))


def parametrize_with_checks(
    rules: Iterable[str | LearningRule], expected_failed_checks: Mapping[str, str] | None = None, reference: Reference | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """A pytest decorator: the test function gets `rule` and `check`, and calls `check(rule)`; once for each rule and check."""
    import pytest

    cases = []
    for rule in map(get_rule, rules):
        expected = _expected(rule, expected_failed_checks)
        for check in CHECKS.values():
            marks = [pytest.mark.xfail(reason=expected[check.name], strict=True)] if check.name in expected else []
            cases.append(pytest.param(rule, partial(_run_in_pytest, check, reference), id=f"{rule.name}-{check.name}", marks=marks))
    return pytest.mark.parametrize(("rule", "check"), cases)


def _run_in_pytest(check: Check, reference: Reference | None, rule: LearningRule) -> None:
    import pytest

    try:
        _run(check, Case(rule, reference))
    except Skip as why:
        pytest.skip(str(why))


def _result(check: Check, case: Case, expected: str | None) -> Result:
    began = time.perf_counter()

    def done(outcome: str, why: str = "") -> Result:
        return Result(check, outcome, why, time.perf_counter() - began)

    try:
        _run(check, case)
    except Skip as why:
        return done(SKIPPED, str(why))
    except Exception as cause:  # whatever a rule raises fails the check
        if expected:
            return done(EXPECTED, expected)
        said = " ".join(str(cause).split()) or type(cause).__name__
        return done(FAILED, said if isinstance(cause, (AssertionError, RuleError)) else f"{type(cause).__name__}: {said}")
    return done(FAILED, f"it was expected to fail ({expected}), and passes; take it out of expected_failed_checks") if expected else done(PASSED)


def _run(check: Check, case: Case) -> None:
    """One check, with its own random numbers; what the neuron warns of is for training, not for a check."""
    if check.neuron and case.rule.capabilities.signal != "spikes":
        raise Skip("it sends spike times, through layers of its own and no neuron")
    said = set(_warned)
    try:
        with torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            check.body(case)
    finally:
        _warned.intersection_update(said)  # what is said once a process is still to be said


def _expected(rule: LearningRule, more: Mapping[str, str] | None) -> dict[str, str]:
    expected = {**rule.expected_failed_checks, **(more or {})}
    _known(expected, "expected_failed_checks")
    return expected


def _known(names: Iterable[str], where: str) -> None:
    for name in names:
        if name not in CHECKS:
            raise RuleError(f"{where}: {name!r} is no check; there are {', '.join(CHECKS)}")
