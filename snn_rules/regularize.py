"""Exponential weight regularisation (J. H. Lee, T. Delbruck, M. Pfeiffer, Frontiers in Neuroscience 10:508, 2016), which ST-RSBP uses.

    1/2 exp_lambda sum_i exp(exp_beta (s_i - 1)) over the neurons i, where s_i = sum_j w_ij^2 with regularize="sum", as in the paper

With regularize="mean" it is what ST-RSBP's authors' code computes instead: s_i is the mean of (w_ij / 8)^2, and the gradient of a
weight exp_lambda exp_beta (w_ij / 8) exp(exp_beta (s_i - 1)); their constants, 10 and 0.04, are for this reading.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import Config

LIMIT = 8.0  # of a weight, in the authors' code


def penalty(net: nn.Module, config: Config) -> Tensor | None:
    """What is added to the loss of a sample; None where that is nothing. Every weight matrix counts, a recurrent one by itself."""
    if config.regularize == "off":
        return None
    costs = []
    for weight in (weight.flatten(1) for weight in net.parameters() if weight.dim() > 1):
        if config.regularize == "sum":
            s, unit = weight.square().sum(1), 1.0
        else:
            s, unit = (weight / LIMIT).square().mean(1), LIMIT * weight.shape[1]  # the unit makes the gradient that of the code
        costs.append(unit * torch.exp(config.exp_beta * (s - 1)).sum())
    return 0.5 * config.exp_lambda * torch.stack(costs).sum()
