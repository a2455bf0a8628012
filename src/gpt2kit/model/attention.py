"""Attention as plain matrix products, a band of queries at a time: the fastest way on a CPU.

`torch`'s fused kernel for CPUs spends its time in the backward pass; matrix products do not. A band of queries sees
only the keys up to its end, so that most products above the diagonal are left out. Measured by bench/attention.py; the
figures are in docs/benchmarks.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2kit.model.cpu_layers import dropout as drop

HIDDEN = -3e4
"""Added to the score of a key that a query does not see: finite in every dtype, so that a query that sees nothing
(padding) does not become NaN. Numbers to add, made once for all layers, take less time than a mask to fill by."""


def use(model: Any, name: str) -> None:
    """Let a Hugging Face model compute attention by `name`: `sdpa` or `plain`, which is ours."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def bias(*args: Any, **kwargs: Any) -> Tensor:
        seen = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
        seen = seen[:1] if not seen.stride(0) else seen  # the same for each row, if nothing is padded
        return torch.where(seen, 0.0, HIDDEN)

    AttentionInterface.register("plain", plain_attention)
    AttentionMaskInterface.register("plain", bias)
    model.set_attn_implementation(name)


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention: queries `[rows, heads, T, head_size]` over as many keys or more, to `[rows, T, heads, ...]`.

    Keys beyond the queries' number come before them (a cache). `attention_mask` `[1 or rows, 1, T, keys]`: True where a
    query sees a key, or numbers to add to the scores; None: each query sees all keys up to its own.
    """
    length, keys = query.shape[2], key.shape[2]
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is None:
        attention_mask = torch.full((1, 1, length, keys), HIDDEN, device=query.device).triu(keys - length + 1)
    parts = []
    for start, end in bands(length):
        seen = keys - length + end
        scores = query[:, :, start:end] @ key[:, :, :seen].transpose(-1, -2)
        mask = attention_mask[:, :, start:end, :seen]
        scores = scores.masked_fill(~mask, HIDDEN) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
        weights = drop(F.softmax(scores, dim=-1).to(value.dtype), dropout, module.training)
        parts.append(weights @ value[:, :, :seen])
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return whole.transpose(1, 2), None


def bands(length: int) -> list[tuple[int, int]]:
    """Where the bands of queries begin and end: one for short rows, at most four (more save little and cost calls)."""
    count = 1 if length < 256 else 2 if length <= 512 else 4
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def documents_apart(inputs: Tensor, start: int) -> dict[str, Tensor]:
    """Positions that begin anew at each token `start`, and a mask `[rows, 1, T, T]`, True where a token sees another.

    A document is the `start` before it and all up to the next one; so its tokens see what they would see if it stood
    alone behind `start`.
    """
    starts = inputs == start
    place = torch.arange(inputs.shape[1], device=inputs.device)
    begun = (starts * place).cummax(dim=1).values
    document = starts.cumsum(dim=1)
    seen = (document[:, :, None] == document[:, None, :]).tril()[:, None]
    return {"attention_mask": seen, "position_ids": place - begun}
