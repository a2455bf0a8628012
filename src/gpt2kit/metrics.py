"""From sums of nats to loss, perplexity and bits per byte: always a ratio of sums, never a mean of means."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """What a model makes of a text.

    Args:
        nll: nats over all predicted tokens.
        tokens: predicted tokens.
        bytes: UTF-8 bytes of the text, and one for each document's end (its token is paid for, too).
    """

    nll: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """e to the loss; comparable only between models with the same tokenizer."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits to encode a byte of the text; comparable between any two models."""
        return self.nll / math.log(2) / self.bytes if self.bytes else math.nan
