"""What a learning rule is: one time step of one neuron, the walks over time that make its backward pass, parameters.

`step` and the sweeps may use `+ - * /`, `abs`, the square `u**2`, comparisons, `&`, `|` and `~`, and the functions of `snn_rules.ops`,
nothing else: the same text runs on torch tensors and on symbols, from which kernels are made.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .kernels.cuda import Kernel
    from .site import Site

Values = dict[str, Any]


class RuleError(RuntimeError):
    """Every refusal: one line that says what was given, where (module path) and what to do."""


class MalformedRule(RuleError):
    """No executor can run the rule: where kernels refuse it, torch does, too."""


def hint(given: str, known: Iterable[str]) -> str:
    """What was probably meant, to go behind it in a message; nothing, if nothing is like it."""
    near = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


_warned: set[tuple[str, str]] = set()


def warn_once(rule: str, option: str) -> None:
    """Say, once a process, that an option of SpikingJelly's neurons means nothing to a rule."""
    if (rule, option) not in _warned:
        _warned.add((rule, option))
        warnings.warn(f"{option!r} has no meaning for rule {rule!r} and is ignored", stacklevel=4)


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a rule can do; asked before training begins, shown by `snn-rules info`."""

    exact: bool = False  # the gradient is the exact derivative of the forward pass (checked by gradcheck)
    single_step: bool = False  # learns in step mode 's' too; else it needs the whole spike train
    resets: tuple[str, ...] = ("zero",)  # what `v_reset` may ask for: "zero", "subtract"
    averaged: bool = True  # learns where the network's output is averaged over time (False: from spike times alone)
    signal: str = "spikes"  # what travels between layers: "spikes" or "times"
    pooling: str = "avg"  # what a "P2" in a network string means


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings with which the rule learns out of the box; each is an option of `snn-rules train`."""

    T: int = 10  # time steps a sample
    lr: float = 1e-3
    batch_size: int = 100
    clip: float | None = None  # largest norm of the whole gradient
    reduction: str = "mean"  # of the loss over the batch
    normalize: bool = False  # give the samples mean 0 and standard deviation 1, over the data set
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the rule


