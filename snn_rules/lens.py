"""The lens: what several rules say of the same weights on the same batch, and what each of their gradients is worth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from .conversion import convert
from .neuron import RuleNode
from .recurrent import RuleRecurrentContainer
from .registry import get_rule
from .rule import LearningRule, RuleError

STEPS = (0.001, 0.003, 0.01, 0.03, 0.1)
Named = str | LearningRule | tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Lens:
    """What `compare_gradients` saw of R rules. Tensors are float64 on the CPU; nan where a gradient is zero.

    The forward passes are the same where `differs` is zero everywhere: then two cosines differ by the backward passes
    (and the losses) alone. Where they are not, a cosine also compares the two networks that the rules make of one.
    """

    rules: tuple[str, ...]  # R labels; the forward passes of the others are held against that of the first
    layers: tuple[str, ...]  # L paths of modules with parameters, and "all", the whole network
    norms: Tensor  # [L, R], of the gradients of the loss, a mean over the batch
    cosine: Tensor  # [L, R, R]
    steps: tuple[float, ...]  # S lengths of a step, in norms of all the weights; the first is 0
    directions: tuple[str, ...]  # the rules, and "random": a direction that knows nothing
    losses: tuple[str, ...]  # [R], whose loss is measured under each rule
    loss: Tensor  # [R, R + 1, S]: under a rule, after a step against the gradient of a rule
    accuracy: Tensor  # [R, R + 1, S], 0 to 1
    firing: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by neuron, [R]: spikes a step; nan for spike times
    differs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by neuron, [R]: share of the first rule's outputs; nan: not comparable

    @property
    def ratio(self) -> Tensor:
        """`[L, R, R]`: the norm of the second rule's gradient over that of the first's."""
        ratio = self.norms.unsqueeze(1) / self.norms.unsqueeze(2)
        return torch.where((self.norms.unsqueeze(1) > 0) & (self.norms.unsqueeze(2) > 0), ratio, math.nan)

    @property
    def fall(self) -> Tensor:
        """`[R, R + 1]`: the largest fall of the loss that a direction reached, as a share of the loss; 0 where it only rose."""
        return (self.loss[..., 0] - self.loss.amin(-1)) / self.loss[..., 0]

    @property
    def same_forward(self) -> bool:
        """All rules send the same from every neuron."""
        return all(share == 0 for shares in self.differs.values() for share in shares)


def compare_gradients(
    net: nn.Module | Callable[[], nn.Module],
    x: Tensor,
    target: Tensor,
    rules: Sequence[Named],
    *,
    T: int | None = None,
    own_code: bool = False,
    encode: Callable[[LearningRule, Tensor, int], Tensor] | None = None,
    loss: Named | None = None,
    steps: Sequence[float] = STEPS,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Lens:
    """The gradients of several rules at the weights of one network, and the loss along each of them.

    `net` is a network of SpikingJelly, or what makes one; it stays as it is, each rule works on a converted copy, with
    the constants that `convert` keeps (hooks are copied, too: disable monitors first). `x[N, *]` are samples in [0, 1],
    `target[N]` class indices. A rule is a name, a name with options, `("tssl", {"tau_s": 3.0})`, or a `LearningRule`.

    The first rule sets the stage: its input code and its window (`T` steps, if given) are everybody's, unless `own_code`
    leaves each rule its own; rules that send spike times always have their own. `encode(rule, x, T)` makes the input
    where `rule.encode` would not do: of samples that are spike trains. Each rule's gradient is that of its own loss, or
    of the `loss` of one rule for all. `steps` are lengths in norms of all the weights. A seed gives the same code, the
    same dropout and the same random direction each time. `on_step(done, total)` is told of progress.

    Raises `RuleError` for rules that cannot stand in the network, labels given twice, and gradients that are not finite.
    """
    stage = _network(net)
    lengths = _lengths(steps)
    if isinstance(rules, str):
        raise RuleError(f"compare_gradients: rules={rules!r} should be a list of them: [{rules!r}]")
    chosen = [_chosen(named) for named in rules]
    labels = tuple(label for label, _, _ in chosen)
    if not chosen or len(set(labels)) < len(labels):
        raise RuleError(f"lens: rules {', '.join(labels) or 'none'}; name at least one, and each once")
    if not isinstance(x, Tensor) or not isinstance(target, Tensor) or target.shape != x.shape[:1] or not len(x):
        given = [list(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in (x, target)]
        raise RuleError(f"lens: x is {given[0]} and target {given[1]}; pass samples [N, *] and class indices [N]")
    devices = range(torch.cuda.device_count()) if x.is_cuda else ()
    with torch.random.fork_rng(devices):
        views = _views(stage, x, target, chosen, T, own_code, encode, loss, seed)
        done, total = 0, len(views) * (1 + (len(views) + 1) * (len(lengths) - 1))

        def tell() -> None:
            nonlocal done
            done += 1
            if on_step:
                on_step(done, total)

        gradients: list[dict[str, Tensor]] = []
        for view in views:
            gradients.append(view.gradient())
            tell()
        layers = _layers(gradients[0])
        gram = torch.stack([_gram(gradients, names) for names in layers.values()])
        norms = gram.diagonal(dim1=1, dim2=2).sqrt()
        scale = norms.unsqueeze(1) * norms.unsqueeze(2)
        cosine = torch.where(scale > 0, gram / scale, math.nan)
        start = {name: p.detach() for name, p in stage.named_parameters() if name in gradients[0]}
        along = [*(_unit(gradient, -1.0) for gradient in gradients), _unit(_random(start, seed), 1.0)]
        size = _norm(start)
        measured = torch.empty(len(views), len(along), len(lengths), 2, dtype=torch.float64)
        for view, row in zip(views, measured, strict=True):
            row[:, 0] = torch.tensor(view.start, dtype=torch.float64)
            for d, direction in enumerate(along):
                for s, length in enumerate(lengths[1:], 1):
                    row[d, s] = torch.tensor(view.at(start, direction, size * length), dtype=torch.float64)
                    tell()
    firing, differs = _forward_passes(views)
    losses = tuple(view.judge.name for view in views)
    loss_, accuracy = measured.unbind(-1)
    return Lens(labels, tuple(layers), norms, cosine, lengths, (*labels, "random"), losses, loss_, accuracy, firing, differs)


class _View:
    """A copy of the network under one rule, with its input, and the rule whose loss is asked for."""

    def __init__(self, label: str, net: nn.Module, rule: LearningRule, judge: LearningRule, x: Tensor, target: Tensor, seed: int):
        self.label, self.net, self.rule, self.judge, self.x, self.target, self.seed = label, net, rule, judge, x, target, seed
        self.sent: dict[str, Tensor] = {}
        self.start = (math.nan, math.nan)
        functional.set_step_mode(net, "m")
        self.parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise RuleError(f"lens: {type(net).__name__} has no parameters that learn; there is no gradient to look at")

    def loss(self) -> tuple[Tensor, float]:
        functional.reset_net(self.net)
        torch.manual_seed(self.seed)
        out = self.net(self.x)
        return self.judge.loss(out, self.target), float((self.judge.predict(out) == self.target).double().mean())

    def gradient(self) -> dict[str, Tensor]:
        with _listening(self.net, self.sent):
            loss, accuracy = self.loss()
        self.start = loss.item(), accuracy
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        gradient = {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(self.parameters.items(), found, strict=True)}
        bad = [name for name, g in gradient.items() if not bool(torch.isfinite(g).all())]
        if bad or not math.isfinite(self.start[0]):
            what = f"the gradient of {bad[0]!r}" if bad else "the loss"
            raise RuleError(f"lens: {what} is not finite under {self.label!r}; look at smaller weights")
        functional.reset_net(self.net)
        return gradient

    @torch.no_grad()
    def at(self, start: Mapping[str, Tensor], direction: Mapping[str, Tensor], length: float) -> tuple[float, float]:
        """Loss and accuracy a step away from the start."""
        for name, p in self.parameters.items():
            p.copy_(start[name] + length * direction[name])
        loss, accuracy = self.loss()
        return loss.item(), accuracy


def _views(
    stage: nn.Module,
    x: Tensor,
    target: Tensor,
    chosen: Sequence[tuple[str, str | LearningRule, Mapping[str, Any]]],
    T: int | None,
    own_code: bool,
    encode: Callable[[LearningRule, Tensor, int], Tensor] | None,
    loss: Named | None,
    seed: int,
) -> list[_View]:
    configured = [get_rule(rule, **options) for _, rule, options in chosen]
    common = None
    if loss is not None:
        _, rule, options = _chosen(loss)
        common = get_rule(rule, **options)
    first, views = configured[0], []
    for (label, given, options), rule in zip(chosen, configured, strict=True):
        signal = rule.capabilities.signal
        if common is not None and common.capabilities.signal != signal:
            raise RuleError(f"lens: the loss of {common.name!r} reads {common.capabilities.signal}, but {label!r} sends {signal}; leave loss out")
        code = rule if own_code or signal != first.capabilities.signal else first
        torch.manual_seed(seed)
        steps = code.training.T if T is None else T
        encoded = encode(code, x, steps) if encode else code.encode(x, steps)
        net = convert(_copy(stage), given, **options)
        views.append(_View(label, net, rule, common or rule, encoded, target, seed))
    return views


def _copy(net: nn.Module) -> nn.Module:
    """A copy also of a network in whose states the graph of a forward pass lives, which deepcopy alone refuses."""
    held = [value for module in net.modules() for store in (vars(module), vars(module).get("_memories", {})) for value in store.values()]
    return copy.deepcopy(net, {id(value): value.detach().clone() for value in held if isinstance(value, Tensor) and not value.is_leaf})


def _network(net: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    made = net if isinstance(net, nn.Module) else net()
    if not isinstance(made, nn.Module):
        raise RuleError(f"lens: the network is a {type(made).__name__}; pass a module, or a function that makes one")
    return made


def _lengths(steps: Sequence[float]) -> tuple[float, ...]:
    if not steps or not all(math.isfinite(step) and step > 0 for step in steps):
        raise RuleError(f"lens: steps {list(steps)!r} should be numbers above 0, such as {list(STEPS)}")
    return (0.0, *sorted(set(map(float, steps))))


def _chosen(named: Named) -> tuple[str, str | LearningRule, Mapping[str, Any]]:
    """The label of a rule, what `convert` calls it, and its options."""
    rule, options = named if isinstance(named, tuple) else (named, {})
    shown = {f.name: getattr(rule, f.name) for f in fields(rule) if getattr(rule, f.name) != f.default} if isinstance(rule, LearningRule) else options
    name = rule.name if isinstance(rule, LearningRule) else rule
    return ":".join([name, *(f"{key}={value}" for key, value in sorted(shown.items()))]), rule, options


def _layers(gradient: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names of the parameters, by the module that owns them; and all."""
    layers: dict[str, list[str]] = {}
    for name in gradient:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return {**layers, "all": list(gradient)}


