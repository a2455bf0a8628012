from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpt2kit.evaluation import statistics
from gpt2kit.evaluation.statistics import UnitScores, measure_spread
from gpt2kit.metrics import Score


def scores_of(documents: int, seed: int = 0) -> UnitScores:
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 100, documents)
    nll = tokens * (2.0 + random.normal(0, 0.3, documents))
    return UnitScores(nll, tokens, tokens * 4, tokens * 3, tokens // 2)


def bits_per_byte(score: Score) -> float:
    return score.bits_per_byte


def test_the_weighted_mean_over_documents_is_the_figure_of_the_text() -> None:
    scores = scores_of(50)
    spread, total = measure_spread(scores), scores.total()
    assert spread["loss"]["mean"] == pytest.approx(total.loss)
    assert spread["bits_per_byte"]["mean"] == pytest.approx(total.bits_per_byte)
    assert spread["perplexity"]["mean"] > total.perplexity, "exp is convex"
    losses = np.repeat(scores.nll / scores.tokens, scores.tokens)  # of each token's document
    assert spread["loss"]["sd"] == pytest.approx(losses.std())
    one = measure_spread(UnitScores(*(np.array([v]) for v in (3.0, 2, 4, 4, 1))))
    assert one["loss"]["sd"] == 0 and one["loss"]["mean"] == 1.5


def test_a_document_without_tokens_has_no_weight() -> None:
    scores = UnitScores(np.array([2.0, 0.0]), *(np.array([2, 0]) for _ in range(4)))
    assert measure_spread(scores)["loss"]["mean"] == 1.0 and measure_spread(scores)["loss"]["sd"] == 0.0


@pytest.mark.parametrize("units", [20, 200])
def test_a_95_percent_interval_contains_the_truth_95_percent_of_the_time(units: int) -> None:
    """For texts cut into blocks whose losses are correlated, see bench/intervals.py."""
    truth = scores_of(200_000, seed=1).total().loss
    intervals = [statistics.bootstrap(scores_of(units, seed=seed), 0)["loss"] for seed in range(2, 102)]
    inside = sum(low <= truth <= high for low, high in intervals)
    assert 90 <= inside <= 99, inside


def test_intervals_depend_on_the_seed_alone() -> None:
    scores = scores_of(40)
    assert statistics.bootstrap(scores, 1) == statistics.bootstrap(scores, 1) != statistics.bootstrap(scores, 2)
    low, high = statistics.bootstrap(scores, 1)["bits_per_byte"]
    assert low < scores.total().bits_per_byte < high


def test_paired_documents_show_small_differences() -> None:
    """Two models differ by 2 % on each document: their own intervals overlap, that of the difference excludes 0."""
    scores = scores_of(100)
    other = replace(scores, nll=scores.nll * 1.02)
    interval, other_interval = (statistics.bootstrap(each, 1)["bits_per_byte"] for each in (scores, other))
    assert interval[1] > other_interval[0]
    low, high = statistics.bootstrap_difference(other, scores, bits_per_byte, 1)
    assert 0 < low <= other.total().bits_per_byte - scores.total().bits_per_byte <= high
    assert statistics.bootstrap_difference(scores, scores, bits_per_byte, 1) == (0.0, 0.0)


def test_many_documents_are_resampled_in_groups() -> None:
    table = scores_of(2000).table()
    alone, grouped = (statistics.resample(table, 1, max_groups=count) for count in (2000, 300))
    widths = [np.ptp(np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])) for sums in (alone, grouped)]  # of the loss
    assert widths[1] == pytest.approx(widths[0], rel=0.25)
    assert statistics.resample(np.ones((2000, 1)), 1, max_groups=300).mean() == pytest.approx(2000, rel=0.01)
