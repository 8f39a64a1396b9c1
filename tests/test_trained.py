"""What `snn-rules train` has left is loaded in Python, and predicts as it did in the training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import snn_rules
from snn_rules import RuleError
from snn_rules.cli import app
from snn_rules.data import Data, load
from snn_rules.network import network
from snn_rules.train import Config, configured, fit

DIGITS = load("digits")
WAYS = {
    "tssl": ["--setting", "mean=0.3", "--setting", "std=0.4"],
    "surrogate": ["--setting", "normalize=false", "--setting", "precision=bfloat16"],
    "strsbp": ["--T", "12", "--setting", "inhibition=0.1"],
    "stdbp": ["--option", "mode=event"],
}


@pytest.mark.parametrize("rule", WAYS)
def test_a_trained_network_predicts_as_in_its_training(rule: str, tmp_path: Path) -> None:
    words = ["train", "--rule", rule, "--epochs", "2", "--limit-train", "300", "--network", "30-10", "--out", str(tmp_path), *WAYS[rule]]
    assert CliRunner().invoke(app, words).exit_code == 0
    drawn = torch.get_rng_state()
    trained = snn_rules.load(tmp_path)
    found = trained.predict(DIGITS.test_x)
    assert float((found == DIGITS.test_y).double().mean()) == json.loads((tmp_path / "history.json").read_text())["epochs"][-1]["test_accuracy"]
    assert torch.equal(found, trained.predict(DIGITS.test_x)) and not trained.network.training
    assert torch.equal(drawn, torch.get_rng_state())
    with pytest.raises(RuleError, match=r"predict: samples of shape \[4, 64\], but the network was trained on \[N, 1, 8, 8\]"):
        trained.predict(torch.rand(4, 64))


def test_recordings_are_binned_and_cut_as_in_the_training(tmp_path: Path) -> None:
    x, y = (torch.rand(60, 20, 7) < 0.3).to(torch.uint8), torch.arange(60) % 3
    data, rule = Data("made", x[:40], y[:40], x[40:], y[40:], 3, temporal=True), configured("tssl")
    config = Config.of(rule, T=8, bin=2, epochs=1, batch_size=8, network="9-3")
    history = fit(network("9-3", rule, data.shape, 3), rule, data, config, tmp_path)
    trained = snn_rules.load(tmp_path)
    assert trained.scale is None and float((trained.predict(data.test_x) == data.test_y).double().mean()) == history.last.test_accuracy
    with pytest.raises(RuleError, match=r"trained on \[N, S, 7\]"):
        trained.predict(torch.rand(4, 7))


def test_a_folder_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=r"^load: '.*checkpoint.pt' does not exist; pass a folder that snn-rules train has written$"):
        snn_rules.load(tmp_path)
    data, rule = replace(DIGITS.limit(40), test_x=DIGITS.test_x[:20], test_y=DIGITS.test_y[:20]), configured("tssl")
    fit(network("8-10", rule, data.shape, 10), rule, data, Config.of(rule, T=3, epochs=1), tmp_path)  # a network of one's own has no string
    with pytest.raises(RuleError, match=r"load: .* holds no network that can be made from its own settings .*; load its 'network' into your own"):
        snn_rules.load(tmp_path)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    for key, value, says in (
        ("model", {}, r"\(KeyError: 'rule'\)"),
        ("model", {**state["model"], "rule": "no_such"}, "unknown rule 'no_such'"),
        ("config", {**state["config"], "network": "9-10"}, "size mismatch"),
    ):
        torch.save({**state, key: value}, path)
        with pytest.raises(RuleError, match=says) as refusal:
            snn_rules.load(tmp_path)
        assert "\n" not in str(refusal.value)
    torch.save({key: value for key, value in state.items() if key != "model"}, path)
    with pytest.raises(RuleError, match="train --resume with one more epoch writes that"):
        snn_rules.load(tmp_path)
    path.write_bytes(b"torn")
    with pytest.raises(RuleError, match="cannot be read: it is damaged"):
        snn_rules.load(tmp_path)
