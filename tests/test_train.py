"""The training loop: it learns, repeats itself for a seed, and can be broken off and gone on with."""

import math
import os
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from torch import nn

from snn_rules import RuleError, checkpoint, get_rule
from snn_rules.data import Data, load
from snn_rules.network import network
from snn_rules.train import Config, History, configured, fit

RULES = {"surrogate": {}, "tssl": {}, "strsbp": {}, "stdbp": {}, "stdbp event": {"mode": "event"}}
DIGITS = load("digits")
FEW = replace(DIGITS.limit(60), test_x=DIGITS.test_x[:40], test_y=DIGITS.test_y[:40])


def train(name: str = "tssl", data: Data = FEW, text: str = "12-10", folder: Path | None = None, resume: bool = False, **settings: Any) -> Any:
    """A short training: (network, history)."""
    stop = settings.pop("stop_after", None)

    def watch(epoch: int, history: History) -> None:
        if epoch == stop:
            raise KeyboardInterrupt

    rule = configured(name.split()[0], RULES[name])
    steps = 12 if name == "stdbp" else 6  # its clock needs time for two layers to fire, one after the other
    config = Config.of(rule, **{"epochs": 2, "batch_size": 20, "T": steps, "network": text, **settings})
    torch.manual_seed(config.seed)
    net = network(text, rule, data.shape, data.classes)
    return net, fit(net, rule, data, config, folder, resume, on_epoch=watch)


def curve(history: History) -> list[dict[str, Any]]:
    """What does not depend on the clock."""
    return [{k: v for k, v in asdict(epoch).items() if k not in ("seconds", "step_ms", "peak_mb")} for epoch in history.epochs]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_every_rule_goes_through_the_same_loop(name: str) -> None:
    net, history = train(name)
    other, again = train(name)
    assert curve(history) == curve(again) and same(net, other)  # a seed, a curve
    for epoch in history.epochs:
        assert math.isfinite(epoch.loss) and 0 <= epoch.train_accuracy <= 1 and 0 <= epoch.test_accuracy <= 1
        assert list(epoch.firing) == ["neuron1", "neuron2"] and all(0 <= rate <= 1 for rate in epoch.firing.values())
        mean = (12 * epoch.firing["neuron1"] + 10 * epoch.firing["neuron2"]) / 22
        assert epoch.firing_mean == pytest.approx(mean) and epoch.seconds > 0 and epoch.step_ms > 0
    assert curve(history) != curve(train(name, seed=1)[1])


def test_it_learns() -> None:
    _, history = train("tssl", DIGITS, "64-10", epochs=6, batch_size=50, T=5)
    losses = [epoch.loss for epoch in history.epochs]
    assert history.last.test_accuracy > 0.75 and losses == sorted(losses, reverse=True)
    assert history.epochs[history.best].test_accuracy == max(epoch.test_accuracy for epoch in history.epochs)


def test_bfloat16_is_of_products_and_not_of_weights() -> None:
    net, half = train("tssl", DIGITS, "64-10", epochs=3, batch_size=50, T=5, precision="bfloat16")
    _, whole = train("tssl", DIGITS, "64-10", epochs=3, batch_size=50, T=5)
    assert curve(half) != curve(whole) and abs(half.last.test_accuracy - whole.last.test_accuracy) < 0.1
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}
    seen: list[torch.dtype] = []
    handle = net.dense1.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    rule = configured("tssl")
    fit(net, rule, FEW, Config.of(rule, epochs=1, precision="bfloat16"))
    handle.remove()
    assert set(seen) == {torch.bfloat16}
    with pytest.raises(RuleError, match="precision='bfloat16', but rule 'stdbp' sends exact times, which stay float32; leave it out"):
        train("stdbp event", precision="bfloat16")


def test_progress_is_told_and_the_loss_is_that_of_a_sample() -> None:
    told: list[tuple[int, int, int]] = []
    rule = get_rule("tssl")
    net, config = network("12-10", rule, FEW.shape), Config.of(rule, epochs=2, batch_size=25, lr=1e-9)
    history = fit(net, rule, FEW, config, on_step=lambda *step: told.append(step))
    assert told == [(e, s, 3) for e in (0, 1) for s in (1, 2, 3)]
    mean = fit(network("12-10", rule, FEW.shape), rule, FEW, replace(config, reduction="mean"))
    assert history.last.loss == pytest.approx(mean.last.loss, rel=0.2)  # whatever the reduction