def parameter(default: Any, unit: str = "", help: str = "", *, choices: tuple[Any, ...] = (), low: float = -math.inf, high: float = math.inf) -> Any:
    """A parameter of a rule: a dataclass field that knows its unit, meaning and range."""
    meta = {"unit": unit, "help": help, "choices": choices, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=meta)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One walk over time of the backward pass; made by the decorator `sweep`."""

    body: Callable[[Any, Any, Any], tuple[Values, Values]]
    reverse: bool
    carry: dict[str, float]

    @property
    def name(self) -> str:
        return self.body.__name__


def sweep(*, reverse: bool, **carry: float) -> Callable[[Callable[[Any, Any, Any], tuple[Values, Values]]], Sweep]:
    """Declare a method `(self, c, m) -> outputs, carry` as the next walk over time of the backward pass.

    `c` holds what the walk carries from step to step (start values: the keywords). `m` holds, at each step, the input
    `x`, the spike `s`, the incoming gradient `g = dL/ds`, what `step` saved and what earlier sweeps put out; and, for
    the neuron, its state after the last step, the final carries of the earlier sweeps and what `between` returned.
    The last sweep puts out `dx`, the gradient of the input.
    """
    return lambda body: Sweep(body, reverse, carry)


@dataclasses.dataclass(frozen=True)
class LearningRule:
    """A learning rule with its parameters: an immutable value.

    A subclass is a frozen dataclass whose fields are made by `parameter`. It gives `name`, `cite`, `state` and `step`;
    its sweeps in the order in which they run (none: the adjoint is derived from `step`); and, where the defaults do
    not fit, `between`, `couple`, `fuse`, `adopt`, `initialize`, `encode`, `loss` and `predict`.
    """

    decay_input: bool = parameter(False, help="drive the neuron with x / tau_m, as LIFNode(decay_input=True) does")

    api: ClassVar[int] = 1  # what the rule was written for; after snn_rules.API was raised, a newer rule states the new number
    name: ClassVar[str]
    cite: ClassVar[str] = ""  # the paper
    equations: ClassVar[str] = ""  # where in the paper they stand
    aliases: ClassVar[Mapping[str, str]] = {"tau": "tau_m"}
    state: ClassVar[Mapping[str, float]] = {"v": 0.0}  # what a neuron carries from step to step; "v" is its potential
    sweeps: ClassVar[tuple[Sweep, ...]] = ()
    # {attribute of the neuron: its value from `T` and what the sweeps and `between` left for each neuron}
    diagnostics: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    capabilities: ClassVar[Capabilities] = Capabilities()
    training: ClassVar[Training] = Training()
    given: ClassVar[frozenset[str]] = frozenset()  # of a rule by name or `replace`: the options that were set, to whatever value
    delay = 0  # steps between the input and its effect on the neuron
    # checks of `snn_rules.testing` that the rule fails by design, and why
    expected_failed_checks: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "sweeps" not in vars(cls):  # a rule whose options choose the sweeps makes it a property
            cls.sweeps = tuple(v for v in vars(cls).values() if isinstance(v, Sweep)) or cls.sweeps
        from .contract import HOOKS, answering, counting

        for name, hook in [item for item in vars(cls).items() if item[0] in HOOKS and isinstance(item[1], FunctionType)]:
            setattr(cls, name, answering(name, hook))
        if "diagnostics" in vars(cls):
            cls.diagnostics = counting(cls)

    def __post_init__(self) -> None:
        from .contract import check_fields, check_parts

        check_fields(self)
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, self._checked(field, getattr(self, field.name)))
        check_parts(self)
        if self.decay_input and not math.isfinite(getattr(self, "tau_m", math.inf)):
            raise RuleError(f"{self.name}: decay_input=True divides the input by tau_m and needs a finite one; pass decay_input=False")

    def _checked(self, field: dataclasses.Field[Any], value: Any) -> Any:
        meta, default = field.metadata, field.default
        what = f"{self.name}: {field.name}={' '.join(repr(value).split())}"
        if meta["choices"]:
            if value not in meta["choices"]:
                raise RuleError(f"{what} is not one of {', '.join(map(repr, meta['choices']))}")
            return value
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise RuleError(f"{what} should be True or False")
            return value
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise RuleError(f"{what} should be a number")
        if isinstance(default, int) and value % 1 != 0:  # inf and nan, too
            raise RuleError(f"{what} should be a whole number")
        if not meta["low"] <= value <= meta["high"]:
            raise RuleError(f"{what} should lie between {meta['low']:g} and {meta['high']:g}")
        return int(float(value)) if isinstance(default, int) else float(value)

    # ---- options -----------------------------------------------------------------------------------------------

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Values:
        """The options under their own names: aliases are translated, misspelt ones refused."""
        known, resolved = cls.meanings(), dict[str, Any]()
        for given, value in options.items():
            if given not in known:
                raise RuleError(f"{cls.name}: unknown option {given!r}{hint(given, known)}; it takes {', '.join(dict.fromkeys(known.values()))}")
            if known[given] in resolved:
                raise RuleError(f"{cls.name}: {known[given]!r} is given twice, once under its alias; keep one")
            resolved[known[given]] = value
        return resolved

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Its parameters by their names and aliases: {"tau_m": "tau_m", "tau": "tau_m", ...}."""
        own = {field.name: field.name for field in dataclasses.fields(cls)}
        return own | {alias: name for alias, name in cls.aliases.items() if name in own} | own

    def replace(self, **options: Any) -> Self:
        """The same rule with other values for some of its parameters."""
        resolved = self.resolve(options)
        return dataclasses.replace(self, **resolved)._chose(self.given | resolved.keys())

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The rule with these options, and the paper's constants else."""
        resolved = cls.resolve(options)
        return cls(**resolved)._chose(frozenset(resolved))

    def _chose(self, names: frozenset[str]) -> Self:
        object.__setattr__(self, "given", names)
        return self

    @property
    def gain(self) -> float:
        """The factor of the input: 1, or 1 / tau_m with `decay_input`."""
        return 1.0 / float(vars(self)["tau_m"]) if self.decay_input else 1.0

    @property
    def window(self) -> float:
        """Where `capabilities.signal` is "times": the time at which a neuron that stayed silent counts as firing."""
        return math.inf

    # ---- the neuron --------------------------------------------------------------------------------------------

    def step(self, m: Any, x: Any) -> tuple[Any, Values, Values]:
        """One step of one neuron: from the state `m` and the input `x` to (spike, new state, what the sweeps need)."""
        raise MalformedRule(f"rule {self.name!r} has no step; write step(self, m, x), which returns the spike, the state, what the sweeps read")

    def between(self, sums: Any) -> Values:
        """Between two sweeps, once a neuron: from the final carries `[N, *]` (and `T`) to values for the next sweep.

        Written like a sweep, it is a part of the kernel; torch's own functions stay in torch, between two kernels.

        A value named `scale` multiplies the `dx` of the last sweep.
        """
        return {}

    def couple(self, weight: Tensor, dx: Tensor, s_before: Tensor, sums: Any) -> tuple[Tensor, Tensor] | None:
        """A recurrent layer's own mathematics: from `dx[T, N, F]` unscaled, the spikes a step before and the weights
        `[F, F]` to the factors `[N, F]` of the errors that go below and of the weights' gradient.

        Where a rule has this method, no sweep runs through the recurrent weights: their gradient is `dx` times that
        factor, times the spikes a step before, and factors of one are a rule without errors between its neurons. Without
        it the sweep runs through them step by step (back-propagation through time, with this rule's neuron).
        """
        return None

    # ---- in a network ------------------------------------------------------------------------------------------

    def adopt(self, site: Site, given: frozenset[str]) -> Self:
        """This rule with the constants of the neuron that it replaces; options in `given` were set by the user and win."""
        names = {field.name for field in dataclasses.fields(self)}
        if "tau_m" not in names:
            if site.tau_m != float("inf"):  # an IFNode has none to lose
                warn_once(self.name, "tau")
            names.discard("decay_input")
        offered = {k: v for k, v in site.options().items() if k in names and k not in given}
        return dataclasses.replace(self, **offered)

    def fuse(self, net: nn.Module, rules: Mapping[str, LearningRule]) -> bool:
        """Replace pairs of synapse and neuron by the rule's own layers; True if it did (STDBP's event mode only).

        `rules` holds, by the path of each neuron, this rule with the constants of that place.
        """
        return False

    def own_layers(self, x: Tensor) -> tuple[str, str] | None:
        """What runs the layers that `fuse` makes, for input like `x`, and why: for `snn-rules doctor`. None: it makes none."""
        return None

    def stock(self) -> tuple[str, Values]:
        """SpikingJelly's neuron that fires as this one does, for `snn_rules.plain`: its class's name, and its keywords without `v_reset`.

        A `RuleError` says why there is none.
        """
        raise RuleError("has no counterpart among SpikingJelly's neurons")

    def own_kernels(self) -> tuple[Kernel, ...]:
        """The CUDA kernels of the layers that `fuse` makes: for `snn-rules doctor --kernels` and `snn_rules.testing.proof`."""
        return ()

    def initialize(self, net: nn.Module) -> nn.Module:
        """Set the weights of `net` to values from which this rule learns; the default keeps PyTorch's own."""
        return net

    def encode(self, x: Tensor, T: int) -> Tensor:
        """`x[N, *]` in [0, 1] -> `[T, N, *]`: the sample repeated at each step (direct coding)."""
        from . import coding

        return coding.static(x, T)

    def loss(self, out: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Half the squared error of each step's output against the one-hot target, summed over time and classes.

        `out` is `[T, N, C]`, or `[N, C]` where the model has averaged time; `reduction` ("mean" or "sum") is over the batch.
        """
        from . import coding

        return coding.step_loss(out, target, reduction=reduction)

    def predict(self, out: Tensor) -> Tensor:
        """`[T, N, C]` or `[N, C]` -> class indices `[N]`: the neuron that fired most."""
        from . import coding

        return coding.counts(out).argmax(-1)
