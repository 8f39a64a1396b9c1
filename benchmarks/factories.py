"""Every model factory of SpikingJelly under every rule: one training step, and which parameters it reaches.

    OMP_NUM_THREADS=1 python benchmarks/factories.py                                 # those without a result yet
    OMP_NUM_THREADS=1 python benchmarks/factories.py sew_resnet18 spikformer_ti      # these again
    python benchmarks/factories.py --table                                           # docs/factories.md from the results

A process for each factory; all take some twenty minutes of one core. Results are written to
`benchmarks/results/factories.json` after each factory, so that an interrupted run goes on where it stopped.
"""

import argparse
import importlib
import inspect
import json
import math
import multiprocessing
import pkgutil
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from factory_table import RESULTS, RULES, TABLE, table
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, model, neuron
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import snn_rules
from snn_rules.conversion import _factory, _needs_neuron
from snn_rules.experiments import versions, write_json

T, N = 8, 2
PARTS = {  # what SpikingJelly exports beside models: what SpikeDHS is made of
    "save_v_LIFNode", "SpikingConv2d", "SpikingLinear", "SpikingAvgPool2d", "SpikingAdaptiveAvgPool2d",
    "SearchSpikingConv2d_stem", "SearchSpikingConv2d_cell", "DSpike",
}  # fmt: skip
UNLISTED = {"spike_dhs": ["SpikeDHS"]}  # a model that is missing in its module's __all__


def factories() -> dict[str, str]:
    """The name of every factory, which is a function or the class of a model, and its module."""
    found = {}
    for info in pkgutil.iter_modules(model.__path__):
        module = importlib.import_module(f"{model.__name__}.{info.name}")
        for name in [*module.__all__, *UNLISTED.get(info.name, [])]:
            thing = getattr(module, name)
            if name not in PARTS and (inspect.isfunction(thing) or (inspect.isclass(thing) and issubclass(thing, nn.Module))):
                found[name] = info.name
    return found


def setting(name: str, module: str) -> dict[str, Any]:
    """The arguments that make the factory's input small, and the shape of a sample."""
    case: dict[str, Any] = {"args": [], "kwargs": {"num_classes": 10}, "shape": [3, 32, 32], "T": T, "N": N}
    if module == "parametric_lif_net":
        channels, size = {"NMNISTNet": (2, 34), "CIFAR10Net": (3, 32), "CIFAR10DVSNet": (2, 128), "DVSGestureNet": (2, 128)}.get(name, (1, 28))
        case.update(kwargs={"channels": 8}, shape=[channels, size, size])
    elif name in ("MASNN", "masnn_dvs128_gesture"):
        case.update(kwargs={"T": T, "input_size": (16, 16)}, shape=[2, 16, 16])
    elif module == "spikformer" and name != "spikformer_cifar10":
        case["kwargs"] |= {"img_size_h": 32, "img_size_w": 32}
    elif module in ("ms_resnet", "masnn"):  # their last map is one pixel: with two samples, normalised to +-1, their last neurons stay silent
        case["N"] = 4
    elif module == "sew_resnet":
        case["kwargs"]["cnf"] = "ADD"
    elif name == "SNASNet":
        sizes = SimpleNamespace(timestep=T, second_avgpooling=2, dataset="cifar10", celltype="forward", threshold=1.0, tau=4 / 3)
        case["kwargs"] = {"args": sizes, "con_mat": torch.tensor([[0, 2, 3, 1], [0, 0, 3, 4], [0, 0, 0, 2], [0, 0, 0, 0]])}
    elif name == "SpikeDHS":
        sizes = SimpleNamespace(fea_step=3, fea_num_layers=8, fea_block_multiplier=3, fea_filter_multiplier=48)
        case.update(kwargs={"args": sizes}, T=6)
    if name in ("SpikingResNet", "SEWResNet"):
        case["args"] = [importlib.import_module(f"{model.__name__}.{module}").BasicBlock, [1, 1, 1, 1]]
    elif name in ("SpikingVGG", "OTTTSpikingVGG"):
        case["args"] = [[16, "M", 32, "M", 512, "M"]]
    return case


def digits(shape: list[int], classes: int) -> tuple[Tensor, Tensor]:
    """A digit of each class, enlarged; each channel holds the same image."""
    found = load_digits()
    index = [int((found.target == label).argmax()) for label in range(classes)]
    images = torch.tensor(found.images[index] / 16.0, dtype=torch.float32).unsqueeze(1)
    return F.interpolate(images, size=shape[1:], mode="bilinear").expand(-1, shape[0], -1, -1), torch.arange(classes)


def step(net: nn.Module, rule: snn_rules.LearningRule, case: dict[str, Any]) -> dict[str, Tensor]:
    """The gradients of one training step; a model with an auxiliary output learns from both."""
    torch.manual_seed(1)
    x, y = digits(case["shape"], case["N"])
    x = x if type(net).__name__ == "SNASNet" else rule.encode(x, case["T"])  # SNASNet repeats the image itself
    loss = sum(rule.loss(out, y) for out in tree_leaves(net.train()(x)))
    loss.backward()
    functional.reset_net(net)
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def reached(gradients: dict[str, Tensor]) -> set[str]:
    return {name for name, gradient in gradients.items() if bool(gradient.any())}


