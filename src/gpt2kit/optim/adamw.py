"""Parameter groups of a GPT-2, and AdamW with defaults for training one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

# The weight decay of an optimizer that does not train a run.
DEFAULT_DECAY = 0.1
# The learning rate of a model of this width from random weights. It falls with the width, and is at most twice as high.
LR, _WIDTH = 1e-3, 256


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split the trained parameters into two groups for any torch optimizer.

    The first holds the hidden matrices, which decay; the second biases, norms and embeddings, which do not. `parts` has
    the number of matrices that are side by side in each one: GPT-2 stores the queries, keys and values of all heads in
    one matrix.
    """
    heads: int = model.config.n_head  # type: ignore[union-attr, assignment]
    # The output layer shares the token embedding's weight, so it needs no case of its own.
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in trained.items() if p.ndim >= 2 and id(p) not in embeddings}
    parts = [3 * heads if name.endswith("c_attn.weight") else 1 for name in matrices]
    rest = [p for name, p in trained.items() if name not in matrices]
    return [{"params": list(matrices.values()), "parts": parts}, {"params": rest, "weight_decay": 0.0}]


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW with defaults for training a GPT-2.

    Args:
        params: Parameter groups.
        lr: Learning rate. auto: by the width of the model, and lower from pretrained weights.
        betas: Decay rates of the running means of the gradient and of its square.
        eps: Added to the denominator.
        weight_decay: Weight decay of the hidden matrices. auto: by the number of passes over the text, else 0.1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Literal["auto"] = "auto",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float | Literal["auto"] = "auto",
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay}
        # The options that the caller sets later: GPT2Module knows the width and the number of passes.
        self.automatic = {name for name, value in options.items() if value == "auto"}
        lr = LR if lr == "auto" else lr
        decay = DEFAULT_DECAY if weight_decay == "auto" else weight_decay
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True)

    @staticmethod
    def rates(width: int) -> dict[str, float]:
        """Return the learning rate that `auto` means for random weights."""
        return {"lr": LR * min(_WIDTH / width, 2)}
