"""How far a figure would move on other text like this one: 95 % intervals by drawing documents anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpt2kit.evaluation.per_document import Sums, score_of
from gpt2kit.metrics import FIGURES, Score

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
