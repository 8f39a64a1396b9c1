"""Adds the three bundled rules to the dependencies of the core.

Built from a checkout, where the folder plugins/ is at hand, they are taken from there. A release is built with
SNN_RULES_RELEASE=1 and names them, so that pip finds them on the index; so do wheels made from its source distribution,
which keeps what was written when it was made.
"""

import os
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

DEPENDENCIES = ["filelock", "matplotlib", "numpy", "pluggy>=1.5", "rich", "scikit-learn", "spikingjelly>=2.0", "torch", "torchvision", "typer>=0.12"]
RULES = ["stdbp", "strsbp", "tssl"]


class Dependencies(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        plugins = Path(self.root, "plugins")
        beside = plugins.is_dir() and not os.environ.get("SNN_RULES_RELEASE")
        rules = [f"snn-rules-{rule}" + (f" @ {(plugins / rule).as_uri()}" if beside else "") for rule in RULES]
        metadata["dependencies"] = DEPENDENCIES + rules
