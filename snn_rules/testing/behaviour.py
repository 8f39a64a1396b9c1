"""Checks of what SpikingJelly's users count on: the rule as a value, its neuron in a network, its failures."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import re
import subprocess
import sys
from functools import lru_cache

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from ..conversion import convert
from ..neuron import RuleNode
from ..rule import LearningRule, RuleError
from .case import EAGER, Case, Skip, check, check_any_signal, demand, differ

HEAVY = {"cupy", "IPython", "jax", "matplotlib", "numba", "pandas", "scipy", "sklearn", "tensorflow", "torchvision", "transformers"}
SECONDS = 1.0  # that the import of a plugin may take beyond torch and SpikingJelly
PROBE = """
import importlib, sys, time
import torch, spikingjelly.activation_based.neuron, snn_rules.neuron, snn_rules.coding
before, began = set(sys.modules), time.process_time()
importlib.import_module(sys.argv[1])
print("\\n", time.process_time() - began, *{name.partition(".")[0] for name in set(sys.modules) - before})
"""


# ---- the rule as a value ---------------------------------------------------------------------------------------------


@check_any_signal
def imports_nothing_heavy(case: Case) -> None:
    """Whoever names a rule imports its plugin: beyond torch and SpikingJelly it should cost no more than a moment."""
    module = type(case.rule).__module__
    if getattr(sys.modules.get(module), "__spec__", None) is None:
        raise Skip(f"the rule was written in {module}, which is no module of a distribution")
    seconds, names = _imports(module)
    heavy = sorted(HEAVY & names)
    demand(not heavy, f"importing {module} imports {', '.join(heavy)}; import it in the function that needs it")
    demand(seconds < SECONDS, f"importing {module} takes {seconds:.1f} s beyond torch and SpikingJelly; do that work where it is needed")


@lru_cache(maxsize=64)
def _imports(module: str) -> tuple[float, set[str]]:
    """Seconds, and the packages that a new process loads with the module."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROBE, module], capture_output=True, text=True, env=environment)
    demand(done.returncode == 0, f"importing {module} fails in a new process: {done.stderr.strip().splitlines()[-1:]}")
    said, _, last = done.stdout.rstrip("\n").rpartition("\n")
    demand(not said.strip(), f"importing {module} prints {said.strip().splitlines()[:1]}; a program's output is not the plugin's")
    seconds, *names = last.split()
    return float(seconds), set(names)


