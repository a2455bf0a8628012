"""From sums of nats to loss, perplexity and bits per byte: always a ratio of sums, never a mean of means. And the
arithmetic of a model's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Score:
    """What a model makes of a text.

    Each document's end counts as one byte, one character and one word, for its token is paid for, too.

    Args:
        nll: nats over all predicted tokens.
        tokens: predicted tokens.
        bytes: UTF-8 bytes of the text, and its documents' ends.
        characters: code points of the text, and its documents' ends; 0 if they were not counted.
        words: words of the text, and its documents' ends; 0 if they were not counted.
    """

    nll: float
    tokens: int
    bytes: int
    characters: int = 0
    words: int = 0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """e to the loss; comparable only between models with the same tokenizer."""
        return _exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits to encode a byte of the text; comparable between any two models."""
        return self.nll / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def bits_per_character(self) -> float:
        """Bits to encode a character of the text; comparable between any two models."""
        return self.nll / math.log(2) / self.characters if self.characters else math.nan

    @property
    def perplexity_per_word(self) -> float:
        """e to the nats per word; comparable between any two models."""
        return _exp(self.nll / self.words) if self.words else math.nan


FIGURES = ("loss", "perplexity", "bits_per_byte", "bits_per_character", "perplexity_per_word")
"""The properties of a Score, by the names that tables and JSON have for them."""


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def flops_per_token(shape: Mapping[str, Any], model: Any = None) -> int:
    """FLOPs of training on one token, forward and backward: 6 N + 12 L d T, as the papers on utilization count them.

    N: the weights that each token is multiplied with, which are the layers' matrices and the output embedding. The
    input embedding is looked up, and counts nothing; the two are one tensor here, so it counts once. The second term
    is attention over a whole block of T = n_positions, with no discount for what is masked. Recomputed activations,
    padding rows, norms and the optimizer do not count: it is the work that the model needs.

    With `model`, a GPT2LMHeadModel of that shape, what is frozen in it is left out: of 6 FLOPs a weight, 2 are for its
    own gradient, and 2 hand the gradient on to what comes before, which only something trained there needs.
    """
    layers, width, context = shape["n_layer"], shape["n_embd"], shape["n_positions"]
    inner = shape.get("n_inner") or 4 * width
    if model is not None:
        return _flops_of_what_is_trained(model, shape["vocab_size"] * width, width * context)
    weights = layers * (4 * width * width + 2 * width * inner) + shape["vocab_size"] * width
    return int(6 * weights + 12 * layers * width * context)


def _flops_of_what_is_trained(model: Any, head: int, products: int) -> int:
    """`head`: weights of the output embedding; `products`: those of a token's attention to a block, in a layer."""
    found, body = 0, model.transformer
    wanted = body.wte.weight.requires_grad or body.wpe.weight.requires_grad

    def through(part: nn.Module) -> None:
        nonlocal found, wanted
        for parameter in part.parameters():
            if parameter.ndim == 2:
                found += parameter.numel() * (2 + 2 * wanted + 2 * parameter.requires_grad)
            wanted |= parameter.requires_grad

    for block in body.h:
        through(block.ln_1)
        through(block.attn.c_attn)
        found += 4 * products * (3 if wanted else 1)
        for part in (block.attn.c_proj, block.ln_2, block.mlp):
            through(part)
    through(body.ln_f)
    return int(found + head * (2 + 2 * wanted + 2 * body.wte.weight.requires_grad))