def _gram(gradients: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Tensor:
    """`[R, R]`: the inner products of the gradients of these parameters."""
    rows = torch.stack([torch.cat([gradient[name].double().flatten() for name in names]) for gradient in gradients])
    return (rows @ rows.T).cpu()


def _norm(values: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values.values()))


def _unit(values: Mapping[str, Tensor], sign: float) -> dict[str, Tensor]:
    """Of norm 1, or zero."""
    factor = sign / (_norm(values) or 1.0)
    return {name: factor * value for name, value in values.items()}


def _random(like: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator).to(value) for name, value in like.items()}


@contextmanager
def _listening(net: nn.Module, sent: dict[str, Tensor]) -> Iterator[None]:
    """What each layer of neurons sends, by its path."""

    def hear(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, out: sent.__setitem__(path, out.detach())

    nodes = [(path, module) for path, module in net.named_modules() if isinstance(module, (RuleNode, RuleRecurrentContainer))]
    hooks = [module.register_forward_hook(hear(path)) for path, module in nodes]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _forward_passes(views: Sequence[_View]) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """By neuron, for each rule: how often it fires, and the share of its outputs that are not the first rule's."""
    first, firing, differs = views[0], {}, {}
    for path, out in first.sent.items():
        rates, shares = [], []
        for view in views:
            other, kinds = view.sent[path], {view.rule.capabilities.signal, first.rule.capabilities.signal}
            rates.append(float(other.double().mean()) if view.rule.capabilities.signal == "spikes" else math.nan)
            comparable = len(kinds) == 1 and other.shape == out.shape
            shares.append(float((other != out).double().mean()) if comparable else math.nan)
        firing[path], differs[path] = tuple(rates), tuple(shares)
    return firing, differs