@check_any_signal
def explains_itself(case: Case) -> None:
    """Researchers check a rule against its paper: the paper and its year, where the equations stand, parameters with units."""
    rule, cls = case.rule, type(case.rule)
    demand(vars(cls).get("__doc__") and not str(cls.__doc__).startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring")
    demand(re.search(r"\b(19|20)\d\d\b", rule.cite), f"cite={rule.cite!r} should name the paper, with its year")
    demand(rule.equations, "equations='' should say where in the paper the equations stand")
    for field in dataclasses.fields(rule):
        demand(field.metadata.get("help"), f"parameter {field.name!r} has no help: parameter(default, unit, help)")
        timed = re.match(r"(tau|t)_|delay$", field.name) and not isinstance(field.default, bool) and field.name != "t_max"
        demand(not timed or field.metadata["unit"], f"parameter {field.name!r} is a time without a unit, such as 'steps' or 'ms'")


@check_any_signal
def is_a_value(case: Case) -> None:
    """Rules are compared, kept as keys and sent to other processes: immutable, hashable, the same after a pickle."""
    rule = case.rule
    demand(hash(rule) == hash(copy.deepcopy(rule)) and copy.deepcopy(rule) == rule, "an equal rule has another hash, or a copy is not equal")
    for field in dataclasses.fields(rule):
        demand(rule.replace(**{field.name: getattr(rule, field.name)}) == rule, f"{field.name}: setting it to its own value changes the rule")
        rule.replace(**{field.name: field.default})  # a default lies within its own range
        try:
            setattr(rule, field.name, getattr(rule, field.name))
        except dataclasses.FrozenInstanceError:
            continue
        demand(False, f"{field.name} can be assigned; decorate the class with @dataclass(frozen=True)")
    if "<locals>" not in type(rule).__qualname__:
        demand(pickle.loads(pickle.dumps(rule)) == rule, "it is another rule after pickle")


# ---- the neuron ------------------------------------------------------------------------------------------------------


@check
def spikes_are_binary(case: Case) -> None:
    """Pooling, counters and monitors rely on spikes of {0, 1}, in the shape and dtype of the input."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for shape in ((12, 2, 7), (1, 2, 7), (5, 1, 2, 3, 3), (5, 0, 5)):
            x, g = case.inputs(*shape, dtype=dtype)
            node = case.node()
            spikes, dx = case.run(x, g, node)
            demand((spikes.shape, spikes.dtype) == (x.shape, dtype), f"{list(shape)} of {dtype} comes out as {list(spikes.shape)} of {spikes.dtype}")
            demand(((spikes == 0) | (spikes == 1)).all(), f"spikes of {dtype} hold values other than 0 and 1")
            demand((dx.shape, dx.dtype) == (x.shape, dtype), f"the gradient of {list(shape)} of {dtype} is {list(dx.shape)} of {dx.dtype}")
            demand(torch.isfinite(dx).all(), f"the gradient of {list(shape)} of {dtype} is not finite")
    x, g = case.inputs(12, 4, 6)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    demand(torch.equal(case.run(turned, g)[0], case.run(x, g)[0]), "a non-contiguous input gives other spikes")


@check
def reset_restores(case: Case) -> None:
    """Samples must not see each other through time: after reset_net a neuron is as new; two halves of a train are the train."""
    x, g = case.inputs(17, 3, 8)
    node = case.node()
    want = case.run(x, g, node)
    case.run(3 * x.flip(0), g, node)
    for name, got, new in zip(("spikes", "gradients"), case.run(x, g, node), want, strict=True):
        demand(not (what := differ(got, new)), f"after reset_net the {name} are not those of a new neuron: {what}")
    functional.reset_net(node)
    with torch.no_grad():
        halves = torch.cat([node(x[:5]), node(x[5:])])
    demand(not (what := differ(halves, want[0])), f"the spikes of a train in two calls are not those of the whole: {what}")


@check
def rows_are_independent(case: Case) -> None:
    """A sample's spikes and gradients must not depend on the samples that share its batch."""
    x, g = case.inputs(12, 4, 8)
    whole = case.run(x, g)
    for n in range(4):
        for name, got, alone in zip(("spikes", "gradient"), whole, case.run(x[:, n : n + 1], g[:, n : n + 1]), strict=True):
            what = differ(got[:, n : n + 1], alone, rtol=1e-9, atol=1e-12 * float(whole[1].abs().max() or 1.0))
            demand(not what, f"the {name} of sample {n} change with the others of its batch: {what}")


@check
def extreme_inputs_stay_finite(case: Case) -> None:
    """Silent and saturated neurons occur in every training: their gradients must be numbers."""
    x, g = case.inputs(12, 3, 8, dtype=torch.float32)
    for name, given in {"zero": 0 * x, "large": 1e4 * x.abs(), "large negative": -1e4 * x.abs(), "of one step": x[:1], "tiny": 1e-30 * x}.items():
        spikes, dx = case.run(given, g[: len(given)])
        demand(((spikes == 0) | (spikes == 1)).all(), f"{name} input gives spikes other than 0 and 1")
        demand(torch.isfinite(dx).all(), f"{name} input gives a gradient that is not finite")
        on_torch = case.run_by(EAGER, given, g[: len(given)])["dL/dx"]
        demand(torch.isfinite(on_torch).all(), f"{name} input gives a gradient that is not finite on torch")


# ---- in a network ----------------------------------------------------------------------------------------------------


def _stock(case: Case) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = neuron.LIFNode(tau=3.0, v_reset=case.v_reset), neuron.IFNode(v_threshold=0.7, v_reset=case.v_reset)
    net = nn.Sequential(layer.Linear(6, 8), first, layer.BatchNorm1d(8), second, layer.Linear(8, 4))
    functional.set_step_mode(net, "m")
    return net.eval()


@check
def conversion_keeps_the_network(case: Case) -> None:
    """Optimisers and checkpoints hold on to parameters and keys: convert leaves both alone, and the forward pass deterministic."""
    net, x = _stock(case), torch.rand(12, 3, 6)
    kept, keys = {name: id(p) for name, p in net.named_parameters()}, list(net.state_dict())
    values = {name: value.clone() for name, value in net.state_dict().items()}
    convert(net, case.rule)
    demand({name: id(p) for name, p in net.named_parameters()} == kept, "convert replaces parameters")
    demand(list(net.state_dict()) == keys, "convert changes the keys of state_dict")
    demand(all(torch.equal(value, values[name]) for name, value in net.state_dict().items()), "convert changes parameters")

    def outputs(network: nn.Module) -> Tensor:
        functional.reset_net(network)
        with torch.no_grad():
            return network(x)  # type: ignore[no-any-return]

    want = outputs(net)
    demand(torch.equal(outputs(net), want), "the same input gives another output the second time")
    demand(torch.equal(outputs(copy.deepcopy(net)), want), "a deep copy of the network gives another output")
    demand(torch.equal(outputs(convert(net, case.rule)), want), "to convert again changes the output")


@check
def unsupported_layers_are_refused(case: Case) -> None:
    """What a rule cannot stand in for is refused by its path, before anything has changed: never trained by something else."""
    cases: dict[str, nn.Module] = {"QIFNode": neuron.QIFNode(step_mode="m")}
    for reset, v_reset in (("subtract", None), ("zero", 0.0)):
        if reset not in case.rule.capabilities.resets:
            cases[f"v_reset={v_reset}"] = neuron.LIFNode(v_reset=v_reset, step_mode="m")
    for what, odd in cases.items():
        net = nn.Sequential(layer.Linear(4, 4), neuron.LIFNode(v_reset=case.v_reset), odd)
        try:
            convert(net, case.rule)
        except RuleError as refusal:
            demand("'2'" in str(refusal), f"the refusal of {what} does not name its path: {refusal}")
            demand(type(net[1]) is neuron.LIFNode, f"the refusal of {what} comes after other layers were converted")
        else:
            demand(False, f"convert accepts {what}")


@check
def half_precision_trains(case: Case) -> None:
    """Under torch.autocast inputs are bfloat16: states stay float32, gradients finite."""
    net = nn.Sequential(nn.Linear(6, 8), case.node(), nn.Linear(8, 3))
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.rand(12, 3, 6))
    out.float().square().sum().backward()
    states = [value for module in net if isinstance(module, RuleNode) for value in module._memories.values() if isinstance(value, Tensor)]
    demand(all(state.dtype == torch.float32 for state in states), "states are kept in half precision")
    demand(all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None), "a gradient is not finite")


