"""What test_distributed.py trains alone and in two processes; as a program, one of the two: sharing.py FOLDER."""

import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

import snn_rules
from snn_rules.data import load
from snn_rules.distributed import Alone, team
from snn_rules.network import network
from snn_rules.train import Config, configured, fit

DIGITS = load("digits")
FEW = replace(DIGITS.limit(61), test_x=DIGITS.test_x[:41], test_y=DIGITS.test_y[:41])  # parts of 10 and 10, of 1 and of none
CASES = {  # rule and its options, settings
    "surrogate": (("surrogate", {}), {"lr": 5e-3}),
    "tssl: sum, clipped": (("tssl", {}), {"lr": 5e-3}),
    "tssl: mean, sqrt": (("tssl", {}), {"reduction": "mean", "schedule": "sqrt", "clip": 0.01}),
    "strsbp: Poisson code": (("strsbp", {}), {"T": 30, "lr": 5e-3}),
    "strsbp: sum, clipped": (("strsbp", {"v_threshold": 2.0}), {"T": 30, "reduction": "sum", "clip": 1.0, "lr": 5e-3}),
    "stdbp clock": (("stdbp", {}), {"T": 24}),
    "stdbp event": (("stdbp", {"mode": "event"}), {}),
    "convolution, distorted": (
        ("tssl", {"v_threshold": 0.2}),
        {"network": "4C3-P2-10", "augment": "elastic", "elastic_sigma": 1.5, "elastic_alpha": 3.0},
    ),
    "float64": (("strsbp", {}), {"T": 30, "lr": 5e-3}),
    "as the command does": (("strsbp", {}), {"T": 12, "epochs": 3, "lr": 3e-3}),
}

OWN = ("seconds", "step_ms", "peak_mb", "counted")  # of each process


def curve(case: str, together: Alone) -> list[dict]:
    """What each epoch left behind, in all processes."""
    (name, options), settings = CASES[case]
    rule, data = configured(name, options), DIGITS.limit(61) if case == "as the command does" else FEW
    config = Config.of(rule, **{"epochs": 2, "batch_size": 20, "network": "12-10", **settings})
    torch.manual_seed(config.seed)
    net = network(config.network, rule, data.shape, data.classes)
    if case == "float64":
        net, data = net.double(), replace(data, train_x=data.train_x.double(), test_x=data.test_x.double())
    history = fit(net, rule, data, config, team=together)
    return [{k: v for k, v in asdict(epoch).items() if k not in OWN} for epoch in history.epochs]


def with_dropout(together: Alone) -> list[float]:
    """The weights of a network that draws random numbers itself."""
    rule = snn_rules.get_rule("surrogate")
    net = nn.Sequential(layer.Flatten(), layer.Dropout(0.5), layer.Linear(64, 10, bias=False), snn_rules.RuleNode(rule))
    functional.set_step_mode(net, "m")
    fit(net, rule, FEW, Config.of(rule, epochs=2, batch_size=20), team=together)
    return net[2].weight.detach().flatten().tolist()


def drawn(together: Alone) -> tuple[list[float], list[float]]:
    """Random numbers within the team's noise, and after it."""
    torch.manual_seed(3)
    with together.noise(1, 2):
        own = torch.rand(3)
    return own.tolist(), torch.rand(3).tolist()


def hang(together: Alone) -> tuple[float, str]:
    """The second process never answers."""
    begun = time.monotonic()
    try:
        with together.watch("go on"):
            if together.rank:
                time.sleep(600)
            together.sum([1.0])
    except snn_rules.RuleError as refusal:
        return time.monotonic() - begun, str(refusal)
    raise AssertionError


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    with team(True, "cpu") as together:
        found["curves"] = {case: curve(case, together) for case in CASES}
        found["dropout"], found["drawn"] = with_dropout(together), drawn(together)
    (folder / f"{together.rank}.json").write_text(json.dumps(found))
    os.environ.update(SNN_RULES_TIMEOUT="8", MASTER_PORT=os.environ["SECOND_PORT"])
    with team(True, "cpu") as together:
        (folder / "hang.json").write_text(json.dumps(hang(together)))
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
