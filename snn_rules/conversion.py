"""`convert` swaps the rule of a network that exists; `build` makes one of SpikingJelly's models under a rule.

A neuron keeps its object and changes what it is (its class and its own attributes): parameters, hooks, monitors,
optimisers and SpikingJelly's cached list of modules to reset all stay right.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

from spikingjelly.activation_based import base, functional, layer, model, neuron
from spikingjelly.activation_based.model import masnn, maxformer, ms_resnet, qkformer, snas_net, spike_dhs, spike_driven_transformer, spikformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .keywords import misplaced
from .neuron import RuleNode
from .recurrent import RecurrentNode, RuleRecurrentContainer, check_recurrent
from .registry import get_rule
from .rule import LearningRule, RuleError, hint
from .site import Site, site_of

_NEURONS = "spikingjelly.activation_based.neuron"
_OWN_NEURONS = (masnn, maxformer, ms_resnet, qkformer, spike_driven_transformer, spikformer)  # their spiking_neuron=None is the paper's
_AVERAGED = (  # SpikingJelly's models that give the mean over time
    masnn.MASNN, maxformer.MaxFormer, ms_resnet.MSResNet, ms_resnet.MaxResNet, qkformer.QKFormer, spike_dhs.SpikeDHS,
    spike_driven_transformer.SpikeDrivenTransformer, spikformer.Spikformer,
)  # fmt: skip
_MODULE_ATTRIBUTES = set(vars(nn.Module()))

Where = str | Iterable[str] | Callable[[str, nn.Module], bool]


STEPWISE = (  # what runs its neurons one step at a time, and what to use instead
    (layer.ElementWiseRecurrentContainer, "an ElementWiseRecurrentContainer", "LinearRecurrentContainer or snn_rules.RecurrentNode"),
    (layer.MultiStepContainer, "a MultiStepContainer", "SeqToANNContainer for its layers, and the neuron after it"),
    (snas_net.SNASNet, "an SNASNet", "a model in step mode 'm'"),
)


def build(
    factory: str | Callable[..., nn.Module],
    *args: Any,
    rule: str | LearningRule,
    rule_options: Mapping[str, Any] | None = None,
    where: Where | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A SpikingJelly model whose neurons learn by `rule`, in step mode 'm' (unless `step_mode` is passed).

    `factory` is one of SpikingJelly's model factories, or its name ("spiking_resnet18"); `args` and `kwargs` are its
    own, `rule_options` and `where` those of `convert`. A factory that has no neuron of its own and is given no
    `spiking_neuron` gets `LIFNode` with `decay_input=False`. A model that goes through time itself (SNASNet) stays in
    step mode 's'.
    """
    make = _factory(factory) if isinstance(factory, str) else factory
    if "spiking_neuron" not in kwargs and _needs_neuron(make):
        kwargs = {"decay_input": False, **kwargs, "spiking_neuron": neuron.LIFNode}
    with misplaced(rule, kwargs):
        made = make(*args, **kwargs)
    net = convert(made, rule, where=where, **(rule_options or {}))
    if not isinstance(net, snas_net.SNASNet):
        functional.set_step_mode(net, kwargs.get("step_mode", "m"))
    return net


