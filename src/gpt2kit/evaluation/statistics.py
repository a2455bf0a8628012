"""Statistics over documents: the sums behind every figure, their spread, and 95 % bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.metrics import FIGURES, Score


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


RESAMPLES = 1000
_POOLED = 1 << 14
"""Of more documents, neighbours are drawn together: the same interval, in bounded time."""

_DRAWN = 1 << 21
"""Documents drawn by one call."""

Interval = tuple[float, float]


def intervals(sums: Sums, seed: int) -> dict[str, Interval]:
    """The 95 % interval of each figure; none of a single document, which says nothing of others."""
    if len(sums.nll) < 2:
        return {}
    drawn = [score_of(row) for row in resampled(sums.table(), seed)]
    return {name: _middle([getattr(score, name) for score in drawn]) for name in FIGURES}


def difference(a: Sums, b: Sums, figure: Callable[[Score], float], seed: int) -> Interval | None:
    """The 95 % interval of figure(a) - figure(b) on the same documents: paired, so what both find hard cancels out."""
    if len(a.nll) < 2:
        return None
    pairs = zip(resampled(a.table(), seed), resampled(b.table(), seed), strict=True)
    return _middle([figure(score_of(one)) - figure(score_of(other)) for one, other in pairs])


def resampled(table: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Sums over as many documents as there are, drawn with replacement, `[RESAMPLES, columns]`.

    Which ones are drawn depends on the seed and the number of documents only, so two models get the same draws.
    """
    if len(table) > _POOLED:
        table = np.add.reduceat(table, np.linspace(0, len(table), _POOLED, endpoint=False).astype(np.int64))
    random = np.random.default_rng(seed)
    found = np.empty((RESAMPLES, table.shape[1]))
    step = max(_DRAWN // len(table), 1)
    for first in range(0, RESAMPLES, step):
        drawn = random.integers(len(table), size=(min(step, RESAMPLES - first), len(table)))
        for column in range(table.shape[1]):
            found[first : first + len(drawn), column] = table[:, column][drawn].sum(1)
    return found


def _middle(values: list[float]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975], method="closest_observation")
    return float(low), float(high)
