"""Attention as plain matrix products, a band of queries at a time: the fastest way on a CPU.

torch's fused kernel for CPUs has a slow backward pass; matrix products do not. A band of queries is multiplied only
with the keys up to its end, which skips most products above the diagonal. bench/attention.py measures it;
docs/benchmarks.md has the results.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2kit.model.cpu_layers import dropout as apply_dropout

# Added to the score of a masked key: finite in every dtype, so that a query that sees nothing (padding) does not become
# NaN. Adding one tensor, which all layers share, takes less time than filling by a mask.
MASKED = -3e4


def use_attention(model: Any, name: str) -> None:
    """Set how a Hugging Face model computes attention: `sdpa`, or `plain` for `plain_attention`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def additive_mask(*args: Any, **kwargs: Any) -> Tensor:
        mask = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})  # (rows, 1, T, keys)
        mask = mask if mask.stride(0) else mask[:1]  # without padding all rows are views of one
        return torch.where(mask, 0.0, MASKED)

    AttentionInterface.register("plain", plain_attention)
    AttentionMaskInterface.register("plain", additive_mask)
    model.set_attn_implementation(name)


def plain_attention(
    module: nn.Module,
    query: Tensor,  # (rows, heads, T, head_size)
    key: Tensor,  # (rows, heads, keys, head_size); keys beyond T come before the queries (a cache)
    value: Tensor,  # like key
    attention_mask: Tensor | None,  # (1 or rows, 1, T, keys): true for a visible key, or numbers to add to the scores
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention by the interface of transformers; return `[rows, T, heads, head_size]`.

    Without a mask a query sees the keys up to its own position.
    """
    length, keys = query.shape[2], key.shape[2]
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is None:
        attention_mask = causal_mask(length, query.device, keys)
    bands = []
    for start, end in split_queries(length):
        visible = keys - length + end
        scores = query[:, :, start:end] @ key[:, :, :visible].transpose(-1, -2)  # (rows, heads, band, visible)
        mask = attention_mask[:, :, start:end, :visible]
        scores = scores.masked_fill(~mask, MASKED) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
        weights = apply_dropout(F.softmax(scores, dim=-1).to(value.dtype), dropout, module.training)
        bands.append(weights @ value[:, :, :visible])  # (rows, heads, band, head_size)
    attended = bands[0] if len(bands) == 1 else torch.cat(bands, dim=2)  # (rows, heads, T, head_size)
    return attended.transpose(1, 2), None


def causal_mask(length: int, device: torch.device, keys: int | None = None) -> Tensor:
    """Return the numbers to add to scores, `[1, 1, length, keys]`, so that a query sees no later key."""
    keys = length if keys is None else keys
    return torch.full((1, 1, length, keys), MASKED, device=device).triu(keys - length + 1)


def split_queries(length: int) -> list[tuple[int, int]]:
    """Return the start and the end of each band of queries."""
    count = 4  # more would save little and cost calls
    if length <= 512:
        count = 1 if length < 256 else 2
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def separate_documents(inputs: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Return the mask `[rows, 1, T, T]` and the positions `[rows, T]` that separate the documents in `inputs`.

    A document begins with the token `start` and ends before the next one. Its positions count from that token.
    """
    is_start = inputs == start  # (rows, T)
    index = torch.arange(inputs.shape[1], device=inputs.device)  # (T,)
    document_begin = (is_start * index).cummax(dim=1).values  # (rows, T): the position of the last `start`
    document = is_start.cumsum(dim=1)  # (rows, T): the number of the document
    mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]  # (rows, 1, T, T)
    return mask, index - document_begin