def convert(net: nn.Module, rule: str | LearningRule, *, where: Where | None = None, **options: Any) -> nn.Module:
    """Swap the rule of every spiking neuron of `net`, in place; returns `net`.

    The constants that each neuron has in the network are kept (`tau` becomes `tau_m`, thresholds and resets stay);
    `options` win over them. Parameters, their identity and the keys of `state_dict` are untouched. What the rule
    cannot serve is refused by its path, before anything has changed.

    `where` selects the neurons, and all others stay as they are: several rules share a network by a call for each. It
    is a path, which stands for all that is below it ("layer1"), a pattern ("*.sn2"; * crosses dots), a list of these,
    or a function `(path, neuron) -> bool`. Input code and loss are yours to choose then: `encode` of the first layer's
    rule and `loss` of the last one's, since that is whom the loss must teach.
    """
    if not isinstance(net, nn.Module):
        given = repr(net) if isinstance(net, str) else f"a {type(net).__name__}"
        raise RuleError(f"convert: {given} is no network; pass a module, or let snn_rules.build make one of SpikingJelly's models")
    wanted = get_rule(rule, **options)
    given = wanted.given | {f.name for f in fields(wanted) if getattr(wanted, f.name) != f.default}
    every = {path: module for path, module in net.named_modules() if isinstance(module, RuleNode) or _is_neuron(module)}
    if not every:
        raise RuleError(f"convert: {type(net).__name__} holds no spiking neuron")
    sites = every if where is None else _selected(every, where)
    unfused = {path: module for path, module in net.named_modules() if hasattr(module, "unfuse")}
    if bound := [path for path, module in unfused.items() if parametrize.is_parametrized(module)]:
        raise RuleError(f"convert: {bound[0]!r} was parametrized as what mode='event' has made of it; call remove_parametrizations of torch first")
    if len(sites) < len(every) and (unfused or wanted.capabilities.signal != "spikes"):
        left = next(path for path in every if path not in sites)
        raise RuleError(
            f"convert: where={_shown(where)} leaves out {left!r}, but spikes and spike times cannot travel in one network; leave out where="
        )
    configured = {path: _configured(path, module, wanted, given) for path, module in sites.items()}
    if wanted.fuse(net, {path: rule for path, (_, rule, _) in configured.items()}):
        return net
    containers = _containers(net, wanted, sites)
    if len(sites) == len(every) and not wanted.capabilities.averaged:
        _refuse_averages(net, wanted)
    for path, module in sites.items():
        if isinstance(module, RecurrentNode):
            check_recurrent(configured[path][1], f"convert: {path!r}")
    for module in unfused.values():
        module.unfuse()
    for path, module in sites.items():
        become_node(module, path, *configured[path])
    learned = {path: module.w for path, module in sites.items() if "w" in module._parameters and module.w.requires_grad}  # of ParametricLIFNodes
    for weight in learned.values():
        weight.requires_grad_(False)
    for container in containers:
        container.__class__ = RuleRecurrentContainer
    if learned:  # said last: it may be an error
        warnings.warn(f"convert: the tau of {_some(learned)} stays as it is from now on, for rules learn weights", stacklevel=2)
    return net


def citation(net: nn.Module) -> str:
    """The papers behind the rules of `net`, one a line for each rule."""
    papers = {module.rule.name: module.rule.cite for module in net.modules() if isinstance(module, RuleNode)}
    return "\n".join(f"{name}: {cite}" for name, cite in sorted(papers.items()))


def synapses(net: nn.Module, rule: LearningRule) -> Iterator[tuple[Any, Any]]:
    """The layers whose neurons learn by `rule`, each with the rule as its neurons have it: what `initialize` sets, and for which threshold.

    A layer belongs to the neuron after it; the last one, if it has none, to the neuron before.
    """
    layers = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
    modules = [(path, module) for path, module in net.named_modules() if isinstance(module, (*layers, RuleNode))]
    for place, (path, module) in enumerate(modules):
        if not isinstance(module, RuleNode):
            if "weight" not in module._parameters:
                raise RuleError(
                    f"initialize: the weight of {path!r} is made of others (weight_norm, prune); initialize first, and add that afterwards"
                )
            nodes = [node.rule for _, node in [*modules[place:], *reversed(modules[:place])] if isinstance(node, RuleNode)]
            near = nodes[0] if nodes else rule
            if near.name == rule.name:
                yield module, near


def _is_neuron(module: nn.Module) -> bool:
    return isinstance(module, (neuron.BaseNode, neuron.SimpleBaseNode)) or (
        isinstance(module, base.StepModule) and type(module).__module__.startswith(_NEURONS)
    )


def _configured(path: str, module: nn.Module, wanted: LearningRule, given: frozenset[str]) -> tuple[Site | None, LearningRule, float | None]:
    site = site_of(path, module)
    if site is None:
        return None, wanted, None if getattr(wanted, "reset", "zero") == "subtract" else 0.0
    reset = "subtract" if site.v_reset is None else "zero"
    if reset not in wanted.capabilities.resets and "reset" not in given:
        ways = ("None (reset by subtraction)", "0.0") if site.v_reset is None else (f"{site.v_reset} (reset to a value)", "None")
        raise RuleError(f"convert: {path!r} has v_reset={ways[0]}, which rule {wanted.name!r} does not know; build it with v_reset={ways[1]}")
    try:
        adopted = wanted.adopt(site, given)
    except RuleError as refusal:
        raise RuleError(f"convert: {path!r}: {refusal}") from refusal
    return site, adopted, None if getattr(adopted, "reset", reset) == "subtract" else site.v_reset or 0.0


