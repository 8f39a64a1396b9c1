"""Learning rules for spiking neural networks, as plugins of SpikingJelly.

The public names resolve on first use (PEP 562), so that `import snn_rules` does not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "API": "hookspecs",
    "Capabilities": "rule",
    "InhibitedNode": "recurrent",
    "LearningRule": "rule",
    "Lens": "lens",
    "RecurrentNode": "recurrent",
    "Reservoir": "reservoir",
    "RuleError": "rule",
    "RuleInfo": "registry",
    "RuleNode": "neuron",
    "Site": "site",
    "Trained": "trained",
    "Training": "rule",
    "build": "conversion",
    "citation": "conversion",
    "compare_gradients": "lens",
    "convert": "conversion",
    "get_rule": "registry",
    "hookimpl": "hookspecs",
    "load": "trained",
    "parameter": "rule",
    "plain": "stock",
    "register": "registry",
    "rules": "registry",
    "skip_zeros": "zeros",
    "sweep": "rule",
    "tune_cpu_allocator": "kernels.buffers",
}

__all__ = [
    "API",
    "Capabilities",
    "InhibitedNode",
    "LearningRule",
    "Lens",
    "RecurrentNode",
    "Reservoir",
    "RuleError",
    "RuleInfo",
    "RuleNode",
    "Site",
    "Trained",
    "Training",
    "build",
    "citation",
    "compare_gradients",
    "convert",
    "get_rule",
    "hookimpl",
    "load",
    "parameter",
    "plain",
    "register",
    "rules",
    "skip_zeros",
    "sweep",
    "tune_cpu_allocator",
]

if TYPE_CHECKING:
    from .conversion import build, citation, convert
    from .hookspecs import API, hookimpl
    from .kernels.buffers import tune_cpu_allocator
    from .lens import Lens, compare_gradients
    from .neuron import RuleNode
    from .recurrent import InhibitedNode, RecurrentNode
    from .registry import RuleInfo, get_rule, register, rules
    from .reservoir import Reservoir
    from .rule import Capabilities, LearningRule, RuleError, Training, parameter, sweep
    from .site import Site
    from .stock import plain
    from .trained import Trained, load
    from .zeros import skip_zeros


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
