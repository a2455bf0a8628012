"""Dropout that is quick on a CPU, where torch's own takes more time than the products around it.

torch draws one number of its serial generator for each element; here one draw of 64 bits decides on four. Measured by
bench/dropout.py; the figures are in docs/benchmarks.md. Other devices use torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 1 << 16
"""A share of elements is rounded to so many parts; what is left is scaled by just that share."""

COMPILED: dict[str, Any] = {"fallback_random": True}
"""Option for torch.compile on a CPU: draw as without it (what the compiler writes in its place is slow)."""


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set each element to 0 with the probability `p`, at least 0 and below 1, and scale the others by 1 / (1 - p)."""
    if not training or not p:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
    return torch.where(kept, x * (_LEVELS / (_LEVELS - dropped)), 0.0)


class Dropout(nn.Dropout):
    """`dropout` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)


def quicken(model: nn.Module) -> None:
    """Put `Dropout` in the place of torch's layers, everywhere in a model."""
    for part in list(model.modules()):
        for name, child in part.named_children():
            if type(child) is nn.Dropout:
                setattr(part, name, Dropout(child.p))
