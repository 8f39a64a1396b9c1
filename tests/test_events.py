"""Recordings, from tiny files written here in the formats of their authors."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from snn_rules import RuleError, data, events, get_rule
from snn_rules.cli import app
from snn_rules.network import network
from snn_rules.train import Config, fit

pytest.importorskip("tonic")
h5py = pytest.importorskip("h5py")


def write_nmnist(root: Path) -> None:
    """Five bytes an event: x, y, polarity and 23 bits of microseconds. Training: digit i at x = i, twice in one step, and later."""
    for part, numbers in (("Train", (1, 2, 3)), ("Test", (1,))):
        for number in numbers:
            label = (5, 0, 4)[number - 1]
            (folder := root / "NMNIST" / part / str(label)).mkdir(parents=True)
            raw = b""
            for t, p in ((3000 * number, 0), (3000 * number + 2999, 0), (299_999, 1), (310_000, 1)):
                raw += bytes([number, 7, p << 7 | t >> 16, t >> 8 & 255, t & 255])
            (folder / f"{number:05d}.bin").write_bytes(raw)


def write_shd(root: Path) -> None:
    (root / "SHD").mkdir(parents=True)
    for name, labels in (("train", (3, 19)), ("test", (8,))):
        with h5py.File(root / "SHD" / f"shd_{name}.h5", "w") as file:
            kind = (h5py.vlen_dtype(np.float32), h5py.vlen_dtype(np.int32))
            times, units = (file.create_dataset(f"spikes/{key}", (len(labels),), dtype) for key, dtype in zip(("times", "units"), kind, strict=True))
            for i, label in enumerate(labels):
                times[i], units[i] = np.array([0.015, 0.505, 1.395]), np.array([label, 200, 699])
            file["labels"], file["extra/keys"], file["extra/speaker"] = np.array(labels), np.zeros(20), np.zeros(len(labels))


def write_gestures(root: Path) -> None:
    for part in ("Train", "Test"):
        (folder := root / "DVSGesture" / f"ibmGesture{part}" / "user01_led").mkdir(parents=True)
        np.save(folder / "4.npy", np.array([[9, 5, 1, 10], [127, 127, 0, 5999]]))  # x, y, polarity, ms


def write_spoken(root: Path) -> None:
    trains = [np.zeros((steps, 78), np.uint8) for steps in (3, 800, 5)]
    for i, train in enumerate(trains):
        train[i, 70 + i] = train[-1, 0] = 1
    offsets = np.cumsum([0, *map(len, trains)])
    about = {"labels": np.array([7, 8, 9]), "speaker": np.array(["ann", "ann", "bo"]), "test": np.array([True, False, False])}
    np.savez(root / events.SPOKEN, spikes=np.packbits(np.concatenate(trains), axis=1), offsets=offsets, **about)


def test_nmnist(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    found = data.load("nmnist", tmp_path)
    assert found.train_x.shape == (3, 100, 2, 34, 34) and found.train_x.dtype == torch.uint8 and found.shape == (2, 34, 34) and found.classes == 10
    assert found.train_y.tolist() == [5, 0, 4] and found.test_y.tolist() == [5]  # in MNIST's order
    for i, train in enumerate(found.train_x):  # [S, polarity, y, x]: two events in a step are one spike, what comes after 300 ms is none
        assert train.nonzero().tolist() == [[i + 1, 0, 7, i + 1], [99, 1, 7, i + 1]]


def test_shd(tmp_path: Path) -> None:
    write_shd(tmp_path)
    found = data.load("shd", tmp_path)
    assert found.train_x.shape == (2, 140, 700) and found.shape == (700,) and found.train_y.tolist() == [3, 19] and found.test_y.tolist() == [8]
    assert found.train_x[1].nonzero().tolist() == [[1, 19], [50, 200], [139, 699]]


def test_gestures(tmp_path: Path) -> None:
    write_gestures(tmp_path)
    found = data.load("dvs-gesture", tmp_path)
    assert found.train_x.shape == (1, 120, 2, 32, 32) and found.train_y.tolist() == [4] and found.classes == 11
    assert found.train_x[0].nonzero().tolist() == [[0, 1, 1, 2], [119, 0, 31, 31]]


def test_spoken_digits(tmp_path: Path) -> None:
    write_spoken(tmp_path)
    found = data.load("spoken-digits", tmp_path)
    assert found.train_x.shape == (2, 700, 78) and found.test_x[0].nonzero().tolist() == [[0, 70], [2, 0]] and found.test_y.tolist() == [7]
    trains = dict(zip(found.train_y.tolist(), found.train_x, strict=True))
    assert trains[8].nonzero().tolist() == [[1, 71]] and trains[9].nonzero().tolist() == [[2, 72], [4, 0]]  # the longest is cut
    without = data.load("spoken-digits-bo", tmp_path)
    assert sorted(without.train_y.tolist()) == [7, 8] and without.test_y.tolist() == [9]
    with pytest.raises(RuleError, match="data set 'spoken-digits-cy': no speaker 'cy'; there are ann, bo"):
        data.load("spoken-digits-cy", tmp_path)
    (tmp_path / events.SPOKEN).write_bytes(b"PK")
    with pytest.raises(RuleError, match=r"data set 'spoken-digits': '.*npz' cannot be read \(.*\); make it again"):
        data.load("spoken-digits", tmp_path)


MISSING = {
    "nmnist": r"no .*NMNIST/Train and .*NMNIST/Test; pass --data-root with the folder that holds NMNIST, or --download",
    "shd": r"no .*SHD/shd_train.h5 and .*SHD/shd_test.h5; pass --data-root",
    "dvs-gesture": r"no .*DVSGesture/ibmGestureTrain and .*ibmGestureTest; pass --data-root",
    "spoken-digits": r"no .*fsdd_lyon_bsa.npz; pass --data-root .*, or make it: pip install 'snn-rules\[speech\]', .* benchmarks/audio_to_spikes.py",
}


@pytest.mark.parametrize("name", MISSING)
def test_data_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=f"data set '{name}': {MISSING[name]}") as refusal:
        data.load(name, tmp_path)
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())
    with pytest.raises(RuleError, match=r"unknown data set 'spoken'; there are .*, spoken-digits, spoken-digits-SPEAKER"):
        data.load("spoken", tmp_path)


def test_data_that_is_damaged(tmp_path: Path) -> None:
    for folder in ("NMNIST/Train", "NMNIST/Test"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(RuleError, match=r"data set 'nmnist': '.*NMNIST' holds no recordings"):
        data.load("nmnist", tmp_path)
    write_shd(tmp_path)
    (tmp_path / "SHD" / "shd_test.h5").write_bytes(b"no")
    with pytest.raises(RuleError, match=r"data set 'shd': '.*SHD' cannot be read \(.*\); fetch it again"):
        data.load("shd", tmp_path)


def test_without_tonic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tonic.datasets", None)
    with pytest.raises(RuleError, match=r"data set 'nmnist' is read by the package tonic; pip install 'snn-rules\[events\]'"):
        data.load("nmnist", tmp_path)


def test_spike_trains_are_their_own_code(tmp_path: Path) -> None:
    write_spoken(tmp_path)
    found, rule = data.load("spoken-digits", tmp_path), get_rule("tssl")
    x = found.encode(rule, found.test_x, 2)
    assert x.shape == (2, 1, 78) and x.dtype == torch.float32 and x.nonzero().tolist() == [[0, 0, 70]]
    longer = found.encode(rule, found.test_x[:, :3], 4)
    assert longer.shape == (4, 1, 78) and longer.nonzero().tolist() == [[0, 0, 70], [2, 0, 0]]
    with pytest.raises(RuleError, match="data set 'spoken-digits' holds spike trains, but 'stdbp' sends one spike time"):
        found.encode(get_rule("stdbp", mode="event"), found.test_x, 1)


def test_coarser_time() -> None:
    spikes = torch.zeros(2, 5, 3, dtype=torch.uint8)
    spikes[0, [0, 1, 4], [0, 0, 2]] = 1
    spikes[1, 3, 1] = 1
    fine = data.Data("ear", spikes, torch.tensor([0, 1]), spikes[1:], torch.tensor([1]), 2, temporal=True)
    coarse = fine.binned(2)
    assert coarse.train_x.tolist() == [[[1, 0, 0], [0, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]]] and fine.binned(1) is fine
    assert torch.equal(coarse.test_x, coarse.train_x[1:]) and coarse.train_x.dtype == torch.uint8
    with pytest.raises(RuleError, match="'digits': bin=2 puts steps of spike trains together, but these are images; leave it out"):
        data.load("digits").binned(2)
    rule, seen = get_rule("tssl"), []
    net = network("4-2", rule, fine.shape, 2)
    net.register_forward_pre_hook(lambda _, x: seen.append(x[0][:, 0].flatten(1)))
    fit(net, rule, fine, Config.of(rule, epochs=1, batch_size=2, bin=2, T=3))
    assert seen[0].shape == (3, 3) and seen[-1].tolist() == coarse.test_x[0].tolist()


def test_training_on_recordings(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    found, rule = data.load("nmnist", tmp_path), get_rule("tssl")
    net = network("4C5-P2-10", rule, found.shape, found.classes, pool_gain=1.1)
    config = Config.of(rule, T=5, epochs=1, batch_size=2, loss="count", desired=3, undesired=1)
    history = fit(net, rule, found, config)  # normalize, of the rule, has no meaning for spikes
    assert history.last.loss > 0 and list(history.last.firing) == ["neuron1", "neuron3"]


def test_recordings_are_heard_to_their_end(tmp_path: Path) -> None:
    write_shd(tmp_path)
    small = ["--dataset", "shd", "--data-root", str(tmp_path), "--network", "4-20", "--epochs", "1"]
    for number, (more, T) in enumerate({(): 140, ("--setting", "bin=3"): 47, ("--T", "6"): 6}.items()):
        out = tmp_path / str(number)
        done = CliRunner().invoke(app, ["train", "--rule", "tssl", *small, *more, "--out", str(out)])
        assert done.exit_code == 0 and json.loads((out / "history.json").read_text())["config"]["T"] == T, done.output
    done = CliRunner().invoke(app, ["lens", "--rules", "surrogate,tssl", *small, "--out", str(tmp_path / "lens")])
    assert done.exit_code == 0 and json.loads((tmp_path / "lens" / "lens.json").read_text())["T"] == 140, done.output
    assert data.load("digits").steps is None


def test_sounds_become_spikes(tmp_path: Path) -> None:
    pytest.importorskip("lyon")
    from scipy.io import wavfile

    spec = importlib.util.spec_from_file_location("audio_to_spikes", Path(__file__).parents[1] / "benchmarks" / "audio_to_spikes.py")
    assert spec and spec.loader
    spec.loader.exec_module(program := importlib.util.module_from_spec(spec))
    second = np.arange(8000) / 8000
    for name, hertz in (("3_ann_0", 400), ("4_ann_5", 2500)):
        wavfile.write(tmp_path / f"{name}.wav", 8000, (8000 * np.sin(2 * np.pi * hertz * second)).astype(np.int16))
    program.main(tmp_path, tmp_path / "data", r"(?P<label>\d+)_(?P<speaker>[^_]+)_(?P<index>\d+)", 5)
    found = data.load("spoken-digits", tmp_path / "data")
    assert found.test_y.tolist() == [3] and found.train_y.tolist() == [4] and found.test_x.shape == (1, 700, 78)
    low, high = found.test_x[0, :600].float().sum(0), found.train_x[0, :600].float().sum(0)
    assert low.argmax() > high.argmax() + 10 and min(low.max(), high.max()) > 20  # the ear's channels go from high to low tones
    with pytest.raises(SystemExit, match=r"audio_to_spikes: 2 wavs beneath '.*', none named 'x'; pass another folder, or --name"):
        program.main(tmp_path, tmp_path / "data", "x", 5)
    signal = np.tile(0.3 + 0.2 * np.sin(np.arange(300) / 20)[:, None], (1, 2))
    spikes = program.bsa(signal)
    made = np.stack([np.convolve(train, program.FILTER)[:300] for train in spikes.T], 1)
    assert np.abs(made - signal)[30:250].mean() < 0.06  # the filtered spikes are the signal