@check_any_signal
def every_parameter_gets_a_gradient(case: Case) -> None:
    """Two layers with the weights of `rule.initialize`, the rule's own input code and loss: each weight matrix must learn."""
    rule, net = case.trained, case.network("16-4", 12)
    out = net(rule.encode(torch.rand(24, 12), rule.training.T))
    torch.autograd.backward(rule.loss(out, torch.arange(24) % 4))
    for name, parameter in net.named_parameters():
        demand(parameter.grad is not None, f"{name} gets no gradient")
        demand(torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite")
        demand(parameter.grad.any(), f"the gradient of {name} is zero for the whole layer")


@check
def silent_neurons_learn(case: Case) -> None:
    """A neuron just below its threshold that ought to fire must get a gradient, or it stays silent for ever."""
    x = torch.full((16, 1, 3), case.hush, dtype=torch.float64)
    spikes, dx = case.run(x, -torch.ones_like(x))
    demand(not spikes.any(), "the neuron fires in the kernel where eager torch leaves it silent")
    demand(dx.any(), f"the gradient of a silent neuron (constant input {case.hush:.4g}) that ought to fire is zero")


def unregistered(rule: LearningRule) -> str:
    """Why a check that looks the rule up by its name is skipped."""
    return f"no rule {rule.name!r} of this class is installed or registered"
