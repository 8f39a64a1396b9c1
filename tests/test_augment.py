"""Changed images: what changes them, that only training images are changed, and that a broken training goes on to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from snn_rules import RuleError, get_rule
from snn_rules.augment import augment, crop_flip, elastic
from snn_rules.config import Config
from snn_rules.data import Data, load
from snn_rules.network import network
from snn_rules.train import History, fit

DIGITS = load("digits")
FEW = replace(DIGITS.limit(40), test_x=DIGITS.test_x[:30], test_y=DIGITS.test_y[:30])
SETTINGS: dict[str, dict[str, Any]] = {
    "elastic": {"elastic_alpha": 3.0, "elastic_sigma": 1.5, "rotation": 10.0, "scaling": 0.1},
    "crop-flip": {"crop_padding": 1},
}


def train(name: str, folder: Path | None = None, resume: bool = False, epochs: int = 3, data: Data = FEW) -> tuple[Any, list[float]]:
    rule = get_rule("tssl")
    config = Config.of(rule, epochs=epochs, batch_size=20, augment=name, **SETTINGS.get(name, {}))
    torch.manual_seed(0)
    history: History = fit(net := network("12-10", rule, data.shape), rule, data, config, folder, resume)
    return net.dense1.weight, [epoch.loss for epoch in history.epochs]


def test_an_elastic_distortion_is_that_of_torchvision() -> None:
    x = torch.nn.functional.pad(torch.rand(1, 3, 12, 12), [8] * 4)  # at a border that is not black torchvision dims what comes in
    for alpha, sigma in ((34.0, 4.0), (5.0, 0.7), (20.0, 2.5)):
        torch.manual_seed(1)
        want = v2.ElasticTransform(2 * alpha, sigma)(x)  # its alpha is half a pixel
        torch.manual_seed(1)
        found = elastic(x, alpha, sigma)
        torch.testing.assert_close(found, want)
        assert not torch.equal(found, x)


def test_pixels_move_as_far_as_simard_says() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(29.0).expand(200, 1, 29, 29)
    moved = (elastic(ramp, 34.0, 4.0) - ramp)[..., 8:21, 8:21]
    # 34 times the deviation of uniform noise under a Gaussian: sqrt(1/3) / (2 sqrt(pi) 4)
    assert moved.std().item() == pytest.approx(34 / 3**0.5 / (2 * torch.pi**0.5 * 4), rel=0.05) and abs(moved.mean()) < 0.1


def test_each_sample_is_changed_in_its_own_way() -> None:
    x = torch.rand(1, 1, 28, 28).expand(6, 1, 28, 28)
    for config in (Config(augment="elastic"), Config(augment="crop-flip")):
        torch.manual_seed(2)
        first, second = augment(x, config), augment(x, config)
        assert len({tuple(image.flatten().tolist()) for image in (*first, *second)}) == 12 and first.shape == x.shape
        torch.manual_seed(2)
        assert torch.equal(augment(x, config), first)
    assert augment(x, Config()) is x


def test_rotation_and_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", torch.ones)  # as far as they go
    x = torch.arange(25.0).view(1, 1, 5, 5)
    torch.testing.assert_close(elastic(x, 0.0, 1.0, rotation=90.0), torch.rot90(x, -1, (2, 3)))
    twice, half = elastic(x, 0.0, 1.0, scaling=1.0), torch.arange(-1, 1.5, 0.5)
    torch.testing.assert_close(twice[0, 0], x[0, 0, 2, 2] + half + 5 * half[:, None])


def test_crops_and_flips() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 6, 6)
    padded = torch.nn.functional.pad(image, [2] * 4)
    windows = [padded[..., i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
    possible = {tuple(each.flatten().tolist()) for window in windows for each in (window, window.flip(-1))}
    found = {tuple(each.flatten().tolist()) for each in crop_flip(image.expand(600, 3, 6, 6), 2)}
    assert found == possible and len(found) == 50
    assert {tuple(each.flatten().tolist()) for each in crop_flip(image.expand(20, 3, 6, 6), 0)} == {
        tuple(each.flatten().tolist()) for each in (image, image.flip(-1))
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_only_training_images_are_changed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, seen = get_rule("tssl"), []
    monkeypatch.setattr(type(rule), "encode", lambda self, x, T: (seen.append(x), torch.zeros(T, *x.shape))[1])
    config = Config(epochs=1, batch_size=40, augment=name, **SETTINGS[name])
    fit(network("12-10", rule, FEW.shape), rule, FEW, config)
    trained, tested = seen
    assert torch.equal(tested, FEW.test_x) and trained.shape == FEW.train_x.shape
    assert sum(any(torch.equal(image, original) for original in FEW.train_x) for image in trained) < 10  # a crop may be the image itself


@pytest.mark.parametrize("name", SETTINGS)
def test_a_broken_training_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, losses = train(name)
    train(name, tmp_path, epochs=1)
    weight, resumed = train(name, tmp_path, resume=True)
    assert resumed == losses and torch.equal(weight, whole) and losses != train("off")[1]


def flat(data: Data, temporal: bool) -> Data:
    shape = (5, 1, 8, 8) if temporal else (64,)
    return replace(data, train_x=torch.zeros(40, *shape), test_x=torch.zeros(30, *shape), temporal=temporal)


REFUSALS = [
    (
        Config(augment="elastic"),
        FEW,
        "augment='elastic': elastic_sigma=4 is too wide for images of 8 x 8; pass at most 1.75, and a smaller .*alpha",
    ),
    (Config(augment="crop-flip"), flat(FEW, True), r"augment='crop-flip' is for images \[C, H, W\], not for spike trains; leave it out"),
    (Config(augment="elastic"), flat(FEW, False), r"augment='elastic' is for images \[C, H, W\], not for samples of shape \[64\]; leave it out"),
]


@pytest.mark.parametrize(("config", "data", "says"), REFUSALS)
def test_what_cannot_be_changed_is_refused_before_anything_is_written(config: Config, data: Data, says: str, tmp_path: Path) -> None:
    rule = get_rule("tssl")
    with pytest.raises(RuleError, match=f"^training: {says}$"):
        fit(network("12-10", rule, data.shape), rule, data, config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    widest = elastic(FEW.train_x[:2], 4.0, 1.75)
    assert widest.shape == FEW.train_x[:2].shape
