"""Faster dropout and GELU for CPUs, where torch's take as long as the matrix products.

For dropout, torch draws a number from a serial generator for each element; here one draw of 64 bits decides on four.
transformers computes GELU in nine operations; here it is one. docs/experiments.md has the measurements.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Options of torch.compile on a CPU: draw random numbers as in eager mode. The compiler's own generator is slow.
COMPILE_OPTIONS: dict[str, Any] = {"fallback_random": True}

# 16 of the 64 bits of a draw decide on an element, so a probability is rounded to a multiple of 1 / 65,536.
_LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set each element to 0 with probability `p` (0 <= p < 1) and scale the others by 1 / (1 - p).

    On other devices this is torch's dropout.
    """
    if not training or not p:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)  # (elements / 4,)
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2  # like x
    return torch.where(keep, x * (_LEVELS / (_LEVELS - dropped)), 0.0)


class Dropout(nn.Dropout):
    """`dropout` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)


def gelu(x: Tensor) -> Tensor:
    """Compute GPT-2's GELU (`gelu_new`): x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), in x's dtype."""
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    # (1 + tanh u) / 2 = sigmoid(2 u), and a compiled exp takes a third of the time of a compiled tanh.
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.sigmoid(math.sqrt(8 / math.pi) * (wide + 0.044715 * wide * wide * wide))).to(x.dtype)


class GELU(nn.Module):
    """`gelu` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input)


def replace_layers(model: nn.Module) -> None:
    """Replace torch's dropout and transformers' GELU everywhere in a model."""
    from transformers.activations import NewGELUActivation

    for part in list(model.modules()):
        for name, child in part.named_children():
            if type(child) is nn.Dropout:
                setattr(part, name, Dropout(child.p))
            elif type(child) is NewGELUActivation:
                setattr(part, name, GELU())
