"""A score's parts for each document of a text, and how documents differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.metrics import Score


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
