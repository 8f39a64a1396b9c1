"""The SpikingJelly neuron that runs any rule."""

from __future__ import annotations

import dataclasses
import numbers
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from .contract import number
from .inputs import problem
from .kernels import ops
from .kernels.autograd import Job, Report, in_backward, run
from .kernels.eager import Eager, State, state_dtype
from .kernels.transforms import Layer, refuse
from .keywords import configure
from .registry import rules
from .rule import LearningRule, RuleError

_STEPWISE = Eager()  # single steps: no train, no kernel


class RuleNode(neuron.BaseNode):
    """A layer of spiking neurons that learns by a rule.

    `rule` is a name (see `snn_rules.rules()`) or a configured `LearningRule`; the other keywords are the rule's
    options and those of `LIFNode` (`tau`, `decay_input`, `v_threshold`, `v_reset`, `step_mode`, `store_v_seq`).
    Keywords of `LIFNode` that mean nothing to the rule are ignored, with one warning. The defaults are the
    rule's (`snn-rules info NAME`). Options can be set later, too: `node.tau = 5.0`.

    Input `[T, N, *]` in step mode 'm' (`[N, *]` in 's'), output spikes {0, 1} of the same shape and dtype. The states
    of the rule are memories: `functional.reset_net` resets them, `node.v` reads the potential (measured from
    `v_reset`). The neuron has no parameters and no buffers: `state_dict` has the same keys under every rule.
    """

    rule: LearningRule
    _shift: float
    _memories: dict[str, Any]
    _options: dict[str, str]

    def __init__(self, rule: str | LearningRule | None = None, *, step_mode: str = "s", store_v_seq: bool = False, **options: Any) -> None:
        if rule is None:
            raise RuleError(f"RuleNode: pass rule=, one of {', '.join(sorted(rules()))}")
        configured, v_reset = configure(rule, options)
        if configured.capabilities.signal != "spikes":
            raise RuleError(
                f"RuleNode: {configured.name} with {type(configured).__name__}(mode='event') fuses each neuron with the layer before it; "
                f"build the network with LIFNode or RuleNode and call snn_rules.convert(net, rule={configured.name!r}, mode='event')"
            )
        self._set_up(configured, v_reset, step_mode, store_v_seq)

    def _set_up(self, rule: LearningRule, v_reset: float | None, step_mode: str, store_v_seq: bool) -> None:
        self.__dict__.update(rule=rule, _shift=v_reset or 0.0, _options={})
        super().__init__(
            v_threshold=self.v_threshold,
            v_reset=None if v_reset is None else 0.0,
            surrogate_function=None,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.v_reset = v_reset
        self.path = ""  # where the neuron stands in its network, for messages; `convert` knows
        self.site: Any = None  # what `convert` found here
        self._report, self._key = Report(), ops.key(rule)
        for name in self._extra_memories():
            if hasattr(self, name):
                raise RuleError(f"{rule.name}: its state {name!r} is the name of something else of a neuron's; give it another")
            self.register_memory(name, rule.state.get(name, 0.0))
        self._memories["v"] = self._memories_rv["v"] = rule.state["v"]
        self._options.update(rule.meanings())
        for name in self._options:  # what is the rule's is not the neuron's: `__getattr__` finds it there
            self.__dict__.pop(name, None)

    def _extra_memories(self) -> list[str]:
        return [name for name in self.rule.state if name != "v"] + (["late"] if self.rule.delay else [])

    @property
    def v_threshold(self) -> float:
        return float(getattr(self.rule, "v_threshold", 1.0)) + self._shift

    @v_threshold.setter
    def v_threshold(self, value: float) -> None:
        if value != self.v_threshold:
            self._change("v_threshold", value)

    def __setattr__(self, name: str, value: Any) -> None:
        """The rule's parameters can be set as on a `LIFNode`: `node.tau = 5.0`."""
        options = vars(self).get("_options", {})  # empty while the neuron is being made
        meant = options.get(name, name)
        if meant in options:
            self._change(meant, value)
        elif options and name == "v_reset" and value != self.v_reset:
            raise RuleError(f"{self._where()}: v_reset={value!r} comes too late; the neuron was made with v_reset={self.v_reset!r}: make another")
        elif options and name == "rule":
            raise RuleError(f"{self._where()}: rule={getattr(value, 'name', value)!r} comes too late; call snn_rules.convert(net, that rule)")
        elif options and name in self._memories and not isinstance(value, (Tensor, numbers.Real)):
            raise RuleError(f"{self._where()}: {name}={value!r} should be a tensor, or a number for all neurons")
        elif options and name == "surrogate_function" and value is not None:
            raise RuleError(f"{self._where()}: surrogate_function has no meaning here; the rule's options are {', '.join(options)}")
        else:
            super().__setattr__(meant, value)

    def _change(self, name: str, value: Any) -> None:
        shift = self._shift if name == "v_threshold" and isinstance(value, numbers.Real) and not isinstance(value, bool) else 0.0
        rule = self.rule.replace(**{name: value - shift if shift else value})
        if rule.capabilities.signal != "spikes" or (set(rule.state), rule.delay) != (set(self.rule.state), self.rule.delay):
            raise RuleError(f"{self._where()}: {name}={value!r} makes another neuron of it; install the rule anew, by snn_rules.convert")
        if name == "reset" and value != vars(self.rule)["reset"]:
            if self._shift:
                raise RuleError(f"{self._where()}: reset={value!r} comes too late; the neuron was made with v_reset={self.v_reset!r}: make another")
            self.__dict__["v_reset"] = None if value == "subtract" else 0.0
        self.__dict__.update(rule=rule, _key=ops.key(rule))
        self.site = self.site and self.site.after(name, self)

    def extra_repr(self) -> str:
        shown = {f.name: getattr(self.rule, f.name) for f in dataclasses.fields(self.rule) if getattr(self.rule, f.name) != f.default}
        shown |= {"v_threshold": self.v_threshold, "v_reset": self.v_reset} if self._shift else {}
        return ", ".join([f"rule={self.rule.name!r}", *(f"{name}={value!r}" for name, value in shown.items()), f"step_mode={self.step_mode!r}"])

    def __getattr__(self, name: str) -> Any:
        rule = vars(self).get("rule")
        if rule is not None and name in rule.diagnostics:  # e.g. warmup_fraction, of the last backward pass
            values = self._report.values
            return None if values is None else number(rule, name, SimpleNamespace(T=values[0], **values[1]))
        option = vars(self).get("_options", {}).get(name)
        return super().__getattr__(name) if option is None else getattr(self if option == "v_threshold" else rule, option)

    # ---- forward -----------------------------------------------------------------------------------------------

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if ops.traced():
            return self._compiled_forward(x_seq)
        if torch._C._are_functorch_transforms_active():
            return Layer.apply(x_seq.to(state_dtype(x_seq)), self.rule, *self._tensors(x_seq)).to(x_seq.dtype)  # type: ignore[no-any-return]
        given, report = dict(self._memories), self._report
        state = self._state(x_seq, given)
        if in_backward():
            return self._again(x_seq, state, left=given["v"] is report.last)
        self._check(x_seq, "m", given)
        report.warm |= bool(state) and (x_seq.requires_grad or not torch.is_grad_enabled())  # a checkpoint may have run it
        spikes, after = self._run(x_seq, state)
        self._memories.update(after)
        report.last = after["v"]
        return spikes

    def _again(self, x_seq: Tensor, state: State, left: bool) -> Tensor:
        """The second run of a train, for `torch.utils.checkpoint`: from rest, where trains begin, and leaving no state.

        `memopt` gives back the state from which a train began; torch has the one that the last train has left.
        """
        if left or not state:
            if self._report.warm:
                raise RuleError(
                    f"{self._where()}: a checkpoint runs it again, and not all trains since the last backward pass began at rest; call "
                    f"functional.reset_net(net) before each, or use spikingjelly.activation_based.memopt.checkpoint_module, which keeps the states"
                )
            state = {}
        return self._run(x_seq, state)[0]

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        given = dict(zip(self._memories, states, strict=True))
        self._check(inputs[0], "m", given)
        spikes, after = self._run(inputs[0], self._state(inputs[0], given))
        return (spikes,), tuple(after[name] for name in self._memories)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        x, given = inputs[0], dict(zip(self._memories, states, strict=True))
        if torch._C._are_functorch_transforms_active():
            raise refuse(self._where(), "single steps")
        self._check(x, "s", given)
        if x.requires_grad and torch.is_grad_enabled() and not self.rule.capabilities.single_step:
            raise RuleError(
                f"{self._where()} is in step mode 's', but {self.rule.name!r} learns from the whole spike train: "
                f"call functional.set_step_mode(net, 'm') and pass [T, N, *]"
            )
        state = self._state(x, given, "s")
        spikes, after, _, _ = _STEPWISE.forward(self.rule, x.to(state_dtype(x)).unsqueeze(0), state)
        self._check_finite(x, after)
        return (spikes[0].to(x.dtype),), tuple(after[name] for name in self._memories)

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        job = Job(self.rule, state, self._report, self._warn_silent, self.store_v_seq)
        spikes = run(job, x)
        if not job.finite:
            self._check_finite(x, job.state)
        if job.record:
            self.v_seq = job.recorded
        return spikes, job.state

    def _compiled_forward(self, x: Tensor) -> Tensor:
        """As one operator, inside `torch.compile`; see `kernels.ops`."""
        if self.store_v_seq:
            raise RuleError(f"{self._where()}: store_v_seq=True records nothing inside torch.compile; set it to False, or leave the neuron out")
        spikes, *after = torch.ops.snn_rules.layer(x, self._tensors(x), self._key)
        self._memories.update((name, value.detach()) for name, value in zip(self._memories, after, strict=True))
        return spikes  # type: ignore[no-any-return]

    def _tensors(self, x: Tensor) -> list[Tensor]:
        """The states to start from, all as tensors."""
        state = self._state(x, self._memories)
        shapes = {name: (self.rule.delay, *x.shape[1:]) if name == "late" else x.shape[1:] for name in self._memories}
        start, dtype = self.rule.state, state_dtype(x)
        return [
            state[name] if name in state else torch.full(shape, start.get(name, 0.0), dtype=dtype, device=x.device) for name, shape in shapes.items()
        ]

    def materialize_states(self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str) -> tuple[Any, ...]:
        state = self._state(inputs[0], dict(zip(self._memories, states, strict=True)), step_mode)
        return tuple(state.get(name, self.rule.state.get(name, 0.0)) for name in self._memories)

    def _state(self, x: Tensor, states: dict[str, Any], step_mode: str = "m") -> State:
        """The states that this train goes on from. Left out, and so at rest: a number that is the start value, a tensor whose shape does not fit."""
        held = {name: value for name, value in states.items() if isinstance(value, Tensor) or value != self.rule.state.get(name, 0.0)}
        if held:
            shape, dtype = x.shape[1:] if step_mode == "m" else x.shape, state_dtype(x)
            fits = {name: (self.rule.delay, *shape) if name == "late" else shape for name in held}
            held = {name: value if isinstance(value, Tensor) else torch.full(fits[name], value, dtype=dtype) for name, value in held.items()}
            held = {name: value.to(dtype=dtype, device=x.device) for name, value in held.items() if value.shape == fits[name]}
            if not torch.is_inference_mode_enabled():  # which may have made them
                held = {name: value.clone() if value.is_inference() else value for name, value in held.items()}
        return held

    # ---- state and gradients -----------------------------------------------------------------------------------

    def reset(self) -> None:
        super().reset()
        self._report.learns = False

    def detach(self) -> None:
        super().detach()
        self._report.learns = False

    def _warn_silent(self) -> None:
        warn_zero_gradient(self._where(), self.rule.name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """The `w` of what was a `ParametricLIFNode` says its tau, here as there, unless an option did."""
        super()._load_from_state_dict(*args, **kwargs)
        if self.site is None or self._parameters.get("w") is None:
            return
        follows, tau_m = getattr(self.rule, "tau_m", None) == self.site.tau_m, 1.0 / float(self.w.detach().sigmoid())
        self.site = dataclasses.replace(self.site, tau_m=tau_m)
        if follows:
            self._change("tau_m", tau_m)

    # ---- messages ----------------------------------------------------------------------------------------------

    def _where(self) -> str:
        return f"neuron {self.path!r} ({self.rule.name})" if self.path else f"{type(self).__name__} ({self.rule.name})"

    def _check(self, x: Any, step_mode: str, states: Mapping[str, Any], weight: Tensor | None = None) -> None:
        if wrong := problem(x, "a floating-point tensor, e.g. x.float()"):
            raise RuleError(f"{self._where()}: {wrong}")
        if step_mode == "m" and x.dim() < 2:
            raise RuleError(f"{self._where()}: the input has shape {list(x.shape)}; in step mode 'm' pass [T, N, *]")
        if step_mode == "m" and x.shape[0] == 0:
            raise RuleError(f"{self._where()}: the input has shape {list(x.shape)}, T = 0 time steps; pass at least one")
        learns = torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad))
        if not learns or in_backward():
            return
        for value in states.values():
            if isinstance(value, Tensor) and (self._report.learns or (step_mode == "m" and value.requires_grad)):
                raise RuleError(
                    f"{self._where()}: its state comes from a train that it learns from already, and {self.rule.name!r} learns from whole trains; "
                    f"call functional.reset_net(net) after each training step, or functional.detach_net(net) to go on with the train; "
                    f"let nothing cut a train, such as memopt's can_chunk, and have a neuron at one place of the network only"
                )
        self._report.learns |= step_mode == "m"

    def _check_finite(self, x: Tensor, state: State) -> None:
        """NaN and inf in the input stay in the state: looking at the last step finds them."""
        if bool(torch.stack([torch.isfinite(value).all() for value in state.values()]).all()):  # a GPU is waited for once
            return
        bad = (~torch.isfinite(x)).nonzero()
        found = f"the input holds {x[tuple(bad[0])].item()} at {bad[0].tolist()}" if len(bad) else "its state has overflowed"
        raise RuleError(f"{self._where()}: {found}; look at the layer before it (learning rate, normalisation, data)")


def warn_zero_gradient(where: str, rule: str) -> None:
    """Dead layers, and losses that cannot teach a rule, must not train nothing in silence."""
    warnings.warn(
        f"{where}: a backward pass gave a gradient of exactly zero for the whole layer; either none of its neurons can fire "
        f"(try larger weights, or a lower v_threshold), or the loss cannot teach {rule!r} (use rule.loss, which fits its code)",
        stacklevel=3,
    )