def become_node(module: nn.Module, path: str, site: Site | None, rule: LearningRule, v_reset: float | None) -> None:
    """Turn `module` into a `RuleNode`: nn.Module's own attributes (parameters, hooks) and the user's stay, the rest is new."""
    step_mode, store_v_seq = module.step_mode, module.store_v_seq
    stock = RuleNode("surrogate") if isinstance(module, RuleNode) else type(module)()
    kept = {k: v for k, v in vars(module).items() if k in _MODULE_ATTRIBUTES or k not in vars(stock)}
    rest = module.rule.state["v"] if isinstance(module, RuleNode) else getattr(module, "v_reset", None) or 0.0
    raised: Any = vars(module)["_memories_rv"]["v"] - rest  # by `set_reset_value`
    kept["_modules"].pop("surrogate_function", None)
    if not isinstance(module, RuleNode):
        module.__class__ = RuleNode
    vars(module).clear()
    module._set_up(rule, v_reset, str(step_mode), bool(store_v_seq))  # type: ignore[operator]
    vars(module).update(kept, path=path, site=site)
    if isinstance(raised, Tensor) or raised:
        module.v = rule.state["v"] + raised
        module.set_reset_value("v", module.v)  # type: ignore[operator]


def _selected(every: Mapping[str, nn.Module], where: Where) -> dict[str, nn.Module]:
    """The neurons that `where` asks for; each of its strings must find one."""
    if callable(where):
        chosen = {path: module for path, module in every.items() if where(path, module)}
        if not chosen:
            raise RuleError(f"convert: where={_shown(where)} selects none of the {len(every)} neurons: {_some(every)}")
        return chosen
    patterns = [where] if isinstance(where, str) else list(where) if isinstance(where, Iterable) else [where]
    if wrong := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise RuleError(f"convert: where={where!r} holds {wrong[0]!r}; pass paths or patterns of neurons, or a function (path, neuron) -> bool")
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        hits = {path: module for path, module in every.items() if path == pattern or path.startswith(f"{pattern}.") or fnmatchcase(path, pattern)}
        if not hits:
            raise RuleError(f"convert: where={pattern!r} selects none of the {len(every)} neurons{hint(pattern, every)}: {_some(every)}")
        found |= hits
    if not found:
        raise RuleError("convert: where=[] selects no neuron; leave it out to convert all")
    return {path: module for path, module in every.items() if path in found}


def _some(every: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(every)[:4])) + (", ..." if len(every) > 4 else "")


def _shown(where: Where | None) -> str:
    return getattr(where, "__name__", repr(where))


def _containers(net: nn.Module, rule: LearningRule, sites: Mapping[str, nn.Module]) -> list[nn.Module]:
    found = []
    for path, module in net.named_modules():
        if isinstance(module, layer.GradwithTrace) and any(isinstance(site, neuron.OTTTLIFNode) for site in sites.values()):
            raise RuleError(f"convert: {path!r} is a GradwithTrace, which reads the traces that an OTTTLIFNode sends; put the layer in its place")
        if not any(site.startswith(f"{path}." if path else "") for site in sites):
            continue
        inner = getattr(module, "sub_module", None)
        if isinstance(module, layer.LinearRecurrentContainer):
            if not (isinstance(inner, nn.Module) and _is_neuron(inner)):
                raise RuleError(
                    f"convert: {path!r} is a LinearRecurrentContainer around a {type(inner).__name__}; "
                    f"put the neuron alone into it and the rest before it"
                )
            check_recurrent(rule, f"convert: {path!r}")
            found.append(module)
        for kind, what, remedy in STEPWISE:
            if isinstance(module, kind) and not rule.capabilities.single_step:
                raise RuleError(
                    f"convert: {_place(path)} is {what}, which runs step by step, but {rule.name!r} learns from the whole spike train; use {remedy}"
                )
    return found


def _place(path: str) -> str:
    return repr(path) if path else "the network"


def _refuse_averages(net: nn.Module, rule: LearningRule) -> None:
    for path, module in net.named_modules():
        if isinstance(module, _AVERAGED):
            raise RuleError(
                f"convert: {_place(path)} ({type(module).__name__}) averages its output over time, but {rule.name!r} learns from when a spike comes; "
                f"use a model whose output keeps time ([T, N, C]: spiking_resnet18, sew_resnet18, spiking_vgg11_bn), or another rule"
            )


def _factory(name: str) -> Callable[..., nn.Module]:
    known: list[str] = []
    for info in pkgutil.iter_modules(model.__path__):
        module = importlib.import_module(f"{model.__name__}.{info.name}")
        own = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__ and key[0] != "_"]
        if name in own:
            return getattr(module, name)  # type: ignore[no-any-return]
        known += own
    raise RuleError(f"build: SpikingJelly has no model factory {name!r}{hint(name, known)}; pass one of {model.__name__}, by name or as an object")


def _needs_neuron(make: Callable[..., nn.Module]) -> bool:
    """Whether a factory has a `spiking_neuron` to fill in, and no neuron of its own."""
    taken = inspect.signature(make).parameters.get("spiking_neuron")
    own = {module.__name__ for module in _OWN_NEURONS}
    return taken is not None and taken.default in (None, inspect.Parameter.empty) and make.__module__ not in own
