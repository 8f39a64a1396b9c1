"""The whole contract between the core and a plugin: one hook, which hands over one class.

A distribution declares `[project.entry-points.snn_rules]` with `NAME = "its.module"`; that module holds

    @snn_rules.hookimpl
    def learning_rule() -> type[LearningRule]:
        return MyRule

What the class must be is written in `snn_rules.rule.LearningRule`.
"""

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .rule import LearningRule

PROJECT = "snn_rules"
API = 1  # raised when a rule written for the number before would no longer run

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class LearningRuleSpec:
    """What a plugin may implement."""

    @hookspec(historic=True)
    def learning_rule(self) -> "type[LearningRule]":
        """Return the class of the rule; its `name` is the name of the entry point."""
        raise NotImplementedError
