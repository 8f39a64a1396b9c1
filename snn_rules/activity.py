"""What a network does on its test set: firing rates, and the synaptic operations that stand for its energy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .neuron import RuleNode
from .recurrent import RecurrentNode, RuleRecurrentContainer
from .rule import LearningRule


class Activity:
    """Counts over everything that passes while `watch` is on."""

    def __init__(self, window: float | None):
        self.window = window  # of a rule that sends spike times: a neuron at its end was silent
        self.samples = 0
        self._spikes: dict[str, float] = defaultdict(float)
        self._places: dict[str, int] = defaultdict(int)
        self._operations: dict[str, float] = defaultdict(float)

    @property
    def firing(self) -> dict[str, float]:
        """Of each layer of neurons: spikes a neuron and step (what it sends, where that is a current); for spike times the fraction that fired."""
        return {path: self._spikes[path] / places for path, places in self._places.items()}

    @property
    def mean(self) -> float:
        """The same, over all neurons."""
        return sum(self._spikes.values()) / max(sum(self._places.values()), 1)

    @property
    def synops(self) -> dict[str, float]:
        """Of each layer of synapses: its active inputs times the neurons that each reaches, a sample.

        An input that is the same at each step, such as pixels under the static code, passes once. At a convolution every
        input counts as far from the edges.
        """
        return {path: operations / max(self.samples, 1) for path, operations in self._operations.items()}

    @classmethod
    def total(cls, parts: Sequence[Activity], samples: int) -> Activity:
        """Of `samples` in all, whose parts have gone through different processes."""
        total = cls(parts[0].window)
        total.samples = samples
        for part in parts:
            for path, spikes in part._spikes.items():
                total._spikes[path] += spikes
                total._places[path] += part._places[path]
            for path, operations in part._operations.items():
                total._operations[path] += operations
        return total

    def active(self, x: Tensor) -> float:
        return float(x.count_nonzero() if self.window is None else (x < self.window).sum())

    def fired(self, path: str, node: nn.Module, out: Tensor) -> None:
        spikes = float(out.sum(dtype=torch.float32)) if self.window is None else self.active(out)
        self._spikes[path] += spikes
        self._places[path] += out.numel()
        if isinstance(node, (RecurrentNode, RuleRecurrentContainer)):
            reach = node.wiring().detach().count_nonzero(0).float()  # neurons that each reaches
            self._operations[path] += float((out.flatten(0, -2).sum(0, dtype=torch.float32) * reach).sum())

    def arrived(self, path: str, synapse: nn.Linear | nn.Conv2d, x: Tensor) -> None:
        if isinstance(synapse, nn.Linear):
            reach = float(synapse.out_features)
        else:
            reach = synapse.weight.numel() / x.shape[-3] / (synapse.stride[0] * synapse.stride[1])
        self._operations[path] += self.active(x) * reach


@contextmanager
def watch(net: nn.Module, rule: LearningRule) -> Iterator[Activity]:
    """Count what `net` does."""
    activity = Activity(rule.window if rule.capabilities.signal == "times" else None)
    hooks = []
    for path, module in net.named_modules():
        container = isinstance(module, RuleRecurrentContainer) and module.step_mode == "m"  # which calls neither its synapse nor its neuron
        if container:
            hooks.append(module.register_forward_pre_hook(lambda held, x, path=f"{path}.rc": activity.arrived(path, held.rc, x[0])))
        if container or isinstance(module, RuleNode):
            hooks.append(module.register_forward_hook(lambda node, _, out, path=path: activity.fired(path, node, out)))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            hooks.append(module.register_forward_pre_hook(lambda synapse, x, path=path: activity.arrived(path, synapse, x[0])))
    try:
        yield activity
    finally:
        for hook in hooks:
            hook.remove()
