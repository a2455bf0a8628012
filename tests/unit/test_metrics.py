from __future__ import annotations

import math

import pytest

from gpt2kit.metrics import Score


def test_figures_are_ratios_of_sums() -> None:
    score = Score(nll=20.0, tokens=10, bytes=40, characters=20, words=5)
    assert score.loss == 2.0
    assert score.perplexity == math.exp(2.0)
    assert score.bits_per_byte == pytest.approx(20 / math.log(2) / 40)
    assert score.bits_per_character == pytest.approx(20 / math.log(2) / 20)
    assert score.perplexity_per_word == pytest.approx(math.exp(4.0))


def test_a_uniform_guess_costs_the_logarithm_of_the_choices() -> None:
    score = Score(nll=math.log(256) * 100, tokens=100, bytes=100)
    assert score.bits_per_byte == pytest.approx(8.0) and score.perplexity == pytest.approx(256)


def test_figures_without_tokens_are_nan_and_large_ones_infinite() -> None:
    assert math.isnan(Score(0.0, 0, 0).loss) and math.isnan(Score(0.0, 0, 0).bits_per_byte)
    assert math.isnan(Score(1.0, 1, 1).bits_per_character) and math.isnan(Score(1.0, 1, 1).perplexity_per_word)
    assert Score(1e6, 1, 1).perplexity == math.inf
