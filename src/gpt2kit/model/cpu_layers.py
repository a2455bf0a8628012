"""Layers that have no matrices and yet took as long as those that do: dropout and GPT-2's GELU, quick on a CPU.

torch draws one number of its serial generator for each element that may be dropped; here one draw of 64 bits decides on
four. The library writes GELU as nine operations; here it is one, and compiled it takes the cheaper of two equal
formulas. Measured by bench/quick_layers.py; the figures are in docs/benchmarks.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 1 << 16
"""A share of elements is rounded to so many parts; what is left is scaled by just that share."""

COMPILED: dict[str, Any] = {"fallback_random": True}
"""Option for torch.compile on a CPU: draw as without it (what the compiler writes in its place is slow)."""


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set each element to 0 with the probability `p`, at least 0 and below 1, and scale the others by 1 / (1 - p).

    On other devices than a CPU it is torch's.
    """
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


def gelu(x: Tensor) -> Tensor:
    """GPT-2's (`gelu_new`): x (1 + tanh u) / 2, with u = sqrt(2 / pi) (x + 0.044715 x^3), in x's dtype.

    (1 + tanh u) / 2 is sigmoid(2 u), and a compiler's exp takes a third of the time of its tanh.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.sigmoid(math.sqrt(8 / math.pi) * (wide + 0.044715 * wide * wide * wide))).to(x.dtype)


class GELU(nn.Module):
    """`gelu` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input)


def quicken(model: nn.Module) -> None:
    """Put these layers in the place of torch's and the library's, everywhere in a model."""
    from transformers.activations import NewGELUActivation

    for part in list(model.modules()):
        for name, child in part.named_children():
            if type(child) is nn.Dropout:
                setattr(part, name, Dropout(child.p))
            elif type(child) is NewGELUActivation:
                setattr(part, name, GELU())