def test_the_test_leaves_the_random_numbers_of_the_training_alone() -> None:
    states: list[torch.Tensor] = []
    rule = get_rule("strsbp")  # whose input code is random
    config = Config.of(rule, epochs=2, batch_size=20, T=6)
    for data in (FEW, replace(FEW, test_x=FEW.test_x[:1], test_y=FEW.test_y[:1])):
        fit(network("12-10", rule, data.shape), rule, data, config, on_epoch=lambda *_: states.append(torch.get_rng_state()))
    first, second = states[:2]
    assert not torch.equal(first, second)  # another order, other spikes in each epoch
    assert torch.equal(first, states[2]) and torch.equal(second, states[3])  # however large the test set


@pytest.mark.parametrize(("schedule", "factors"), [("constant", [1, 1, 1]), ("sqrt", [1, 2**-0.5, 3**-0.5]), ("cosine", [1, 0.75, 0.25])])
def test_schedules(schedule: str, factors: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: (seen.append(self.param_groups[0]["lr"]), step(self, *a))[1])
    train(epochs=3, batch_size=60, lr=0.01, schedule=schedule)
    assert seen == pytest.approx([0.01 * factor for factor in factors])


def test_the_rules_settings_are_defaults() -> None:
    rule = get_rule("tssl")
    assert Config.of(rule) == Config(T=5, lr=rule.training.lr, batch_size=rule.training.batch_size, clip=1.0, reduction="sum", normalize=True)
    assert Config.of(rule, lr=0.1, T=None).lr == 0.1 and Config.of(rule, lr=0.1, T=None).T == 5
    assert configured("surrogate").decay_input is False and configured("surrogate", {"decay_input": True}).decay_input is True
    assert configured("surrogate", {"tau": 7}).tau_m == 7.0


SETTINGS = [
    ({"T": 0}, "T=0 should be a whole number, at least 1"),
    ({"epochs": 0}, "epochs=0 should be"),
    ({"batch_size": -1}, "batch_size=-1 should be"),
    ({"lr": 0.0}, "lr=0.0 should be a number above 0"),
    ({"lr": math.nan}, "lr=nan should be"),
    ({"clip": 0}, "clip=0 should be a number above 0, or left out"),
    ({"mean": 0.1, "std": -1.0}, "std=-1.0 should be a number above 0, or left out"),
    ({"weight_decay": -0.1}, "weight_decay=-0.1 should be a number, at least 0"),
    ({"schedule": "step"}, "schedule='step' is not one of constant, sqrt, cosine"),
    ({"optimizer": "sgd"}, "optimizer='sgd' is not one of adamw, adam"),
    ({"precision": "half"}, "precision='half' is not one of float32, bfloat16"),
    ({"device": "tpu"}, "device='tpu' is not one of cpu, cuda"),
]


