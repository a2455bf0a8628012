"""The head: from hidden states to the sum of nats, with as few logits in memory as the device likes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt2kit.data.order import IGNORE

CHUNK = 1 << 24
"""Logits that `chunked_nll` holds at once."""
_SUMMED = 4096
"""Positions whose products float16 can sum up without an overflow, which no loss scale would mend."""


def whole_nll(hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
    """Sum of nats of `targets` `[rows, T]` after `hidden` `[rows, T, n_embd]`, by all logits at once.

    `weight` `[padded size, n_embd]` is the token embedding; rows from `size` on are no tokens. What a compiler fuses:
    then float32 logits are never written.
    """
    logits = F.linear(hidden, weight)[..., :size].flatten(0, 1)
    return F.cross_entropy(wide(logits), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def chunked_nll(hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
    """The same, some positions at a time; their gradients are taken at once, so no logits are kept."""
    nll: Tensor = _Chunked.apply(hidden.flatten(0, 1), weight, targets.flatten(), size)  # type: ignore[no-untyped-call]
    return nll


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        table = weight.to(dtype)
        nll = torch.zeros((), dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None
        rows = max(CHUNK // len(weight), 1)
        if dtype == torch.float16:
            rows = min(rows, _SUMMED)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden), rows):
                states, wanted = hidden[start : start + rows].to(dtype), targets[start : start + rows, None]
                counted = wanted != IGNORE
                wanted = wanted.clamp(min=0)
                logits = (states @ table.T).to(exact)
                logits[:, size:] = -torch.inf
                logits -= logits.logsumexp(1, keepdim=True)
                nll -= logits.gather(1, wanted).mul(counted).sum()
                if grad_hidden is None and grad_weight is None:
                    continue
                slope = logits.exp_()
                slope.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=exact))
                slope = slope.mul_(counted).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[start : start + rows] = slope @ table
                if grad_weight is not None:
                    grad_weight += slope.T @ states
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.kinds = hidden.dtype, weight.dtype
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        taken = zip(ctx.saved_tensors, ctx.kinds, strict=True)
        hidden, weight = (None if grad is None else (grad * grads[0]).to(kind) for grad, kind in taken)
        return hidden, weight, None, None


def wide(logits: Tensor) -> Tensor:
    """Logits in a type that a sum over the vocabulary can be taken in."""
    return logits if logits.dtype == torch.float64 else logits.float()
