"""The recurrent layers of ST-RSBP's experiments: neurons on a three-dimensional grid, wired at random to those near them.

The paper says "sparse connections inside the recurrent layers" (section 4.1); the numbers are those of its authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .recurrent import RecurrentNode
from .rule import LearningRule, RuleError

INHIBITORY = 0.2  # of the neurons
# of a connection at no distance, from the kind of the column to that of the row: excitatory, inhibitory
PROBABILITY = ((0.45, 0.60), (0.30, 0.15))


def connection_probability(grid: Sequence[int], inhibitory: Tensor) -> Tensor:
    """c exp(-d^2 / 4) for each pair of neurons, `[F, F]`, from the column to the row: d is their distance on the grid of
    `grid[0] x grid[1] x grid[2]` neurons, and c a matter of their kinds, `inhibitory[F]`."""
    places = torch.cartesian_prod(*(torch.arange(float(size)) for size in grid))
    kind = inhibitory.long()
    return torch.tensor(PROBABILITY)[kind[:, None], kind[None, :]] * torch.exp(-(torch.cdist(places, places) ** 2) / 4)


class Reservoir(RecurrentNode):
    """A `RecurrentNode` of `grid[0] * grid[1] * grid[2]` neurons, of which each hears a few that are near it, itself perhaps among them.

    Which ones is drawn once, by `connection_probability`: a fifth of the neurons are inhibitory, and that decides how likely they are
    connected; weights may have either sign. `mask[F, F]` is 1 where there is a connection and goes into the `state_dict`; `weight` is 0
    elsewhere, and stays so. Weights begin uniform in +-v_threshold / 20: the paper's U[-1, 1], at its threshold of 20. With
    `trained=False` they stay as they are, and the layer is that of a liquid state machine.
    """

    mask: Tensor

    def __init__(self, grid: Sequence[int], rule: str | LearningRule | None = None, *, trained: bool = True, **options: Any) -> None:
        if len(grid) != 3 or not all(isinstance(size, int) and size > 0 for size in grid):
            raise RuleError(f"Reservoir: grid={grid!r} should be three whole numbers, at least 1, such as (5, 5, 16)")
        super().__init__(math.prod(grid), rule, **options)
        self.grid = tuple(grid)
        inhibitory = torch.rand(self.features) < INHIBITORY
        probability = connection_probability(self.grid, inhibitory)
        self.register_buffer("mask", (torch.rand_like(probability) < probability).float())
        span = float(getattr(self.rule, "v_threshold", 1.0)) / 20
        with torch.no_grad():
            nn.init.uniform_(self.weight, -span, span).mul_(self.mask)
        self.weight.requires_grad_(trained)

    def wiring(self) -> Tensor:
        return self.weight * self.mask

    def extra_repr(self) -> str:
        return f"{' x '.join(map(str, self.grid))}, {int(self.mask.sum())} connections, {super().extra_repr()}"
