"""Recipes: a training written down in a small TOML file, for `snn-rules train --recipe`.

    rule = "tssl"
    dataset = "fashion-mnist"
    network = "400-400-10"
    [train]     # of snn_rules.config.Config
    epochs = 100
    [options]   # of the rule
    tau_m = 5
    [paper]     # what the paper reports: mean, best, epochs, source

Those of the papers' tables lie in `benchmarks/recipes` of a checkout, as RULE/DATASET-NETWORK.toml; each value has its source beside it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .rule import RuleError

FOLDERS = (Path("benchmarks/recipes"), Path(__file__).parents[1] / "benchmarks" / "recipes")
TABLES = {"train": dict, "options": dict, "paper": dict}


@dataclass(frozen=True)
class Recipe:
    """A training, all but its seed."""

    name: str  # RULE/DATASET-NETWORK, or what was given
    rule: str
    dataset: str
    network: str
    train: Mapping[str, Any] = field(default_factory=dict)  # settings of `Config`
    options: Mapping[str, Any] = field(default_factory=dict)  # parameters of the rule
    paper: Mapping[str, Any] = field(default_factory=dict)  # what to compare with

    @property
    def folder(self) -> str:
        """A name for the folder of its trainings."""
        return self.name.replace("/", "-")


def load(name: str) -> Recipe:
    """The recipe in a file, or the one of that name in `benchmarks/recipes`."""
    from .config import Config

    path = _find(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise RuleError(f"recipe {str(path)!r} cannot be read ({' '.join(str(cause).split())}); it should be a TOML file") from cause
    known = [f.name for f in fields(Recipe) if f.name != "name"]
    for key, value in content.items():
        kind = TABLES.get(key, str)
        if key not in known or not isinstance(value, kind):
            what = "a table" if kind is dict else "a text"
            reason = f"should be {what}" if key in known else f"is unknown; there are {', '.join(known)}"
            raise RuleError(f"recipe {str(path)!r}: {key!r} {reason}")
    if missing := {"rule", "dataset", "network"} - set(content):
        raise RuleError(f"recipe {str(path)!r}: {', '.join(sorted(missing))} should be given")
    Config.given(content.get("train", {}), f"recipe {str(path)!r}: [train]")
    return Recipe(_name(path), **content)


def names() -> list[str]:
    """Of the recipes at hand."""
    return sorted({_name(path) for folder in FOLDERS for path in folder.glob("*/*.toml")})


def _find(name: str) -> Path:
    places = [Path(name), *(folder / f"{name}.toml" for folder in FOLDERS)]
    for path in places:
        if path.is_file():
            return path
    there = f"there are {', '.join(names())}" if names() else "a checkout of the project holds some in benchmarks/recipes"
    raise RuleError(f"recipe {name!r} is no file and no name of a recipe; {there}")


def _name(path: Path) -> str:
    for folder in FOLDERS:
        if path.resolve().is_relative_to(folder.resolve()):
            return path.resolve().relative_to(folder.resolve()).with_suffix("").as_posix()
    return path.stem
