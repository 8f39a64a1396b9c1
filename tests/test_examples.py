"""The examples run, under every rule, with the loop that they show."""

import importlib
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

import snn_rules
from snn_rules.data import Data, load

EXAMPLES = Path(__file__).parents[1] / "examples"
RULES = ["surrogate", "tssl", "strsbp", "stdbp"]
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("swap_rule")


@pytest.fixture
def demo(example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for settings in example.SETTINGS.values():
        monkeypatch.setitem(settings, "epochs", 2)
    module = importlib.import_module("demo")
    monkeypatch.setattr(module, "load", lambda name: few())
    return module


def few(train: int = 64, test: int = 50) -> Data:
    data = load("digits").limit(train)
    return replace(data, test_x=data.test_x[:test], test_y=data.test_y[:test])


@pytest.mark.parametrize("rule", RULES)
def test_one_loop_trains_under_every_rule(example: ModuleType, rule: str) -> None:
    first, *rest = example.train(rule, few(320, 100), epochs=1)
    assert not rest and first > 0.2  # ten steps; chance is 0.1
    assert list(example.train(rule, few(), epochs=2)) == list(example.train(rule, few(), epochs=2))  # a seed, a curve


def test_the_loop_takes_a_rule_that_it_has_no_settings_for(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "SETTINGS", {})
    (accuracy,) = example.train("tssl", few(), epochs=1)
    assert 0 <= accuracy <= 1


def test_a_rule_that_is_not_there_is_one_line(example: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"swap_rule: .*'tsl'"):
        example.main("tsl", 0)
    assert "One training loop for every learning rule" in example.main.__doc__


def test_demo_writes_what_it_found(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stepped: list[str] = []
    monkeypatch.setattr(demo, "step_resnet", lambda name: (stepped.append(name), (2.0, 1.0))[1])
    demo.main()
    results = json.loads(Path("demo/results.json").read_text())
    assert list(results) == RULES == stepped
    assert all(result.keys() == {"accuracy", "seconds"} for result in results.values())
    assert all(0 <= result["accuracy"] <= 1 and 0 < result["seconds"] < 60 for result in results.values())
    assert Path("demo/accuracy.png").read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert all(rule in text for rule in RULES) and f"{results['tssl']['accuracy']:.1%}" in text and "demo/results.json" in text
    parts = ["of the test digits", "ResNet-18's loss from 2.00 to 1.00"]
    lines = text.splitlines()[:8]  # before the table, each as soon as it is known
    assert all(line.startswith(f"{rule}: ") and part in line for line, (part, rule) in zip(lines, product(parts, RULES), strict=True))


def test_demo_steps_a_model(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, rule: str, num_classes: int) -> nn.Module:  # the model itself: test_convert.py
        assert name == "spiking_resnet18"
        return snn_rules.build(lambda: nn.Sequential(layer.Flatten(), layer.Linear(3 * 32 * 32, num_classes), neuron.IFNode(0.2)), rule=rule)

    monkeypatch.setattr(demo, "snn_rules", SimpleNamespace(get_rule=snn_rules.get_rule, build=build))
    first, last = demo.step_resnet("tssl")
    assert 0 < last < first


def test_the_loss_of_the_model_falls(demo: ModuleType) -> None:
    first, last = demo.step_resnet("surrogate")
    assert last < first - 0.2
