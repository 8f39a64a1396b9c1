"""Where a neuron's states begin, what goes on from them, and what its attributes may be set to."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from snn_rules import LearningRule, RuleError, RuleNode, kernels
from snn_rules.ops import heaviside, where


@dataclass(frozen=True)
class Izhikevich(LearningRule):
    """Rests at -65 mV."""

    name = "izhikevich"
    state: ClassVar = {"v": -65.0, "u": -13.0}

    def step(self, m: Any, x: Any) -> Any:
        v = m.v + 0.04 * m.v * m.v + 5.0 * m.v + 140.0 - m.u + x
        s = heaviside(v - 30.0)
        return s, {"v": where(s > 0.0, -65.0, v), "u": m.u + 0.02 * (0.2 * m.v - m.u) + 8.0 * s}, {}


@pytest.mark.parametrize("forced", ["eager", ""])
def test_a_potential_that_does_not_rest_at_zero(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "FORCED", forced)
    x, node = torch.full((3, 2, 4), 5.0), RuleNode(Izhikevich(), step_mode="m", store_v_seq=True)
    want = kernels.Eager().forward(node.rule, x, {}, record=True)[3]
    for _ in range(2):
        assert node.v == -65.0 and node.u == -13.0
        node(x)
        assert torch.equal(node.v_seq, want) and node.v_seq[0, 0, 0] == -65 + 0.04 * 65**2 - 5 * 65 + 140 + 13 + 5
        node.reset()
    node.step_mode = "s"
    node(x[0])
    assert torch.equal(node.v, want[0])


@pytest.mark.parametrize("first", ["s", "m"])
def test_a_train_in_one_step_mode_does_not_go_on_in_the_other_while_it_learns(first: str) -> None:
    x, node = torch.rand(4, 2, 3, requires_grad=True), RuleNode("surrogate", step_mode=first)
    for k, mode in enumerate((first, "sm"[first == "s"])):
        node.step_mode = mode
        if k:
            with pytest.raises(RuleError, match=r"^RuleNode \(surrogate\): its state comes from a train that it learns from already, "):
                node(x if mode == "m" else x[0])
            node.detach()
        node(x if mode == "m" else x[0])


@pytest.mark.parametrize("rule", ["surrogate", "tssl", "strsbp", "stdbp"])
def test_every_node_can_be_printed(rule: str) -> None:
    for options in ({}, {"v_threshold": 0.7}):
        assert repr(RuleNode(rule, **options)).startswith(f"RuleNode(rule='{rule}'")
    assert "v_threshold=0.7, v_reset=-0.5" in repr(RuleNode(rule, v_threshold=0.7, v_reset=-0.5))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_single_steps_under_torch_func_and_nested_tensors_are_refused() -> None:
    node = RuleNode("surrogate")
    with pytest.raises(RuleError, match=r"^RuleNode \(surrogate\): torch.func cannot transform single steps; "):
        torch.func.grad(lambda x: node(x).sum())(torch.rand(2, 3))
    nested = torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(2, 3)], layout=torch.strided)
    with pytest.raises(RuleError, match=r"^RuleNode \(surrogate\): the input is nested; pass a dense tensor, see torch.nested.to_padded_tensor$"):
        node(nested)


@pytest.mark.parametrize(
    "value", [torch.tensor(0.5), torch.tensor([0.5, 1.0]), torch.nn.Parameter(torch.tensor(0.5))], ids=["0 axes", "1", "Parameter"]
)
def test_a_threshold_of_tensors_is_refused(value: torch.Tensor) -> None:
    with pytest.raises(RuleError, match=r"^tssl: v_threshold=.*tensor\(.*should be a number$"):
        RuleNode("tssl").v_threshold = value
