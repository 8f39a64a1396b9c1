"""Recipes, what they add to the training, and the papers' tables made of them."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from snn_rules import RuleError, get_rule, recipes
from snn_rules.cli import app
from snn_rules.data import load
from snn_rules.network import network, parse
from snn_rules.train import Config, configured, fit

ROOT = Path(__file__).parents[1]
DIGITS = load("digits").limit(60)
TINY = """
rule = "tssl"
dataset = "digits"
network = "8-10"
[train]
epochs = 2
T = 4
lr = 0.02
batch_size = 5
clamp = 0.5
[options]
tau_m = 4
[paper]
mean = 99.5
best = 99.6
epochs = 9
"""


def module(name: str) -> ModuleType:
    """A program of benchmarks/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    spec.loader.exec_module(made := importlib.util.module_from_spec(spec))
    return made


@pytest.fixture
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/papers.py, in a folder with recipes of its own."""
    programs = module("papers")
    monkeypatch.chdir(tmp_path)
    Path("recipes/tssl").mkdir(parents=True)
    Path("recipes/tssl/digits-8.toml").write_text(TINY)
    monkeypatch.setattr(recipes, "FOLDERS", (Path("recipes"),))
    return programs


def train(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["train", *words, *([] if code else ["--limit-train", "60"])])
    assert result.exit_code == code, result.output
    return result.output


# ---- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.names())
def test_the_recipes_of_the_project(name: str) -> None:
    recipe = recipes.load(name)
    rule = configured(recipe.rule, recipe.options)
    config = Config.of(rule, **recipe.train, network=recipe.network)
    assert name == f"{recipe.rule}/{recipe.dataset}-{recipe.network.rpartition('-')[0]}" and parse(recipe.network)[-1].size == 10
    assert {"epochs", "batch_size", "lr", "schedule"} <= set(recipe.train) and (not recipe.paper or recipe.paper["source"])
    shape = {"nmnist": (2, 34, 34), "spoken-digits": (78,)}.get(recipe.dataset, (1, 28, 28))
    network(recipe.network, rule, shape, 10, config.init, config.pool_gain, thresholds=config.thresholds)
    text = (ROOT / "benchmarks" / "recipes" / f"{name}.toml").read_text()
    tables = text.partition("[train]")[2].partition("[paper]")[0]
    assert "all ours" in tables or all("#" in line or line.startswith("std =") for line in tables.splitlines() if "=" in line)  # where it is from


def test_a_recipe_trains_and_options_given_win(papers: ModuleType) -> None:
    train("--recipe", "tssl/digits-8", "--seed", "3")
    history = json.loads(Path("runs/tssl-digits-8-seed3/history.json").read_text())
    assert history["recipe"] == "tssl/digits-8" and history["options"]["tau_m"] == 4 and history["paper"]["mean"] == 99.5
    assert {key: history["config"][key] for key in ("epochs", "T", "clamp", "seed", "network")} == dict(
        epochs=2, T=4, clamp=0.5, seed=3, network="8-10"
    )
    assert history["peak_memory_mb"] > 10 and 0 <= history["epochs"][-1]["counted"]["neuron1 warmup_fraction"] <= 1
    text = train("--recipe", "tssl/digits-8", "--seed", "3", "--epochs", "3", "--resume")  # without --out
    assert text.startswith("tssl on digits: 3/3")
    train("--recipe", "recipes/tssl/digits-8.toml", "--epochs", "1", "--network", "9-10", "--option", "tau=7", "--lr", "0.1", "--out", "here")
    history = json.loads(Path("here/history.json").read_text())
    assert history["options"]["tau_m"] == 7 and history["network"] == "9-10" and history["config"]["lr"] == 0.1 and len(history["epochs"]) == 1


def test_curves_for_tensorboard(papers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("--recipe", "tssl/digits-8", "--tensorboard", "--out", "here")
    train("--recipe", "tssl/digits-8", "--tensorboard", "--out", "here", "--epochs", "3", "--resume")
    epochs = json.loads(Path("here/history.json").read_text())["epochs"]
    (curves := EventAccumulator("here/tensorboard")).Reload()
    assert {"loss", "accuracy/train", "accuracy/test", "firing/neuron1", "neuron2/warmup_fraction"} <= set(curves.Tags()["scalars"])
    found = {scalar.step: scalar.value for scalar in curves.Scalars("accuracy/test")}
    assert found == pytest.approx({number: epoch["test_accuracy"] for number, epoch in enumerate(epochs, 1)})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = train("--recipe", "tssl/digits-8", "--tensorboard", "--out", "there", code=2)
    assert "--tensorboard needs the package tensorboard; pip install 'snn-rules[tensorboard]'" in line and not Path("there").exists()


REFUSALS = [
    ('rule = "tssl', r"recipe '.*' cannot be read \(.*\); it should be a TOML file"),
    ('rule = "tssl"', "recipe '.*': dataset, network should be given"),
    (TINY + "[trian]\nT = 1", "recipe '.*': 'trian' is unknown; there are rule, dataset, network, train, options, paper"),
    (TINY.replace("clamp", "clmap"), r"recipe '.*': \[train\] knows no clmap .*; it takes T, .*clamp"),
    (TINY.replace('"8-10"', "8"), "recipe '.*': 'network' should be a text"),
]


@pytest.mark.parametrize(("text", "says"), REFUSALS)
def test_recipes_that_are_none(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(RuleError, match=says) as refusal:
        recipes.load(str(path))
    assert "\n" not in str(refusal.value)


def test_what_the_command_refuses(papers: ModuleType) -> None:
    assert "recipe 'tssl/digits-9' is no file and no name of a recipe; there are tssl/digits-8" in train("--recipe", "tssl/digits-9", code=2)
    assert "recipe 'tssl/digits-8' is for rule 'tssl', not 'stdbp'" in train("--recipe", "tssl/digits-8", "--rule", "stdbp", code=2)
    assert "pass --rule, such as --rule tssl (snn-rules list names them), or --recipe" in train(code=2)


# ---- what recipes need of the training -------------------------------------------------------------------------------


def test_clamp_decay_and_initial_weights() -> None:
    rule = get_rule("tssl")
    torch.manual_seed(0)
    net = network("100-10", rule, DIGITS.shape, init="kaiming")
    assert net.dense1.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert network("100-10", rule, DIGITS.shape).dense1.weight.abs().max() <= 64**-0.5  # the rule's: PyTorch's own
    fit(net, rule, DIGITS, Config.of(rule, epochs=1, clamp=0.1))
    assert net.dense1.weight.abs().max().item() == pytest.approx(0.1) and net.dense2.weight.abs().max() <= 0.1 + 1e-6
    (net := network("100-10", rule, DIGITS.shape)).dense1.weight.data.fill_(100.0)  # all fire: no gradient but the decay's
    fit(net, rule, DIGITS, Config.of(rule, epochs=1, lr=1e-3, weight_decay=1.0, batch_size=60))
    assert net.dense1.weight.mean().item() == pytest.approx(100 * (1 - 1e-3), abs=0.01)


def test_samples_are_scaled_by_the_numbers_given(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, seen = get_rule("tssl"), []
    monkeypatch.setattr(type(rule), "encode", lambda self, x, T: (seen.append(x), torch.zeros(T, *x.shape))[1])
    for scale in ({"mean": 0.25, "std": 0.5}, {}):
        fit(network("8-10", rule, DIGITS.shape), rule, DIGITS, Config.of(rule, epochs=1, batch_size=60, lr=1e-9, **scale))
    given, own = seen[0], seen[len(seen) // 2]
    assert (given.min(), given.max()) == (-0.5, 1.5) and own.mean().item() == pytest.approx(0, abs=1e-5) and own.std().item() == pytest.approx(1)
    with pytest.raises(RuleError, match=r"training: mean=0.1, std=None: pass both"):
        Config(mean=0.1)


def test_the_loss_of_counts() -> None:
    rule = get_rule("tssl")
    config = Config.of(rule, epochs=1, batch_size=60, lr=1e-9, loss="count", desired=3, undesired=1)
    (net := network("10", rule, DIGITS.shape)).dense1.weight.data.zero_()  # silent
    assert fit(net, rule, DIGITS, config).last.loss == pytest.approx(0.5 * (3**2 + 9 * 1**2))
    with pytest.raises(RuleError, match=r"training: loss='count' with desired=0.0, undesired=0.0: the first should be larger"):
        Config(loss="count")


# ---- tables ----------------------------------------------------------------------------------------------------------


def collected(papers: ModuleType, monkeypatch: pytest.MonkeyPatch, *folders: str) -> Any:
    monkeypatch.setattr(papers, "RESULTS", Path("results"))
    return CliRunner().invoke(papers.app, list(folders))


def test_seeds_are_merged_and_shown(papers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in ("0", "1"):
        train("--recipe", "tssl/digits-8", "--seed", seed, "--data-root", "some where")
    train("--recipe", "tssl/digits-8", "--option", "warmup=layer", "--epochs", "1", "--out", "layer")
    assert collected(papers, monkeypatch, "runs/tssl-digits-8-seed1", "runs/tssl-digits-8-seed0").exit_code == 0
    assert collected(papers, monkeypatch, "layer").exit_code == 0
    result = json.loads(Path("results/tssl-digits-8-limit_train-60.json").read_text())
    assert {key: result[key] for key in ("rule", "dataset", "network", "seeds", "epochs")} == dict(
        rule="tssl", dataset="digits", network="8", seeds=[0, 1], epochs=2
    )
    assert result["command"] == ("for seed in 0 1; do snn-rules train --recipe tssl/digits-8 --data-root DIR --limit-train 60 --seed $seed; done")
    curves = result["curves"]
    assert all(curve["best"] == max(curve["test_accuracy"]) and curve["last"] == curve["test_accuracy"][1] for curve in curves.values())
    assert result["mean"] == pytest.approx((curves["0"]["best"] + curves["1"]["best"]) / 2, abs=0.006) and result["best"] <= 100
    assert result["std"] == pytest.approx(abs(curves["0"]["best"] - curves["1"]["best"]) / 2**0.5, abs=0.001)
    assert result["samples"] == {"train": 60, "test": 360}
    assert list(result["firing_rates"]) == ["neuron1", "neuron2"] and result["versions"]["torch"] and result["peak_memory_mb"] > 10
    train("--recipe", "tssl/digits-8", "--seed", "2")
    Path("results/tssl-digits-8-limit_train-60.json").rename("both.json")
    assert collected(papers, monkeypatch, *(f"runs/tssl-digits-8-seed{seed}" for seed in range(3))).exit_code == 0
    three = json.loads(Path("results/tssl-digits-8-limit_train-60.json").read_text())
    Path("results/tssl-digits-8-limit_train-60.json").unlink()
    assert "there is no row" in str(collected(papers, monkeypatch, "--add", "runs/tssl-digits-8-seed1").exception)
    Path("both.json").rename("results/tssl-digits-8-limit_train-60.json")
    assert "has the seeds [1] already" in str(collected(papers, monkeypatch, "--add", "runs/tssl-digits-8-seed1").exception)
    assert collected(papers, monkeypatch, "--add", "runs/tssl-digits-8-seed2").exit_code == 0
    added = json.loads(Path("results/tssl-digits-8-limit_train-60.json").read_text())
    for key in ("seeds", "curves", "mean", "std", "best", "last_mean", "last_std", "config", "peak_memory_mb"):
        assert added[key] == three[key]
    assert added["synops"] == pytest.approx(three["synops"], abs=1e-3) and added["command"].startswith("for seed in 0 1 2; do ")
    Path("results/tssl-digits-8-limit_train-60.json").write_text(json.dumps(result))
    other = json.loads(Path("results/tssl-digits-8-epochs-1-warmup-layer-limit_train-60.json").read_text())
    assert other["changed"] == {"epochs": 1, "warmup": "layer", "limit_train": 60} and other["std"] is None
    lines = papers.table().splitlines()
    mean = f"{result['mean']:.2f} ± {result['std']:.2f} ({result['best']:.2f})"
    assert f"| tssl, `limit_train=60` | digits | 8 | 4 | 2 of 9 | 0, 1 | - | {mean} |" in lines[2]  # not the paper's training
    assert lines[3].startswith("| tssl, `epochs=1`, `warmup=layer`, `limit_train=60` | digits | 8 | 4 | 1 of 9 | 0 | - |") and len(lines) == 9
    Path("results/whole.json").write_text(json.dumps(result | {"changed": {}}))
    Path("results/other.json").write_text(json.dumps(result | {"changed": {}, "rule": "surrogate", "seeds": [0], "std": None, "paper": {}}))
    assert papers.cross().splitlines()[0] == "| data | network | surrogate | tssl |"
    mean = f"{result['mean']:.2f}"
    shown = f"{mean} (T 4, 2 epochs, 1 seed) | {mean} ± {result['std']:.2f} (T 4, 2 epochs, 2 seeds)"
    assert papers.cross().splitlines()[2:] == [f"| digits | 8 | {shown} |"]
    assert papers.short().splitlines()[2:] == [f"| tssl | digits | 8 | 4 | 2 of 9 | 2 | {mean} ± {result['std']:.2f} | 99.50 | {mean} (2) |"]
    Path("results/other.json").unlink()
    mean = f"{result['mean']:.2f} ± {result['std']:.2f} ({result['best']:.2f})"
    assert f"| tssl | digits | 8 | 4 | 2 of 9 | 0, 1 | 99.50 (99.60) | {mean} |" in papers.table().splitlines()[2]


def test_a_tuning_tries_every_combination_on_samples_held_out(papers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "papers", papers)
    monkeypatch.setattr(papers, "RESULTS", Path("results"))
    tune = module("tune")
    words = ["tssl/digits-8", "--set", "lr=0.02,1e-9", "--set", "tau_m=3,5", "--hold-out", "100", "--limit-train", "60", "--epochs", "1"]
    for _ in range(2):  # the second time there is nothing left to train
        result = CliRunner().invoke(tune.app, words)
        assert result.exit_code == 0, result.output
    found = json.loads(Path("results/tuning-tssl-digits-8-lr-tau_m.json").read_text())
    tried = [trial["settings"] for trial in found["trials"]]
    assert tried == [{"lr": lr, "tau_m": tau_m} for lr in (0.02, 1e-9) for tau_m in (3, 5)] and found["samples"] == {"train": 60, "test": 100}
    scores = [trial["accuracy"] for trial in found["trials"]]
    assert found["won"] == tried[scores.index(max(scores))] and max(scores[:2]) > max(scores[2:])
    history = json.loads(Path("runs/tuning/tssl-digits-8/lr=0.02,tau_m=3/history.json").read_text())
    assert history["options"]["tau_m"] == 3 and history["config"]["lr"] == 0.02 and history["hold_out"] == 100 and len(history["epochs"]) == 1
    assert scores[0] == round(100 * history["epochs"][0]["test_accuracy"], 2)
    shown = ", ".join(f"`{key}={value}`" for key, value in found["won"].items())
    assert f"| tssl | digits | 8 | 1 | {shown} | **{max(scores):.2f}** |" in tune.table() and tune.table().count("| tssl |") == 4


@pytest.mark.parametrize("rule", ["tssl", "stdbp"])
def test_figures(rule: str, papers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = module("figures")
    monkeypatch.setattr(figures, "PICTURES", Path("pictures"))
    monkeypatch.setattr(figures, "RESULTS", Path("figures.json"))
    Path("recipes/stdbp").mkdir()
    Path("recipes/stdbp/digits-8.toml").write_text(TINY.replace("tssl", "stdbp").replace("tau_m = 4", 'mode = "event"'))
    train("--recipe", f"{rule}/digits-8", "--out", "here")
    figures.main([Path("here")], Path("data"))
    numbers = json.loads(Path("figures.json").read_text())[f"{rule}-digits-8"]
    assert numbers["test_accuracy"] == round(100 * json.loads(Path("here/history.json").read_text())["epochs"][-1]["test_accuracy"], 2)
    assert Path(f"pictures/{rule}-digits-8.png").read_bytes().startswith(b"\x89PNG")
    if rule == "tssl":
        assert len(numbers["percent_with_k_spikes"]) == 5 and sum(numbers["percent_with_k_spikes"]) == pytest.approx(100, abs=0.05)
    else:
        assert 0 < numbers["hidden_fired_before_decision"] <= numbers["hidden_fired"] <= 100


def test_what_cannot_be_merged(papers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    train("--recipe", "tssl/digits-8", "--epochs", "1")
    train("--recipe", "tssl/digits-8", "--epochs", "1", "--seed", "1", "--lr", "0.1")
    assert "differ in more than the seed" in str(collected(papers, monkeypatch, "runs/tssl-digits-8-seed0", "runs/tssl-digits-8-seed1").exception)
    assert "are not all different" in str(collected(papers, monkeypatch, *["runs/tssl-digits-8-seed0"] * 2).exception)
    path = Path("runs/tssl-digits-8-seed0/history.json")
    path.write_text(path.read_text().replace('"epochs": 1,', '"epochs": 5,'))
    assert "was stopped after 1 of 5 epochs" in str(collected(papers, monkeypatch, "runs/tssl-digits-8-seed0").exception)
    assert collected(papers, monkeypatch, "runs/tssl-digits-8-seed0", "--so-far").exit_code == 0
    assert "| tssl, `epochs=5`, `limit_train=60` | digits | 8 | 4 | 1 of 9 | 0 | - |" in papers.table()


def test_the_tables_are_those_of_the_results(papers: ModuleType) -> None:
    assert papers.table() in (ROOT / "docs" / "results.md").read_text(), "run make docs"


def test_results_are_what_their_names_say(papers: ModuleType) -> None:
    for path in papers.RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        if "curves" in result:
            assert path.stem == papers.name(result) and list(result["curves"]) == [str(seed) for seed in result["seeds"]]
            assert all(len(curve["test_accuracy"]) == result["epochs"] for curve in result["curves"].values())
            assert not re.search(r"/\w+/", result["command"].replace(result["recipe"], "")), "a path of one machine"
