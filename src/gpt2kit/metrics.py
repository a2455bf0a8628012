"""Loss, perplexity and bits per byte from sums of nats: always a ratio of sums, never a mean of means."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

# The properties of a Score. Tables and JSON use the same names.
FIGURES = ("loss", "perplexity", "bits_per_byte", "bits_per_character", "perplexity_per_word")


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    The end of each document counts as one byte, one character and one word, since the model predicts its token, too.
    """

    nll: float  # nats over all predicted tokens
    tokens: int  # predicted tokens
    bytes: int  # of the text in UTF-8
    characters: int = 0  # code points; 0: not counted
    words: int = 0  # 0: not counted

    def __add__(self, other: Score) -> Score:
        """Return the score of two texts together."""
        return Score(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def nats(self) -> float:
        """The same as `nll`."""
        return self.nll

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); comparable only between models with the same tokenizer."""
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
        """exp(nats per word); comparable between any two models."""
        return _exp(self.nll / self.words) if self.words else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