@pytest.mark.parametrize(("settings", "says"), SETTINGS)
def test_impossible_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RuleError, match="training: " + says):
        Config(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device here")
def test_no_device() -> None:
    with pytest.raises(RuleError, match="torch sees no CUDA device here"):
        Config(device="cuda")


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    rule = get_rule("surrogate")
    spoilt = replace(FEW, train_x=torch.zeros_like(FEW.train_x))

    class Spoilt(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_full((*x.shape[:2], 10), math.nan, requires_grad=True)

    net = nn.Sequential(Spoilt(), nn.Linear(10, 10))
    with pytest.raises(RuleError, match="the loss is nan in epoch 1, step 1; lower the learning rate"):
        fit(net, rule, spoilt, Config.of(rule, epochs=1))


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_a_broken_training_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, history = train(name, epochs=4, schedule="cosine")
    with pytest.raises(KeyboardInterrupt):
        train(name, epochs=4, schedule="cosine", folder=tmp_path, stop_after=1)
    net, resumed = train(name, epochs=4, schedule="cosine", folder=tmp_path, resume=True)
    assert curve(resumed) == curve(history) and same(net, whole)


def test_more_epochs(tmp_path: Path) -> None:
    whole, history = train(epochs=3)
    train(epochs=2, folder=tmp_path)
    net, resumed = train(epochs=3, folder=tmp_path, resume=True)
    assert curve(resumed) == curve(history) and same(net, whole)
    assert curve(train(epochs=3, folder=tmp_path, resume=True)[1]) == curve(history)  # nothing left to do


def test_a_training_is_not_overwritten(tmp_path: Path) -> None:
    train(folder=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(RuleError, match="holds a training already; pass --resume to go on with it, or another --out"):
        train(folder=tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


DIFFERENT = [
    ({"lr": 0.5}, r"lr 0.0005 there, 0.5 here"),
    ({"seed": 3}, r"seed 0 there, 3 here"),
    ({"text": "13-10"}, r"network '12-10' there, '13-10' here"),
    ({"name": "surrogate"}, r"rule 'tssl' there, 'surrogate' here"),
    ({"data": FEW.limit(50)}, r"samples for training 60 there, 50 here"),
    ({"data": FEW.hold_out(10)}, r"samples for training 60 there, 50 here; samples held out 0 there, 10 here"),
    ({"schedule": "cosine"}, r"schedule 'constant' there, 'cosine' here"),
]


@pytest.mark.parametrize(("changed", "says"), DIFFERENT)
def test_a_checkpoint_of_another_training(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    train(folder=tmp_path, lr=5e-4, epochs=1)
    with pytest.raises(RuleError) as refusal:
        train(**{"lr": 5e-4, "epochs": 2, **changed}, folder=tmp_path, resume=True)
    message = str(refusal.value)
    assert "is of another training: " in message and says in message and str(tmp_path / "checkpoint.pt") in message and "\n" not in message


def test_a_checkpoint_of_another_rule_configuration(tmp_path: Path) -> None:
    def train_with(tau_m: float, resume: bool) -> History:
        rule = get_rule("tssl", tau_m=tau_m)
        return fit(network("12-10", rule, FEW.shape), rule, FEW, Config.of(rule, epochs=1), tmp_path, resume)

    train_with(5.0, resume=False)
    with pytest.raises(RuleError, match=r"option tau_m 5.0 there, 6.0 here; pass the same settings"):
        train_with(6.0, resume=True)


def test_a_network_that_the_settings_do_not_tell_apart(tmp_path: Path) -> None:
    train(folder=tmp_path, epochs=1)
    rule = get_rule("tssl")
    config = Config.of(rule, epochs=2, batch_size=20, T=6, network="12-10")
    with pytest.raises(RuleError, match="is of another network: ") as refusal:
        fit(network("13-10", rule, FEW.shape), rule, FEW, config, tmp_path, resume=True)
    assert "\n" not in str(refusal.value)


class Evil:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "code", "pickle", "other content"])
def test_unreadable_checkpoints_are_named_and_left_alone(damage: str, tmp_path: Path) -> None:
    path, trap = tmp_path / "checkpoint.pt", tmp_path / "trap"
    train(folder=tmp_path, epochs=2)
    raw = path.read_bytes()
    if damage == "code":
        torch.save({"format": 1, "network": Evil(str(trap))}, path)
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Evil(str(trap))))
    elif damage == "other content":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes({"truncated": raw[: len(raw) // 2], "empty": b"", "text": b"hello"}[damage])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(RuleError) as refusal:
        train(folder=tmp_path, epochs=3, resume=True)
    message = str(refusal.value)
    says = "was not written by this version" if damage == "other content" else "cannot be read: it is damaged, or holds code, which is never run"
    assert repr(str(path)) in message and says in message and "\n" not in message
    assert f"the one before it can be used: copy {str(path) + '.previous'!r} over it" in message
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before and not trap.exists()
    path.write_bytes(checkpoint.previous(path).read_bytes())  # do as it says
    assert curve(train(folder=tmp_path, epochs=3, resume=True)[1]) == curve(train(epochs=3)[1])


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=r"checkpoint .*nowhere/checkpoint.pt' does not exist; train without --resume first"):
        train(folder=tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()
    train(folder=tmp_path, epochs=2)
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(RuleError, match=r"does not exist; the one before it can be used: copy '.*checkpoint.pt.previous' over it"):
        train(folder=tmp_path, resume=True)


def test_a_full_disk_leaves_the_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(folder=tmp_path, epochs=2)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RuleError, match=r"checkpoint.pt' cannot be written \(.*No space left on device\); what was there is untouched"):
        train(folder=tmp_path, epochs=3, resume=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(RuleError, match="is in use by another training; wait for it, or choose another --out"):
        train(folder=tmp_path)
    train(folder=tmp_path, epochs=1)  # and then it is free


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RuleError, match=r"cannot be used as a folder for the training \(.*\); choose another --out"):
        train(folder=tmp_path / "file")
