"""Training images, changed anew each time they are shown, by torch's own random numbers: a resumed training goes on to the bit.

"elastic" is the distortion of Simard, Steinkraus and Platt (ICDAR 2003, section 2), which ST-RSBP (section 4.6) takes for MNIST;
"crop-flip" the random crop and horizontal flip that TSSL-BP (supplement 2.5.4) takes for CIFAR-10. Both come before `normalize`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Config
from .rule import RuleError


def check_images(config: Config, shape: Sequence[int], temporal: bool) -> None:
    """Refuse what cannot be changed so: spike trains, and images that are too small."""
    if config.augment == "off":
        return
    what = f"training: augment={config.augment!r}"
    if temporal or len(shape) != 3:
        raise RuleError(f"{what} is for images [C, H, W], not for {'spike trains' if temporal else f'samples of shape {list(shape)}'}; leave it out")
    size = min(shape[1:])
    if config.augment == "elastic" and _reach(config.elastic_sigma) >= size:
        widest = (size - 1) / 4
        here = f"elastic_sigma={config.elastic_sigma:g} is too wide for images of {shape[1]} x {shape[2]}"
        raise RuleError(f"{what}: {here}; pass at most {widest:g}, and a smaller elastic_alpha")


def augment(x: Tensor, config: Config) -> Tensor:
    """`x[N, C, H, W]` with values in [0, 1], each sample changed in its own way."""
    if config.augment == "elastic":
        return elastic(x, config.elastic_alpha, config.elastic_sigma, config.rotation, config.scaling)
    if config.augment == "crop-flip":
        return crop_flip(x, config.crop_padding)
    return x


def elastic(x: Tensor, alpha: float, sigma: float, rotation: float = 0.0, scaling: float = 0.0) -> Tensor:
    """Each pixel moved by `alpha` times a random field in [-1, 1], smoothed by a Gaussian of deviation `sigma` pixels; before that
    the image turned by at most `rotation` degrees and scaled by at most the fraction `scaling`. What comes in from outside is 0.

    torchvision's `ElasticTransform(2 alpha, sigma)`, with a field for each sample in place of one for all.
    """
    from torchvision.transforms.v2.functional import gaussian_blur

    count, _, height, width = x.shape
    moved = torch.rand(count, 2, height, width) * 2 - 1  # towards the right, downwards
    taps = 2 * _reach(sigma) + 1
    for kernel in ([taps, 1], [1, taps]):  # a Gaussian is separable: one axis after the other
        moved = gaussian_blur(moved, kernel, [sigma, sigma])
    angle = math.radians(rotation) * (torch.rand(count) * 2 - 1)
    scale = 1 + scaling * (torch.rand(count) * 2 - 1)
    cos, sin, none = torch.cos(angle) / scale, torch.sin(angle) / scale, torch.zeros(count)
    turned = torch.stack([torch.stack([cos, sin, none], 1), torch.stack([-sin, cos, none], 1)], 1)
    pixels = F.affine_grid(turned, list(x.shape), align_corners=False)
    size = torch.tensor([width, height])  # torch's coordinates go from -1 to 1
    return F.grid_sample(x, pixels + moved.permute(0, 2, 3, 1) * (2 * alpha / size), align_corners=False)


def crop_flip(x: Tensor, padding: int) -> Tensor:
    """An image of the same size out of one with `padding` zeros on each side, mirrored half of the time."""
    from torchvision.transforms import v2

    change = v2.Compose([v2.RandomCrop(x.shape[-2:], padding=padding or None), v2.RandomHorizontalFlip()])
    return torch.stack([change(image) for image in x])


def _reach(sigma: float) -> int:
    """How far the Gaussian is summed, as torchvision does."""
    return int(8 * sigma + 1) // 2
