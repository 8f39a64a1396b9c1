"""Finds rules by the names of their entry points and imports only the one that is asked for.

A plugin that is broken, misspelt, of another API, or whose name two distributions claim, is out; the others work.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

import pluggy

from . import guard
from .hookspecs import API, PROJECT, LearningRuleSpec, hookimpl
from .rule import LearningRule, RuleError, hint

SLOW = 5.0  # seconds of an import beyond torch's and SpikingJelly's after which it is said


@dataclass(frozen=True)
class RuleInfo:
    """What is known of a rule without importing it."""

    name: str
    distribution: str
    version: str
    loaded: bool
    error: str | None = None


class _Plugin:
    """A class registered by hand: a plugin of one hook."""

    def __init__(self, rule: type[LearningRule]):
        self.rule = rule

    @hookimpl
    def learning_rule(self) -> type[LearningRule]:
        return self.rule


class Registry:
    """The rules of one process."""

    def __init__(self) -> None:
        self.classes: dict[str, type[LearningRule]] = {}
        self.errors: dict[str, BaseException] = {}
        self._seen: dict[str, tuple[str, str]] = {}  # whose a rule is, and the version, as far as that was ever installed
        self._delivered: list[type[LearningRule]] = []
        self._lock = threading.RLock()
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(LearningRuleSpec)
        # a historic call reaches the plugins that are registered later, too
        self._manager.hook.learning_rule.call_historic(result_callback=self._delivered.append)

    def rules(self) -> dict[str, RuleInfo]:
        """All rules by name; no plugin is imported."""
        from . import __version__

        found = {"surrogate": RuleInfo("surrogate", "snn-rules", __version__, "surrogate" in self.classes)}
        for name, claims in sorted(_installed().items()):
            owner, version = self._seen[name] = claims[0][:2]
            error = self.errors.get(name)
            reason = _clash(name, claims) or (_line(error) if error else None)
            found[name] = RuleInfo(name, owner, version, name in self.classes, reason)
        for name, cls in list(self.classes.items()):  # another thread may register one
            if name not in found and name in self._seen:
                owner, version = self._seen[name]
                gone = f"{owner} {version} was uninstalled; what is loaded works until this process ends"
                found[name] = RuleInfo(name, owner, version, True, gone)
            elif name not in found:
                found[name] = RuleInfo(name, f"registered by {cls.__module__}", "", True)
        return {name: info for name, info in found.items() if name not in _disabled()}

    def rule_class(self, name: str) -> type[LearningRule]:
        """The class of the rule `name`; imports its plugin if that has not happened yet."""
        if name in _disabled():
            raise RuleError(f"rule {name!r} is left out by SNN_RULES_DISABLE={os.environ['SNN_RULES_DISABLE']!r}")
        if name not in self.classes:
            with self._lock:  # a second thread waits, and finds it
                if name not in self.classes:
                    self._load(name)
        return self.classes[name]

    def register(self, rule: type[LearningRule]) -> type[LearningRule]:
        """Add a rule by hand (a notebook, a test); registering a name again replaces the class."""
        name = getattr(rule, "name", None)
        if name == "surrogate" or name in _installed():
            raise RuleError(f"rule {name!r} is already installed; choose another name for {rule.__qualname__}")
        try:
            name = _checked(rule).name  # before the class that had the name is given up
        except (TypeError, RuleError) as cause:
            raise RuleError(f"{rule!r} cannot be registered: {cause}") from cause
        with self._lock:
            if name in self.classes:
                self._manager.unregister(name=name)
            self._add(name, lambda: self._manager.register(_Plugin(rule), name=name))
        return rule

    def _load(self, name: str) -> None:
        claims = _installed().get(name, [])
        if name != "surrogate" and not claims:
            if name in self._seen:
                owner = self._seen[name][0]
                raise RuleError(f"rule {name!r} of {owner} was uninstalled since this process began; pip install {owner} brings it back")
            known = sorted(self.rules())
            raise RuleError(f"unknown rule {name!r}{hint(name.lower(), known)}; installed are {', '.join(known)}")
        clash = _clash(name, claims)
        if clash:
            raise RuleError(clash)
        imported = set(sys.modules)
        try:
            if name == "surrogate":
                from . import surrogate

                self._add(name, lambda: self._manager.register(surrogate, name=name))
            else:
                self._seen[name] = claims[0][:2]
                self._add(name, lambda: self._import(name))
        except (Exception, SystemExit) as cause:  # whatever a stranger's module raises: that rule alone is out
            _forget(claims, set(sys.modules) - imported)
            owner = " ".join(claims[0][:2]) if claims else "snn-rules"
            self.errors[name] = cause
            raise RuleError(f"rule {name!r} of {owner} cannot be loaded: {_line(cause)}; mend or uninstall that distribution") from cause
        self.errors.pop(name, None)

    def _import(self, name: str) -> None:
        """Import a plugin; what it does to others while that lasts is undone and said, and keeps it out if it replaced anything."""
        with guard.watch() as seen:
            self._manager.load_setuptools_entrypoints(PROJECT, name=name)
        if seen.changed:
            raise ImportError(f"its import changes {', '.join(seen.changed)}, on which all other rules stand; that was undone")
        whose = f"rule {name!r} of {' '.join(self._seen[name])}"
        if seen.printed.strip():
            first = seen.printed.strip().splitlines()[0]
            warnings.warn(f"{whose} prints {first!r} while it is imported; that was kept off stdout: tell its authors", stacklevel=6)
        if seen.seconds > SLOW:
            warnings.warn(
                f"{whose} takes {seen.seconds:.1f} s to import: tell its authors, or leave it out with SNN_RULES_DISABLE={name}", stacklevel=6
            )

    def _add(self, name: str, registration: Callable[[], Any]) -> None:
        """Register a plugin and keep the class that its hook returns; a failure leaves nothing behind."""
        try:
            registration()
            self._manager.check_pending()
            if not self._delivered:
                raise TypeError("the plugin has no hook learning_rule, or it returns None; mark one with @snn_rules.hookimpl that returns a class")
            cls = _checked(self._delivered[-1])
            if cls.name != name:
                raise TypeError(f"its class {cls.__qualname__} says name = {cls.name!r}, its entry point {name!r}")
            self.classes[name] = cls
        except BaseException:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise
        finally:  # a plugin that loads another rule on its way finds this empty again
            self._delivered.clear()


def _checked(cls: type[LearningRule]) -> type[LearningRule]:
    if not (isinstance(cls, type) and issubclass(cls, LearningRule)):
        raise TypeError(f"a rule should be a subclass of LearningRule, not {cls!r}")
    if cls.api != API:
        side = "upgrade that distribution" if cls.api < API else "upgrade snn-rules"
        raise TypeError(f"{cls.__qualname__} is written for API {cls.api}, this is API {API}: {side}")
    if not isinstance(getattr(cls, "name", None), str):
        raise TypeError(f"{cls.__qualname__} has no name; give it one: name = 'my_rule'")
    if not re.fullmatch(r"\w[\w.-]*", cls.name):
        raise TypeError(f"{cls.__qualname__} has the name {cls.name!r}; take letters, digits, _ - and . for commands write NAME:OPTION=VALUE,NAME")
    if any(isinstance(value, dataclasses.Field) for value in vars(cls).values()):
        raise TypeError(f"{cls.__qualname__} has parameters but is no dataclass; decorate it with @dataclass(frozen=True)")
    rule = cls()  # which looks at its parts
    if rule.capabilities.signal == "spikes":
        from .neuron import RuleNode

        RuleNode(rule)
    return cls


def _forget(claims: list[Claim], modules: set[str]) -> None:
    """Drop the modules of a plugin that failed to load, so that it loads once it is mended."""
    packages = {claim.point.value.partition(":")[0].partition(".")[0].strip() for claim in claims}
    for module in modules:
        if module.partition(".")[0] in packages:
            sys.modules.pop(module, None)
    importlib.invalidate_caches()


class Claim(NamedTuple):
    """A distribution that declares a rule of some name."""

    owner: str
    version: str
    point: EntryPoint


def _installed() -> dict[str, list[Claim]]:
    """Who claims each name, once a distribution (an editable install can be seen twice)."""
    found: dict[str, dict[str, Claim]] = {}
    for point in entry_points(group=PROJECT):
        claim = Claim(*_owner(point), point)
        found.setdefault(point.name, {}).setdefault(claim.owner, claim)
    return {name: list(claims.values()) for name, claims in found.items()}


def _owner(point: EntryPoint) -> tuple[str, str]:
    """The name, normalised, and the version of the distribution of an entry point."""
    about: Any = point.dist.metadata if point.dist else {}  # parsed anew each time
    if "Name" not in about:  # half removed
        return "a distribution without a name", ""
    return re.sub(r"[-_.]+", "-", about["Name"]).lower(), about["Version"]


def _line(cause: BaseException) -> str:
    """A stranger's error, however long, on one line."""
    said = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {said}" if said else type(cause).__name__


def _clash(name: str, claims: list[Claim]) -> str | None:
    owners = sorted(claim.owner for claim in claims)
    if name == "surrogate" and owners:
        return f"rule 'surrogate' belongs to snn-rules, but {' and '.join(owners)} claims it too; uninstall it"
    if len(owners) < 2:
        return None
    return f"rule {name!r} is claimed by {' and '.join(owners)}; uninstall one of them"


def _disabled() -> set[str]:
    return {name.strip() for name in os.environ.get("SNN_RULES_DISABLE", "").split(",")} - {""}


_registry = Registry()
rules = _registry.rules
register = _registry.register


def get_rule(rule: str | LearningRule, **options: Any) -> LearningRule:
    """The rule of that name, configured: an immutable value.

    `rule` is a name from `rules()`, or a rule already configured, of which the options then change a copy.
    Raises `RuleError` for an unknown name, a plugin that cannot be loaded, and an unknown or impossible option.
    """
    if isinstance(rule, LearningRule):
        return rule.replace(**options)
    if not isinstance(rule, str):
        raise RuleError(f"rule={rule!r} should be a name, one of {', '.join(sorted(rules()))}, or a LearningRule")
    return _registry.rule_class(rule).of(options)
