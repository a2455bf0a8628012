"""The output layer and the cross-entropy: from hidden states to a sum of nats, with few logits in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt2kit.data.order import IGNORE

# Logits that are computed at a time: 64 MB in float32.
CHUNK = 1 << 24

# Positions whose gradients are summed at a time in float16: a larger sum could overflow, at any loss scale.
_FLOAT16_POSITIONS = 4096


def full_nll(hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
    """Return the sum of nats of `targets` `[rows, T]` after `hidden` `[rows, T, n_embd]`, from all logits at once.

    `weight` `[padded size, n_embd]` is the token embedding; rows from `size` on are padding. torch.compile fuses this,
    so float32 logits are never written to memory.
    """
    logits = F.linear(hidden, weight)[..., :size].flatten(0, 1)  # (rows * T, size)
    return F.cross_entropy(widen(logits), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def chunked_nll(hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
    """Return the same as `full_nll`, computed from a chunk of positions at a time.

    The gradient of a chunk is computed with its loss, so no logits are kept for the backward pass.
    """
    nll: Tensor = _ChunkedNLL.apply(hidden.flatten(0, 1), weight, targets.flatten(), size)  # type: ignore[no-untyped-call]
    return nll


class _ChunkedNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        table = weight.to(dtype)  # (padded size, n_embd)
        nll = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        positions = max(CHUNK // len(weight), 1)
        if dtype == torch.float16:
            positions = min(positions, _FLOAT16_POSITIONS)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden), positions):
                states = hidden[start : start + positions].to(dtype)  # (positions, n_embd)
                tokens = targets[start : start + positions, None]  # (positions, 1)
                counts = tokens != IGNORE
                tokens = tokens.clamp(min=0)
                logits = (states @ table.T).to(wide)  # (positions, padded size)
                logits[:, size:] = -torch.inf
                logits -= logits.logsumexp(1, keepdim=True)
                nll -= logits.gather(1, tokens).mul(counts).sum()
                if grad_hidden is None and grad_weight is None:
                    continue
                grad_logits = logits.exp_()  # the gradient is softmax minus the one-hot target
                grad_logits.scatter_add_(1, tokens, torch.full_like(tokens, -1, dtype=wide))
                grad_logits = grad_logits.mul_(counts).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[start : start + positions] = grad_logits @ table  # (positions, n_embd)
                if grad_weight is not None:
                    grad_weight += grad_logits.T @ states  # (padded size, n_embd)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        hidden, weight = (None if grad is None else (grad * grads[0]).to(dtype) for grad, dtype in saved)
        return hidden, weight, None, None


def widen(logits: Tensor) -> Tensor:
    """Return logits in a dtype in which a sum over the vocabulary is accurate: float32 or float64."""
    return logits if logits.dtype == torch.float64 else logits.float()
