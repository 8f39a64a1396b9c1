"""The papers' network strings: "15C5-P2-40C5-P2-300-10" is a SpikingJelly network under any rule.

The input is not written down; each part is a layer:

    400      fully connected, 400 neurons
    R400     fully connected, 400 neurons that also hear each other, one step later
    R5x5x16  the same, but each hears a few that are near it on a grid of 5 x 5 x 16 (`Reservoir`, the recurrent layer of ST-RSBP)
    15C5     convolution, 15 channels, kernel 5 x 5, stride 1; "15C5p2" pads the image with 2 zeros on each side
    P2       pooling over 2 x 2 windows: the mean or the maximum, as suits the rule
    P2n      the same, and neurons that receive it (ST-RSBP's pooling layers are layers of neurons)
    D0.2     dropout of a fifth, in training: the same neurons at all steps of a sample (TSSL-BP's networks for CIFAR-10)

No layer has a bias. Feature maps are flattened where a fully connected layer follows them.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spikingjelly.activation_based import base, functional, layer
from torch import Tensor, nn

from .conversion import convert
from .neuron import RuleNode
from .pooling import AvgPool2d
from .recurrent import InhibitedNode, RecurrentNode, check_recurrent
from .registry import get_rule
from .reservoir import Reservoir
from .rule import LearningRule, RuleError

_PART = re.compile(
    r"(?P<recurrent>R)?(?P<dense>\d+)|R(?P<grid>\d+x\d+x\d+)|(?P<channels>\d+)C(?P<kernel>\d+)(?:p(?P<padding>\d+))?"
    r"|P(?P<pool>\d+)(?P<fires>n)?|D(?P<rate>0?\.\d+)",
    re.ASCII,
)
_UNDERSTOOD = "write layers joined by '-', such as 400, R400 or R5x5x16 (recurrent), 15C5 or 15C5p1 (convolution), P2 or P2n (pooling), D0.2"


@dataclass(frozen=True)
class Part:
    """One part of a network string, and what it makes of its input."""

    text: str
    kind: str  # "dense", "recurrent", "conv", "pool" or "dropout"
    size: int  # neurons, channels, or the window of a pooling layer
    kernel: int = 0
    padding: int = 0
    grid: tuple[int, ...] = ()  # of a recurrent part that is wired by distance
    rate: float = 0.0  # of dropout
    fires: bool = True  # whether neurons follow


def parse(text: str) -> tuple[Part, ...]:
    """The parts of a network string; `RuleError` for what is no layer."""
    parts = []
    for word in text.split("-"):
        found = _PART.fullmatch(word)
        if not found:
            raise RuleError(f"network {text!r}: {word!r} is no layer; {_UNDERSTOOD}")
        if found["dense"]:
            part = Part(word, "recurrent" if found["recurrent"] else "dense", int(found["dense"]))
        elif found["grid"]:
            grid = tuple(map(int, found["grid"].split("x")))
            part = Part(word, "recurrent", math.prod(grid), grid=grid)
        elif found["rate"]:
            part = Part(word, "dropout", 1, rate=float(found["rate"]), fires=False)
        elif found["channels"]:
            part = Part(word, "conv", int(found["channels"]), int(found["kernel"]), int(found["padding"] or 0))
        else:
            part = Part(word, "pool", int(found["pool"]), fires=bool(found["fires"]))
        if part.size < 1 or (part.kind == "conv" and part.kernel < 1):
            raise RuleError(f"network {text!r}: {word!r} has a size of 0; {_UNDERSTOOD}")
        parts.append(part)
    return tuple(parts)


class Layers(nn.Sequential):
    """Layers in a row. An input that is the same at each step (`coding.static`) crosses those before the first neuron once."""

    def forward(self, x: Tensor) -> Tensor:
        steps = len(x)
        still = steps > 1 and x.stride(0) == 0
        out = x[:1] if still else x
        for module in self:
            if still and isinstance(module, base.MemoryModule):
                out, still = out.expand(steps, *out.shape[1:]), False
            out = module(out)
        return out.expand(steps, *out.shape[1:]) if still else out


def network(
    text: str,
    rule: str | LearningRule,
    input_shape: Sequence[int],
    classes: int | None = None,
    init: str = "rule",
    pool_gain: float | None = None,
    inhibition: float = 0.0,
    thresholds: Sequence[float] | None = None,
) -> nn.Sequential:
    """The network, in step mode 'm', with the weights from which `rule` learns (`rule.initialize`) or, with init="kaiming",
    normal ones with standard deviation sqrt(2 / fan_in). With `pool_gain`, mean pooling is the sum of the window times that. With
    `inhibition`, the neurons of the last part inhibit each other (`InhibitedNode`). `thresholds` gives each layer of neurons its own
    `v_threshold`, in order.

    `input_shape` is that of a sample, `(C, H, W)` or `(F,)`: the network takes `rule.encode(x, T)` of `x[N, *input_shape]`.
    With `classes`, a network that does not end in so many neurons is refused. The modules are named by their place in
    the string: conv1, neuron1, pool2, flatten3, dense3, neuron3.
    """
    rule, parts, shape = get_rule(rule), parse(text), tuple(input_shape)
    if classes is not None and (parts[-1].kind not in ("dense", "recurrent") or parts[-1].size != classes):
        raise RuleError(f"network {text!r}: the last part is {parts[-1].text!r}, but the data has {classes} classes; end it with '-{classes}'")
    neurons = _rules(text, parts, rule, thresholds)
    net = Layers()
    for place, part in enumerate(parts, 1):
        where = f"network {text!r}: part {place}, {part.text!r},"
        if part.kind in ("dense", "recurrent"):
            if len(shape) > 1:
                net.add_module(f"flatten{place}", layer.Flatten())
                shape = (math.prod(shape),)
            net.add_module(f"dense{place}", layer.Linear(shape[0], part.size, bias=False))
            shape = (part.size,)
        elif part.kind == "dropout":
            net.add_module(f"dropout{place}", layer.Dropout(part.rate))
        else:
            made = _maps(part, shape, where)
            net.add_module(f"{part.kind}{place}", _over_maps(part, rule, shape[0], pool_gain))
            shape = made
        if part.fires:
            net.add_module(f"neuron{place}", _neuron(part, next(neurons), where, f"neuron{place}", inhibition if place == len(parts) else 0.0))
    functional.set_step_mode(net, "m")
    if rule.capabilities.signal == "times":
        convert(net, rule)
    rule.initialize(net)
    if init == "kaiming":
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    return net


def _rules(text: str, parts: Sequence[Part], rule: LearningRule, thresholds: Sequence[float] | None) -> Iterator[LearningRule]:
    """The rule of each layer of neurons."""
    layers = sum(part.fires for part in parts)
    if thresholds is None:
        return iter([rule] * layers)
    if len(thresholds) != layers:
        raise RuleError(f"network {text!r}: thresholds={list(thresholds)} are {len(thresholds)}, for {layers} layers of neurons; give each its own")
    if rule.capabilities.signal == "times":
        raise RuleError(f"network {text!r}: thresholds={list(thresholds)}, but {rule.name!r} has one for all layers in this mode; leave them out")
    return iter([get_rule(rule, v_threshold=value) for value in thresholds])


def _over_maps(part: Part, rule: LearningRule, channels: int, pool_gain: float | None) -> nn.Module:
    made: nn.Module
    if part.kind == "pool" and rule.capabilities.pooling == "max":
        made = layer.MaxPool2d(part.size)
        if pool_gain is not None:
            warnings.warn(f"pool_gain={pool_gain!r} has no meaning under {rule.name!r}, which pools by the maximum", stacklevel=3)
    elif part.kind == "pool":
        made = AvgPool2d(part.size, 1.0 if pool_gain is None else pool_gain * part.size**2)
    else:
        made = layer.Conv2d(channels, part.size, part.kernel, padding=part.padding, bias=False)
    return made


def _neuron(part: Part, rule: LearningRule, where: str, path: str, inhibition: float) -> nn.Module:
    if inhibition and (part.kind != "dense" or rule.capabilities.signal == "times"):
        reason = "is no dense part" if part.kind != "dense" else f"sends spike times, each once, under {rule.name!r}"
        raise RuleError(f"{where} {reason}, and has no lateral inhibition; pass inhibition=0")
    if rule.capabilities.signal == "times":  # `convert` fuses whatever neuron stands here with its synapse
        if part.kind == "recurrent":
            raise RuleError(f"{where} is recurrent, but {rule.name!r} sends each spike time forward, once; write '{part.size}', or another rule")
        if part.kind == "pool":
            raise RuleError(f"{where} has neurons, but {rule.name!r} has none without weights of their own; write 'P{part.size}', or another rule")
        return RuleNode("surrogate")
    if part.kind == "recurrent" or inhibition:
        check_recurrent(rule, where.rstrip(","))
    node: RuleNode
    if inhibition:
        node = InhibitedNode(part.size, rule, inhibition=inhibition)
    elif part.grid:
        node = Reservoir(part.grid, rule)
    else:
        node = RecurrentNode(part.size, rule) if part.kind == "recurrent" else RuleNode(rule)
    node.path = path
    return node


def _maps(part: Part, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    """The shape of the feature maps that the part makes."""
    if len(shape) != 3:
        raise RuleError(
            f"{where} needs feature maps [C, H, W], but what comes in has {math.prod(shape)} neurons in a row; put it before fully connected parts"
        )
    channels, height, width = shape
    if part.kind == "pool":
        made = (channels, height // part.size, width // part.size)
    else:
        shrink = 2 * part.padding - part.kernel + 1
        made = (part.size, height + shrink, width + shrink)
    if min(made) < 1:
        raise RuleError(f"{where} does not fit on feature maps of {height} x {width}; leave it out, or choose a smaller window")
    return made
