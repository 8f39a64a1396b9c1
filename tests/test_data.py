"""Data sets, from tiny files written here."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from snn_rules import RuleError, data

TRAIN, TEST = 7, 3


def write_idx(folder: Path, gz: bool = False) -> None:
    """Four idx files: pixel (i, y, x) of the training images is i + y + x."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        images = np.add.outer(np.arange(count), np.add.outer(np.arange(4), np.arange(4))).astype(np.uint8)
        for name, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", np.arange(count, dtype=np.uint8))):
            raw = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()
            (folder / f"{prefix}-{name}{'.gz' * gz}").write_bytes(gzip.compress(raw) if gz else raw)


def test_digits() -> None:
    digits, again = data.load("digits"), data.load("digits")
    assert digits.train_x.shape == (1437, 1, 8, 8) and digits.test_x.shape == (360, 1, 8, 8) and digits.classes == 10
    assert digits.train_x.dtype == torch.float32 and digits.train_y.dtype == torch.int64
    assert digits.train_x.min() == 0 and digits.train_x.max() == 1
    assert torch.equal(digits.train_x, again.train_x) and torch.equal(digits.test_y, again.test_y)
    assert digits.test_y.bincount().min() >= 34  # stratified: 360 in ten classes
    assert len(digits.limit(5).train_y) == 5 and len(digits.limit(5).test_y) == 360 and len(digits.limit(None).train_y) == 1437
    with pytest.raises(RuleError, match="0 samples for training are too few"):
        digits.limit(0)
    held = digits.hold_out(37)
    assert torch.equal(held.test_x, digits.train_x[-37:]) and torch.equal(held.test_y, digits.train_y[-37:]) and held.held_out == 37
    assert torch.equal(held.train_x, digits.train_x[:1400]) and len(held.train_y) == 1400 and digits.hold_out(None) is digits
    for count in (0, 1437):
        with pytest.raises(RuleError, match=f"{count} samples cannot be held out of 1437 for training; take at least 1, and leave some"):
            digits.hold_out(count)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "MNIST/raw"), ("mnist", "mnist"), ("mnist", "."), ("fashion-mnist", "FashionMNIST/raw"), ("fashion-mnist", "fashion-mnist")],
)
def test_idx_files_where_they_usually_lie(tmp_path: Path, name: str, folder: str, gz: bool) -> None:
    write_idx(tmp_path / folder, gz)
    loaded = data.load(name, tmp_path)
    assert loaded.name == name and loaded.shape == (1, 4, 4)
    assert len(loaded.train_y) == TRAIN and len(loaded.test_y) == TEST
    assert torch.equal(loaded.train_y, torch.arange(TRAIN))
    assert torch.equal(loaded.train_x[2, 0] * 255, 2.0 + torch.arange(4)[:, None] + torch.arange(4))


def test_debians_folder_of_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.FOLDERS["fashion-mnist"][1] == ("/usr/share/datasets/fashion-mnist",)
    write_idx(tmp_path / "debian", gz=True)
    monkeypatch.setitem(data.FOLDERS, "fashion-mnist", (("fashion-mnist",), (str(tmp_path / "debian"),)))
    assert len(data.load("fashion-mnist", tmp_path / "nowhere").train_y) == TRAIN


def test_missing_files_say_where_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.FOLDERS, "fashion-mnist", (("FashionMNIST/raw",), (str(tmp_path / "debian"),)))
    with pytest.raises(RuleError) as refusal:
        data.load("fashion-mnist", tmp_path)
    message = str(refusal.value)
    assert "data set 'fashion-mnist': no train-images-idx3-ubyte[.gz]" in message
    assert str(tmp_path / "FashionMNIST/raw") in message and str(tmp_path / "debian") in message
    assert "--data-root" in message and "--download" in message and "apt install dataset-fashion-mnist" in message and "\n" not in message
    with pytest.raises(RuleError, match="data set 'mnist': no train-images") as other:
        data.load("mnist", tmp_path)
    assert "apt install" not in str(other.value)


def test_three_files_of_four_are_not_enough(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / data.FILES[3]).unlink()
    with pytest.raises(RuleError, match="and its three companions"):
        data.load("mnist", tmp_path)


def test_unknown_name() -> None:
    with pytest.raises(RuleError, match="unknown data set 'minst'; there are digits, mnist, fashion-mnist"):
        data.load("minst")


@pytest.mark.parametrize("damage", ["truncated", "other format", "empty", "broken gzip"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    write_idx(tmp_path, gz=damage == "broken gzip")
    path = tmp_path / (data.FILES[0] + ".gz" * (damage == "broken gzip"))
    raw = path.read_bytes()
    path.write_bytes({"truncated": raw[:40], "other format": b"<html>" + raw, "empty": b"", "broken gzip": raw[:20] + b"??" + raw[22:-9]}[damage])
    with pytest.raises(RuleError) as refusal:
        data.load("mnist", tmp_path)
    assert f"{str(path)!r} cannot be read" in str(refusal.value) and "fetch it again" in str(refusal.value) and "\n" not in str(refusal.value)


def test_images_and_labels_that_do_not_belong_together(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / data.FILES[1]).write_bytes((tmp_path / data.FILES[3]).read_bytes())
    with pytest.raises(RuleError, match=r"holds images of shape \[7, 4, 4\] beside labels of shape \[3\]"):
        data.load("mnist", tmp_path)


def test_download_happens_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(root: str, download: bool) -> None:
        asked.append(root)
        write_idx(Path(root) / "MNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    with pytest.raises(RuleError):
        data.load("mnist", tmp_path)
    assert not asked and len(data.load("mnist", tmp_path, download=True).train_y) == TRAIN and asked == [str(tmp_path)]
    data.load("mnist", tmp_path, download=True)
    assert len(asked) == 1  # what lies there is not fetched again


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, download: bool) -> None:
        raise RuntimeError("Error downloading x:\nTried a\nTried b")

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    with pytest.raises(RuleError, match=r"data set 'mnist': the download to .* failed \(Error downloading x: Tried a Tried b\)"):
        data.load("mnist", tmp_path, download=True)
