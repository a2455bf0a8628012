"""From sums of nats to loss, perplexity and bits per byte: always a ratio of sums, never a mean of means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


@dataclass(frozen=True)
class Sums:
    """A Score's parts for each document of a text; every figure of test.py is made of these.

    Args:
        nll: `[documents]`, nats.
        tokens: `[documents]`; this and the others count each document's end as a Score does.
        bytes: `[documents]`.
        characters: `[documents]`.
        words: `[documents]`.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]
    characters: NDArray[np.int64]
    words: NDArray[np.int64]

    def table(self) -> NDArray[np.float64]:
        """All of them, `[documents, 5]`, in the order of a Score's parts."""
        return np.stack([self.nll, self.tokens, self.bytes, self.characters, self.words], 1).astype(np.float64)

    def total(self) -> Score:
        """The score of the whole text."""
        return score_of(self.table().sum(0))


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a figure over documents, each weighted by what the figure is counted by."""

    mean: float
    sd: float


def score_of(row: NDArray[np.float64]) -> Score:
    """A Score out of its parts."""
    nll, *counts = row.tolist()
    return Score(nll, *(round(count) for count in counts))


def over_documents(sums: Sums) -> dict[str, Spread]:
    """How a text's documents differ: weighted so, the mean of loss and of bits per byte is that of the whole text.

    Perplexities are weighted by tokens; their mean is at least the text's perplexity, and hard documents rule it.
    """
    loss, bits = _ratio(sums.nll, sums.tokens), _ratio(sums.nll / math.log(2), sums.bytes)
    with np.errstate(over="ignore"):
        perplexity = np.exp(loss)
    return {
        "loss": _spread(loss, sums.tokens),
        "perplexity": _spread(perplexity, sums.tokens),
        "bits_per_byte": _spread(bits, sums.bytes),
    }


def _spread(values: NDArray[np.float64], weights: NDArray[np.int64]) -> Spread:
    with np.errstate(invalid="ignore", over="ignore"):
        mean = np.average(values, weights=weights)
        sd = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    return Spread(float(mean), float(sd))


def _ratio(a: NDArray[np.float64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
