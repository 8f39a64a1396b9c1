"""The options of a rule, how wrong ones are refused, and the rule as an immutable value."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import snn_rules
from snn_rules import LearningRule, RuleError, parameter
from snn_rules.registry import Registry


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tua_m": 5.0}, r"tssl: unknown option 'tua_m' \(did you mean 'tau_m'\?\); it takes decay_input, tau_m, tau_s, "),
        ({"quux": 5.0}, r"tssl: unknown option 'quux'; it takes decay_input, tau_m"),
        ({"tau_m": 0.5}, r"tssl: tau_m=0.5 should lie between 1 and inf"),
        ({"tau_m": float("nan")}, r"tssl: tau_m=nan should lie between 1 and inf"),
        ({"tau_m": "5"}, r"tssl: tau_m='5' should be a number"),
        ({"tau_m": True}, r"tssl: tau_m=True should be a number"),
        ({"tau_m": None}, r"tssl: tau_m=None should be a number"),
        ({"intra": 1}, r"tssl: intra=1 should be True or False"),
        ({"dadt": "eq12"}, r"tssl: dadt='eq12' is not one of 'code', 'shift', 'continuous'"),
        ({"tau": 5.0, "tau_m": 5.0}, r"tssl: 'tau_m' is given twice, once under its alias; keep one"),
        ({"tau_m": float("inf"), "decay_input": True}, r"tssl: decay_input=True divides the input by tau_m and needs a finite one"),
    ],
)
def test_an_impossible_option_is_refused(options: dict[str, object], message: str) -> None:
    for refused in (lambda: snn_rules.get_rule("tssl", **options), lambda: snn_rules.get_rule("tssl").replace(**options)):
        with pytest.raises(RuleError, match=f"^{message}") as refusal:
            refused()
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "message"), [(1.5, "a whole number"), (float("inf"), "a whole number"), (float("nan"), "a whole number"), (4, "lie between 0 and 3")]
)
def test_a_whole_number_stays_whole(monkeypatch: pytest.MonkeyPatch, value: float, message: str) -> None:
    monkeypatch.setattr("snn_rules.registry._registry", registry := Registry())

    @dataclasses.dataclass(frozen=True)
    class Ordered(LearningRule):
        order: int = parameter(1, low=0, high=3)
        name = "ordered"

    registry.register(Ordered)
    assert type(snn_rules.get_rule("ordered", order=2.0).order) is int
    with pytest.raises(RuleError, match=f"ordered: order={value} should {'be ' if 'whole' in message else ''}{message}"):
        snn_rules.get_rule("ordered", order=value)


def test_a_parameter_is_not_hidden_by_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snn_rules.registry._registry", registry := Registry())

    @dataclasses.dataclass(frozen=True)
    class Own(LearningRule):
        tau: float = parameter(2.0)  # LearningRule has the alias tau of tau_m
        name = "own"

    registry.register(Own)
    assert snn_rules.get_rule("own", tau=3.0).tau == snn_rules.RuleNode("own", tau=3.0).tau == 3.0
    with pytest.raises(RuleError, match=r"^own: unknown option 'tau_m' \(did you mean 'tau'\?\); it takes decay_input, tau$"):
        snn_rules.get_rule("own", tau_m=3.0)


@pytest.mark.parametrize("value", [np.float64(4), np.float32(4), np.int64(4), np.uint8(4)], ids=lambda value: type(value).__name__)
def test_a_number_of_numpy_is_a_number(value: np.generic) -> None:
    rule = snn_rules.get_rule("tssl", tau_m=value)
    assert rule == snn_rules.get_rule("tssl", tau_m=4.0) and type(rule.tau_m) is float
    delay = snn_rules.get_rule("strsbp", delay=value).delay
    assert delay == 4 and type(delay) is int
    with pytest.raises(RuleError, match="should be a number"):
        snn_rules.get_rule("tssl", tau_m=np.bool_(True))


def test_an_alias_sets_its_parameter_and_is_suggested_only_where_it_has_a_meaning() -> None:
    assert snn_rules.get_rule("tssl", tau=4) == snn_rules.get_rule("tssl", tau_m=4.0)
    with pytest.raises(RuleError) as refusal:
        snn_rules.get_rule("stdbp", tau=4)
    assert "unknown option 'tau'" in str(refusal.value)
    assert "did you mean 'tau'" not in str(refusal.value)


def test_a_rule_is_a_value() -> None:
    rule = snn_rules.get_rule("tssl", tau_m=4)
    same = snn_rules.get_rule(rule)
    other = rule.replace(tau=6, dadt="shift")
    assert rule == same == pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule)
    assert len({rule, same, other}) == 2
    assert (rule.tau_m, other.tau_m, other.dadt, other.tau_s) == (4.0, 6.0, "shift", rule.tau_s)
    assert snn_rules.get_rule(rule, tau_m=6, dadt="shift") == other != rule
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.tau_m = 5.0  # type: ignore[misc]


def test_a_rule_without_a_potential_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Toggle(LearningRule):
        name = "toggle"
        state = {"u": 0.0}  # noqa: RUF012

    @dataclasses.dataclass(frozen=True)
    class Chosen(LearningRule):
        kept: bool = parameter(True)
        name = "chosen"

        @property
        def state(self):
            return {"v": 0.0} if self.kept else {"u": 0.0}

    for make in (Toggle, lambda: snn_rules.get_rule(Chosen(), kept=False)):
        with pytest.raises(RuleError, match=r"^(toggle|chosen): its state has no 'v', the potential that node.v and store_v_seq read; give one of"):
            make()
    with pytest.raises(RuleError, match=r"Toggle'> cannot be registered: toggle: its state has no 'v'"):
        snn_rules.register(Toggle)
    assert Chosen().state == {"v": 0.0}


@pytest.mark.parametrize(
    ("keywords", "v_reset", "reset"),
    [({}, 0.0, "zero"), ({"reset": "subtract"}, None, "subtract"), ({"v_reset": None}, None, "subtract"), ({"v_reset": -0.5}, -0.5, "zero"),
     ({"v_reset": None, "reset": "subtract"}, None, "subtract"), ({"v_reset": -0.5, "reset": "zero"}, -0.5, "zero")],
)  # fmt: skip
def test_two_names_of_the_reset(keywords: dict[str, object], v_reset: float | None, reset: str) -> None:
    node = snn_rules.RuleNode("tssl", **keywords)
    assert node.v_reset == v_reset and node.v_threshold == 1.0
    assert node.rule.reset == reset and node.rule.v_threshold == 1.0 - (v_reset or 0.0)
    assert f"v_reset={v_reset}" in repr(node) if v_reset else "v_reset" not in repr(node)


@pytest.mark.parametrize(("v_reset", "reset"), [(None, "zero"), (-0.5, "subtract"), (0.0, "subtract")])
def test_two_resets_that_contradict_each_other(v_reset: float | None, reset: str) -> None:
    with pytest.raises(RuleError, match=rf"^tssl: v_reset={v_reset} and reset='{reset}' say two things; pass one of them$"):
        snn_rules.RuleNode("tssl", v_reset=v_reset, reset=reset)


@pytest.mark.parametrize("value", ["a", True, None])
@pytest.mark.parametrize("v_reset", [0.0, -0.5])
def test_a_threshold_that_is_no_number(value: object, v_reset: float) -> None:
    with pytest.raises(RuleError, match=rf"^tssl: v_threshold={value!r} should be a number$"):
        snn_rules.RuleNode("tssl", v_threshold=0.7, v_reset=v_reset).v_threshold = value
