"""What a layer can read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels.eager import DTYPES


def problem(x: Any, wanted: str) -> str | None:
    """What is wrong with `x` in the place of a dense tensor of floating-point numbers, and what to pass; None where nothing is."""
    if not isinstance(x, Tensor) or x.dtype not in DTYPES:
        given = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        return f"the input is {given}; pass {wanted}"
    if x.layout is not torch.strided or x.is_nested:
        given = "is nested" if x.is_nested else f"has the layout {x.layout}"
        return f"the input {given}; pass a dense tensor, {'see torch.nested.to_padded_tensor' if x.is_nested else 'x.to_dense()'}"
    if x.is_meta:
        return "the input is on device 'meta', which holds no values; move the network and the input to another"
    return None
