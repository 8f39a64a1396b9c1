"""Runs a rule on torch tensors, one operation at a time: the reference that every other executor must equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rule import LearningRule, Sweep, Values
from . import form

State = dict[str, Tensor]
_HALF = torch.float16, torch.bfloat16
DTYPES = (torch.float32, torch.float64, *_HALF)  # of inputs


def state_dtype(x: Tensor) -> torch.dtype:
    """In which a neuron computes, given its input."""
    return torch.float32 if x.dtype in _HALF else x.dtype


@dataclass(slots=True)
class Tape:
    """What the backward pass needs."""

    values: Sequence[Any]  # tensors; None where a state was at rest
    about: Any  # what the executor has to know of them
    finite: bool | None = None  # of the state after the last step, where the executor has looked


class Eager:
    """Torch operations, step by step; `unbind` keeps them O(T)."""

    name = "eager torch"
    converts = False  # half-precision input and output, inside
    derives = False  # autograd walks back through the steps of a rule without sweeps
    why = "the reference: torch operations, one time step after another"

    def forward(
        self, rule: LearningRule, x: Tensor, state: State, weight: Tensor | None = None, record: bool = False, learns: bool = True
    ) -> tuple[Tensor, State, Tape, Tensor | None]:
        """Spikes `[T, N, *]`, the state after the last step, the tape, and on `record` the potential at each step, `[T, N, *]`.

        Without `learns` no backward pass follows, and the tape may be empty.

        `x` is `[T, N, *]` in the dtype of the state. `state` holds the rule's states (one that is missing is at rest), and
        `late` (the inputs still on their way, `[delay, N, *]`) where the rule has a delay. With `weight[F, F]` the layer is recurrent: `weight`
        times the spikes of a step is added to the input of the next; `state` then holds the last spikes as `y`.
        """
        start = {**rule.state, "late": 0.0, "y": 0.0}

        def given(name: str, shape: tuple[int, ...]) -> Tensor:
            return state[name] if name in state else torch.full_like(x.new_empty(shape), start[name])  # by which op_counter knows states

        rule_state = {name: given(name, x.shape[1:]) for name in rule.state}
        sent, state_after = x, {}
        if rule.delay:
            queue = torch.cat([given("late", (rule.delay, *x.shape[1:])), x])
            sent, state_after["late"] = queue[: x.shape[0]], queue[x.shape[0] :].clone()
        drive = x if rule.gain == 1.0 else x * rule.gain
        arriving = drive if sent is x else sent * rule.gain
        y = y_before = given("y", x.shape[1:]) if weight is not None else None
        steps, spikes, recorded = dict[str, list[Tensor]](), [], []
        for x_t in arriving.unbind(0):
            if weight is not None:
                x_t = x_t + F.linear(y, weight)  # type: ignore[arg-type]
            s, rule_state, saved = form.stepped(rule, rule.step(form.Given(rule, "step", rule_state), x_t))
            s, rule_state = _number(s, x_t), {name: _number(value, x_t) for name, value in rule_state.items()}
            spikes.append(s)
            for name, value in saved.items():
                steps.setdefault(name, []).append(_tensor(value, x_t))
            if record:
                recorded.append(rule_state["v"])
            y = s
        neurons = dict(rule_state)
        if weight is not None:
            neurons["y"] = y_before  # type: ignore[assignment]
            state_after["y"] = spikes[-1]
        train = torch.stack(spikes)
        kept = {"x": drive, **{name: torch.stack(values) for name, values in steps.items()}, "s": train} if rule.sweeps else {}
        tape = Tape([*kept.values(), *neurons.values()], (tuple(kept), tuple(neurons)))
        return train, {**rule_state, **state_after}, tape, torch.stack(recorded) if record else None

    def backward(self, rule: LearningRule, tape: Tape, g: Tensor) -> tuple[Tensor, State]:
        """`dL/dx[T, N, *]` from `g = dL/ds`, and the values of each neuron that the sweeps left behind."""
        steps, neurons = _steps_and_neurons(tape, g)
        for sweep in rule.sweeps:
            self.walk(rule, sweep, steps, neurons)
        dx = steps["dx"]
        if "scale" in neurons:
            dx = [neurons["scale"] * d for d in dx]
        return self._input_gradient(rule, dx), neurons

    def recurrent_backward(self, rule: LearningRule, tape: Tape, g: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
        """As `backward`, for a recurrent layer: `dL/dx` for errors, `dL/dx` for weights, `dL/dweight`, values."""
        steps, neurons = _steps_and_neurons(tape, g)
        s_before = torch.stack([neurons.pop("y"), *steps["s"][:-1]])
        bptt = type(rule).couple is LearningRule.couple
        # what a neuron is sent at step t, before delays: from below, and from its own layer
        steps["x"] = [x + F.linear(s, weight) for x, s in zip(steps["x"], steps["s"], strict=True)]
        for sweep in rule.sweeps:
            self.walk(rule, sweep, steps, neurons, feedback=weight if bptt else None)
        dx = torch.stack(steps["dx"])
        scaled, for_weights = dx, dx
        coupled = form.coupled(rule, rule.couple(weight, dx, s_before, form.Given(rule, "couple", {"T": len(g), **neurons})))
        if coupled is not None:
            scaled, for_weights = coupled[0] * dx, coupled[1] * dx
        d_weight = torch.einsum("t...i,t...j->ij", for_weights, s_before)
        return (
            self._input_gradient(rule, list(scaled.unbind(0))),
            self._input_gradient(rule, list(for_weights.unbind(0))),
            d_weight,
            neurons,
        )

    def walk(self, rule: LearningRule, sweep: Sweep, steps: dict[str, list[Tensor]], neurons: State, feedback: Tensor | None = None) -> None:
        """Run one sweep; its outputs become values of each step, its final carries values of each neuron."""
        T, what = len(steps["g"]), f"sweep {sweep.name!r}"
        carry: Values = {name: torch.full_like(steps["s"][0], start) for name, start in sweep.carry.items()}
        outputs: dict[str, list[Any]] = {}
        after: Tensor | None = None  # dx one step later
        for t in reversed(range(T)) if sweep.reverse else range(T):
            m = {**neurons, **{name: values[t] for name, values in steps.items()}}
            if feedback is not None and after is not None:
                m["g"] = m["g"] + F.linear(after, feedback.T)
            put, carry = form.swept(rule, sweep, sweep.body(rule, form.Given(rule, what, carry), form.Given(rule, what, m)))
            put, carry = ({name: _number(value, m["g"]) for name, value in values.items()} for values in (put, carry))
            for name, value in put.items():
                outputs.setdefault(name, [None] * T)[t] = value
            after = put.get("dx")
        steps.update(outputs)
        neurons.update(carry)
        if sweep is not rule.sweeps[-1]:
            neurons.update(form.handed(rule, rule.between(form.Given(rule, "between", {"T": T, **neurons})), steps))

    @staticmethod
    def _input_gradient(rule: LearningRule, dx: list[Tensor]) -> Tensor:
        """From the gradient of what arrives at the neuron to that of what is sent: undo the delay and the gain."""
        zero = torch.zeros_like(dx[0])
        sent = torch.stack((dx[rule.delay :] + [zero] * rule.delay)[: len(dx)])
        return sent if rule.gain == 1.0 else sent * rule.gain


def _tensor(value: Any, like: Tensor) -> Tensor:
    """A plain number is that of each neuron."""
    return value if isinstance(value, Tensor) else torch.full_like(like, value)


def _number(value: Any, like: Tensor) -> Tensor:
    """A condition is 1 or 0, where numbers are kept."""
    return _tensor(value, like).to(like.dtype)


def _steps_and_neurons(tape: Tape, g: Tensor) -> tuple[dict[str, list[Tensor]], State]:
    """The values of each step, lists over time, and those of each neuron."""
    (steps, neurons), values = tape.about, iter(tape.values)
    return {"g": list(g.unbind(0)), **{name: list(next(values).unbind(0)) for name in steps}}, dict(zip(neurons, values, strict=True))
