"""`plain`: SpikingJelly's own neurons in the place of a network's, for tools that know no others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spikingjelly.activation_based import layer, neuron
from torch import nn

from .conversion import _MODULE_ATTRIBUTES
from .neuron import RuleNode
from .recurrent import RecurrentNode, RuleRecurrentContainer
from .rule import RuleError, Values


@contextmanager
def plain(net: nn.Module) -> Iterator[nn.Module]:
    """`with plain(net):` gives SpikingJelly's classes back, with the constants that the neurons have under their rules.

    The spikes are those of the rules, up to rounding; the neurons start at rest, and learn by SpikingJelly's surrogate
    gradient. Module objects, parameters and hooks stay. Afterwards, also after an exception, all is as it was before. A
    neuron that SpikingJelly has no class for is refused by its path (`RuleError`), before anything has changed.

        with snn_rules.plain(net):
            graph = nir_exchange.export_to_nir(net, x)  # NIR maps exact types
    """
    found = [(module, *_stock(path, module)) for path, module in net.named_modules() if _is_ours(module)]
    before = [(module, type(module), dict(vars(module))) for module, _, _ in found]
    try:
        for module, cls, state in found:
            vars(module).clear()
            vars(module).update(state)
            module.__class__ = cls
        yield net
    finally:
        for module, cls, state in before:
            now = {name: vars(module)[name] for name in ("training", "_step_mode")}
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(state, **now)


def leaky(rule: Any, tau_s: float = 1.0) -> tuple[str, Values]:
    """For `LearningRule.stock`: a leaky neuron, behind a synapse of time constant `tau_s` in which x / tau_s enters.

    Without a synapse (`tau_s=1`) it is `LIFNode` or `IFNode`. `CUBALIFNode` takes x as it is: there the threshold has the unit of its current.
    """
    if tau_s == 1.0 and math.isinf(rule.tau_m):
        return "IFNode", {"v_threshold": rule.v_threshold}
    if tau_s == 1.0 and rule.tau_m > 1.0:
        return "LIFNode", {"tau": rule.tau_m, "decay_input": rule.decay_input, "v_threshold": rule.v_threshold}
    keywords = {"c_decay": 1 - 1 / tau_s, "v_decay": 1 - 1 / rule.tau_m, "v_threshold": rule.v_threshold * tau_s / rule.gain}
    return "CUBALIFNode", keywords


def _is_ours(module: nn.Module) -> bool:
    return isinstance(module, (RuleNode, RuleRecurrentContainer)) or hasattr(module, "unfuse")


def _stock(path: str, module: nn.Module) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class for `module`, and the attributes that it will have."""
    if isinstance(module, RuleRecurrentContainer):
        return layer.LinearRecurrentContainer, {**vars(module), "_memories": dict(module._memories)}
    if hasattr(module, "unfuse"):
        raise RuleError(f"plain: {path!r} ({type(module).__name__}) is a layer of spike times, and SpikingJelly has none")
    assert isinstance(module, RuleNode)
    if isinstance(module, RecurrentNode):
        raise RuleError(f"plain: {path!r} is a RecurrentNode, which SpikingJelly has no class for; convert a LinearRecurrentContainer instead")
    try:
        name, keywords = module.rule.stock()
    except RuleError as reason:
        raise RuleError(f"plain: {path!r} ({module.rule.name}) {reason}") from reason
    rest = 0.0 if name == "CUBALIFNode" else module.v_reset or 0.0  # a synaptic current has another unit, and is measured from rest
    keywords["v_threshold"] += rest
    keywords["v_reset"] = None if getattr(module.rule, "reset", "zero") == "subtract" else rest
    weight = module._parameters.get("w")
    if name == "LIFNode" and weight is not None and math.isclose(1.0 / float(weight.detach().sigmoid()), keywords["tau"], rel_tol=1e-6):
        name, keywords["init_tau"] = "ParametricLIFNode", keywords.pop("tau")  # what it was before it was converted
    made = getattr(neuron, name)(**keywords)
    made.step_mode, made.store_v_seq = module.step_mode, module.store_v_seq
    own = vars(RuleNode("surrogate"))
    kept = {k: v for k, v in vars(module).items() if k in _MODULE_ATTRIBUTES or k not in own}
    return type(made), {**vars(made), **kept, "_modules": {**kept["_modules"], **made._modules}}
