"""Statistics over documents: the sums behind every figure, how documents differ, and 95 % bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.metrics import FIGURES, Score

RESAMPLES = 1000
# Of more documents, groups of neighbours are drawn: the same interval in bounded time.
MAX_GROUPS = 1 << 14

Interval = tuple[float, float]


@dataclass(frozen=True)
class DocumentScores:
    """A Score's parts for each document of a text, `[documents]` each; all figures are computed from them."""

    nll: NDArray[np.float64]  # nats
    tokens: NDArray[np.int64]  # this and the others count each document's end, as a Score does
    bytes: NDArray[np.int64]
    characters: NDArray[np.int64]
    words: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.nll)

    def table(self) -> NDArray[np.float64]:
        """Return all of them, `[documents, 5]`, in the order of a Score's parts."""
        return np.stack([self.nll, self.tokens, self.bytes, self.characters, self.words], 1).astype(np.float64)

    def total(self) -> Score:
        """Return the score of the whole text."""
        return make_score(self.table().sum(0))


@dataclass(frozen=True)
class WeightedStats:
    """Weighted mean and standard deviation of a figure over documents."""

    mean: float
    sd: float


def make_score(parts: NDArray[np.float64]) -> Score:
    """Return a Score from its parts, `[5]`."""
    nll, *counts = parts.tolist()
    return Score(nll, *map(round, counts))


def compare_documents(scores: DocumentScores) -> dict[str, WeightedStats]:
    """Return how the documents of a text differ, each weighted by its tokens or bytes.

    Weighted so, the means of loss and of bits per byte are those of the whole text. The mean of the perplexities is at
    least the text's perplexity, and hard documents dominate it.
    """
    loss, bits = _divide(scores.nll, scores.tokens), _divide(scores.nll / math.log(2), scores.bytes)
    with np.errstate(over="ignore"):
        perplexity = np.exp(loss)
    return {
        "loss": _average(loss, scores.tokens),
        "perplexity": _average(perplexity, scores.tokens),
        "bits_per_byte": _average(bits, scores.bytes),
    }


def _average(values: NDArray[np.float64], weights: NDArray[np.int64]) -> WeightedStats:
    with np.errstate(invalid="ignore", over="ignore"):
        mean = np.average(values, weights=weights)
        sd = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    return WeightedStats(float(mean), float(sd))


def _divide(a: NDArray[np.float64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def bootstrap(scores: DocumentScores, seed: int) -> dict[str, Interval]:
    """Return the 95 % interval of each figure; none for a single document, which says nothing about others."""
    if len(scores) < 2:
        return {}
    samples = [make_score(parts) for parts in resample(scores.table(), seed)]
    return {name: _interval([getattr(score, name) for score in samples]) for name in FIGURES}


def bootstrap_difference(
    a: DocumentScores, b: DocumentScores, figure: Callable[[Score], float], seed: int
) -> Interval | None:
    """Return the 95 % interval of figure(a) - figure(b), paired: what is hard for both models cancels out."""
    if len(a) < 2:
        return None
    pairs = zip(resample(a.table(), seed), resample(b.table(), seed), strict=True)
    return _interval([figure(make_score(parts_a)) - figure(make_score(parts_b)) for parts_a, parts_b in pairs])


def resample(table: NDArray[np.float64], seed: int, max_groups: int = MAX_GROUPS) -> NDArray[np.float64]:
    """Return sums over as many documents as there are, drawn with replacement, `[RESAMPLES, columns]`.

    Which ones are drawn depends on the seed and the number of documents only, so two models get the same draws.
    """
    if len(table) > max_groups:
        table = np.add.reduceat(table, np.linspace(0, len(table), max_groups, endpoint=False).astype(np.int64))
    random, count = np.random.default_rng(seed), len(table)
    return np.stack([table[random.integers(count, size=count)].sum(0) for _ in range(RESAMPLES)])


def _interval(values: list[float]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975], method="closest_observation")
    return float(low), float(high)
