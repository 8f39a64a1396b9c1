"""Mean pooling over windows that lie side by side."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import layer
from torch import Tensor


class AvgPool2d(layer.AvgPool2d):  # type: ignore[misc]
    """SpikingJelly's, times `gain`; on a CPU by one matrix product: torch's pooling of maps in this layout uses no vectors."""

    def __init__(self, size: int, gain: float = 1.0) -> None:
        super().__init__(size)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        size, (height, width) = self.kernel_size, x.shape[-2:]
        if x.device.type != "cpu" or height % size or width % size:
            return super().forward(x) * self.gain  # type: ignore[no-any-return]
        window: Tensor = torch.eye(width // size, dtype=x.dtype).repeat_interleave(size, 0).repeat(size, 1) * (self.gain / size**2)
        return torch.matmul(x.reshape(*x.shape[:-2], height // size, size * width), window)  # `size` rows of pixels make one row of windows

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gain={self.gain:g}"
