"""Parameter groups of a GPT-2, and AdamW with the defaults that suit it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups for any torch optimizer: the hidden matrices, which decay, and the rest, which never does.

    The rest is biases, norms and embeddings (the token embedding is also the output layer, once). `parts` says of each
    matrix how many it holds side by side: GPT-2 keeps those for queries, keys and values in one.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in trained.items() if p.ndim >= 2 and id(p) not in embeddings}
    parts = [3 if name.endswith("c_attn.weight") else 1 for name in matrices]
    rest = [p for name, p in trained.items() if name not in matrices]
    return [{"params": list(matrices.values()), "parts": parts}, {"params": rest, "weight_decay": 0.0}]


class AdamW(torch.optim.AdamW):
    """torch's AdamW, fused, with the defaults that suit a GPT.

    Args:
        params: parameter groups.
        lr: learning rate.
        betas: of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: of the hidden matrices.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