def stock(name: str, case: dict[str, Any]) -> nn.Module:
    """The model with SpikingJelly's own neurons, as `build` makes it before it converts."""
    make, kwargs = _factory(name), dict(case["kwargs"])
    taken = inspect.signature(make).parameters.get("spiking_neuron")
    if taken is not None and taken.default is neuron.OTTTLIFNode:  # a rule of its own, which takes no whole train: the same constants
        kwargs |= {"spiking_neuron": neuron.LIFNode, "decay_input": False, "v_reset": None, "detach_reset": True}
    elif _needs_neuron(make):
        kwargs |= {"spiking_neuron": neuron.LIFNode, "decay_input": False}
    net = make(*case["args"], **kwargs)
    if name != "SNASNet":
        functional.set_step_mode(net, "m")
    return net


@contextmanager
def no_initialisation() -> Iterator[None]:
    """Weights are loaded afterwards, and VGG's have a hundred million."""
    names = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]
    with mock.patch.multiple(nn.init, **{name: lambda tensor, *args, **kwargs: tensor for name in names}):
        yield


def cell(name: str, case: dict[str, Any], choice: dict[str, Any], weights: dict[str, Tensor], expected: set[str] | None) -> dict[str, Any]:
    """What becomes of a factory under a rule; what it takes to make it work, if anything."""
    found = attempt(name, case, choice, weights, expected)
    if found["state"] == "refused" and "build it with v_reset=0.0" in found["why"]:
        found = attempt(name, {**case, "kwargs": {**case["kwargs"], "v_reset": 0.0}}, choice, weights, expected) | {"with": "`v_reset=0.0`"}
    elif found["state"] == "failed" and choice["rule"] == "strsbp":
        again = attempt(name, case, {**choice, "rule_options": {"t_ref": 0}}, weights, expected)
        found = again | {"with": "`t_ref=0`"} if again["state"] == "works" else found
    elif found["state"] == "failed" and choice["rule"] == "stdbp":
        again = attempt(name, case, choice, weights, expected, initialize=True)
        found = again | {"with": "`rule.initialize(net)` and four steps a layer"} if again["state"] == "works" else found
    return found


def attempt(
    name: str, case: dict[str, Any], choice: dict[str, Any], weights: dict[str, Tensor], expected: set[str] | None, initialize: bool = False
) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        with no_initialisation():
            net = snn_rules.build(name, *case["args"], **choice, **case["kwargs"])
    except snn_rules.RuleError as refusal:
        return {"state": "refused", "why": str(refusal)}
    try:
        net.load_state_dict(weights)  # strict: the keys are SpikingJelly's
        rule = snn_rules.get_rule(choice["rule"], **choice.get("rule_options", {}))
        if initialize:
            torch.manual_seed(0)
            rule.initialize(net)
            layers = sum(isinstance(module, snn_rules.RuleNode) for module in net.modules())
            case = {**case, "T": 4 * layers}  # each layer delays a spike by a step at least
        found = step(net, rule, case)
    except Exception as error:  # the table says what happened, whatever it was
        return {"state": "failed", "why": f"{type(error).__name__}: {error}".splitlines()[0], "trace": traceback.format_exc().splitlines()[-8:]}
    wanted = reached(found) if expected is None else expected
    endless = sorted(name for name, gradient in found.items() if not bool(gradient.isfinite().all()))
    missing = sorted(wanted - reached(found))
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in found.values()))
    report = {
        "state": "works",
        "reached": len(reached(found) & wanted),
        "norm": float(f"{norm:.3g}"),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    if endless or missing:
        why = f"{len(missing)} of {len(wanted)} parameters receive no gradient, {len(endless)} one that is not finite"
        report |= {"state": "failed", "why": why, "missing": missing[:5], "not_finite": endless[:5]}
    return report | {"seconds": round(time.perf_counter() - begun, 1)}


def measure(name: str, module: str) -> dict[str, Any]:
    """A row of the table."""
    warnings.simplefilter("ignore")
    case = setting(name, module)
    torch.manual_seed(0)
    net = stock(name, case)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    expected = reached(step(net, snn_rules.get_rule("surrogate"), case))
    net.zero_grad()
    with no_initialisation():
        net = snn_rules.build(name, *case["args"], rule="surrogate", **case["kwargs"])
    net.load_state_dict(weights)
    expected |= reached(step(net, snn_rules.get_rule("surrogate"), case))
    cells = {column: cell(name, case, choice, weights, expected) for column, choice in RULES.items()}
    size = {key: case[key] for key in ("shape", "T", "N")}
    return {"module": module, **size, "parameters": len(expected), "of": len(list(net.parameters())), "cells": cells}


def _send(name: str, module: str, pipe: Any) -> None:
    pipe.send(measure(name, module))


def apart(name: str, module: str) -> dict[str, Any]:
    """A row, measured in a process of its own."""
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(name, module, there))
    process.start()
    there.close()
    row: dict[str, Any] = here.recv()  # EOFError if the process died
    process.join()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="factories to measure again; default: those without a result")
    parser.add_argument("--table", action="store_true", help="only write docs/factories.md")
    given, known = parser.parse_args(), factories()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for name in [] if given.table else given.names or [name for name in known if name not in rows]:
        rows[name] = apart(name, known[name])
        print(name, {column: entry["state"] for column, entry in rows[name]["cells"].items()}, flush=True)
        about = {"command": "python benchmarks/factories.py", "versions": versions(), "T": T, "N": N}
        write_json(RESULTS, {**about, "rows": {key: rows[key] for key in known if key in rows}})
    TABLE.write_text(table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
