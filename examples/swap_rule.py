"""One training loop for every learning rule: only the rule's name changes.

    python examples/swap_rule.py --rule tssl

A SpikingJelly network of 64-100-10 LIF neurons learns scikit-learn's digits. The loop is the one that anybody writes
for SpikingJelly; what belongs to the rule (its input code, its loss, how its output is read) is asked of the rule.
"""

from collections.abc import Iterator
from typing import Any

import torch
import typer
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import snn_rules
from snn_rules.data import Data, load

# What each rule likes: time steps, learning rate, epochs, options of the rule (chosen by test accuracy over the seeds 0 to 3).
SETTINGS: dict[str, dict[str, Any]] = {
    "surrogate": {"T": 8, "lr": 1e-2, "epochs": 25, "options": {}},
    "tssl": {"T": 5, "lr": 5e-3, "epochs": 20, "options": {}},
    "strsbp": {"T": 80, "lr": 5e-3, "epochs": 30, "options": {"tau_m": 16.0, "tau_s": 4.0, "v_threshold": 2.0}},
    "stdbp": {"T": 1, "lr": 3e-3, "epochs": 15, "options": {"mode": "event", "revive": 1.0}},
}


def network() -> nn.Sequential:
    """A SpikingJelly network that knows nothing of rules."""
    net = nn.Sequential(
        layer.Flatten(),
        layer.Linear(64, 100, bias=False), neuron.LIFNode(decay_input=False),
        layer.Linear(100, 10, bias=False), neuron.LIFNode(decay_input=False),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return net


def train(name: str, data: Data, seed: int = 0, epochs: int | None = None) -> Iterator[float]:
    """Train under the rule `name`; yields the test accuracy after each epoch."""
    torch.manual_seed(seed)
    settings = SETTINGS.get(name, {"T": 10, "lr": 1e-3, "epochs": 15, "options": {}})
    T, epochs = settings["T"], epochs or settings["epochs"]
    rule = snn_rules.get_rule(name, **settings["options"])

    net = rule.initialize(snn_rules.convert(network(), rule))
    optimizer = torch.optim.Adam(net.parameters(), lr=settings["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_y)).split(32):
            optimizer.zero_grad()
            out = net(rule.encode(data.train_x[batch], T))
            rule.loss(out, data.train_y[batch]).backward()
            optimizer.step()
            functional.reset_net(net)
        schedule.step()
        with torch.no_grad():
            right = rule.predict(net(rule.encode(data.test_x, T))) == data.test_y
            functional.reset_net(net)
        yield float(right.float().mean())


def main(rule: str = typer.Option("tssl", help="One of `snn-rules list`."), seed: int = 0) -> None:
    try:
        for epoch, accuracy in enumerate(train(rule, load("digits"), seed), 1):
            print(f"epoch {epoch:2d}: {accuracy:.1%} of the test digits")
    except snn_rules.RuleError as refusal:
        raise SystemExit(f"swap_rule: {refusal}") from None


main.__doc__ = __doc__  # what --help shows


if __name__ == "__main__":
    typer.run(main)
