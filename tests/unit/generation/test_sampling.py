"""Filters and penalties, compared with transformers' own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import generation as reference

from gpt2kit.errors import CheckpointError
from gpt2kit.generation import options, sampling
from gpt2kit.generation.options import SamplingOptions

LOGITS = torch.randn(5, 400, generator=torch.Generator().manual_seed(1)) * 3
NOTHING = torch.zeros(5, 0, dtype=torch.long)
PAIRS: list[tuple[Callable[[Tensor], Tensor], object]] = [
    *((lambda x, k=k: sampling.top_k(x, k), reference.TopKLogitsWarper(k)) for k in (1, 7, 400)),
    *((lambda x, p=p: sampling.top_p(x, p), reference.TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.95, 0.9999)),
    *((lambda x, p=p: sampling.min_p(x, p), reference.MinPLogitsWarper(p)) for p in (0.001, 0.2, 1.0)),
    *((lambda x, p=p: sampling.typical_p(x, p), reference.TypicalLogitsWarper(p)) for p in (0.1, 0.5, 0.95)),
]


@pytest.mark.parametrize(("filter_logits", "warper"), PAIRS)
def test_filters_agree_with_transformers(filter_logits: Callable[[Tensor], Tensor], warper: Any) -> None:
    assert torch.equal(filter_logits(LOGITS), warper(NOTHING, LOGITS.clone()))


def test_the_order_of_filters_agrees_with_transformers() -> None:
    filtered = sampling.filter_logits(LOGITS, SamplingOptions(0.7, top_k=50, top_p=0.9, min_p=0.01, typical_p=0.9))
    warpers = [
        reference.TemperatureLogitsWarper(0.7),
        reference.TopKLogitsWarper(50),
        reference.TopPLogitsWarper(0.9),
        reference.MinPLogitsWarper(0.01),
        reference.TypicalLogitsWarper(0.9),
    ]
    expected = reference.LogitsProcessorList(warpers)(NOTHING, LOGITS.clone())
    assert torch.equal(filtered, expected)
    assert filtered.isfinite().any(-1).all()


def test_top_p_does_not_depend_on_how_many_tokens_are_sorted_first() -> None:
    assert torch.equal(sampling.top_p(LOGITS, 0.9), sampling.top_p(LOGITS, 0.9, sorted_first=2))


def test_equal_logits_are_kept_together() -> None:
    flat = torch.zeros(1, 10)
    for filtered in (
        sampling.top_k(flat, 3),
        sampling.top_p(flat, 0.3),
        sampling.min_p(flat, 1.0),
        sampling.typical_p(flat, 0.3),
    ):
        assert torch.equal(filtered, flat)


@pytest.mark.parametrize("penalty", [1.3, 0.5])
def test_the_repetition_penalty_agrees_with_transformers(penalty: float) -> None:
    texts = [[1, 2, 2], [3], [4, 5], [0], [399]]
    penalized = sampling.penalize_repetition(LOGITS, texts, penalty)
    for row, text in enumerate(texts):
        ids = torch.tensor([text])
        expected = reference.RepetitionPenaltyLogitsProcessor(penalty)(ids, LOGITS[row : row + 1].clone())
        assert torch.equal(penalized[row : row + 1], expected)
    lower = sampling.penalize_repetition(torch.tensor([[2.0, -2.0, 1.0]]), [[0, 1]], 2.0)
    assert lower.tolist() == [[1.0, -4.0, 1.0]]


def test_repeated_ngrams_are_banned_unless_nothing_else_is_possible() -> None:
    assert sampling.repeating_tokens([1, 2, 3, 1, 2], 3) == [3]
    assert sampling.repeating_tokens([1, 2, 3], 1) == [1, 2, 3]
    assert sampling.repeating_tokens([1, 1], 2) == [1]
    assert sampling.repeating_tokens([1], 2) == [] and sampling.repeating_tokens([], 1) == []
    texts = [[int(i) for i in torch.randint(4, (60,))] for _ in range(5)]
    for size in (1, 2, 3):
        banned = sampling.apply_penalties(LOGITS, SamplingOptions(no_repeat_ngram_size=size), texts)
        expected = reference.NoRepeatNGramLogitsProcessor(size)(torch.tensor(texts), LOGITS.clone())
        assert torch.equal(banned, expected)
    single = torch.tensor([[0.0, -torch.inf]])
    assert torch.equal(sampling.apply_penalties(single, SamplingOptions(no_repeat_ngram_size=1), [[0, 1]]), single)


def test_draws_follow_the_probabilities() -> None:
    probabilities = [0.1, 0.5, 0.0, 0.3, 0.1]
    logits = torch.tensor([probabilities]).log()
    options = SamplingOptions(temperature=1, top_p=1, seed=3)
    tokens = [int(sampling.sample(logits, options, [(0, position)])) for position in range(4000)]
    for token, probability in enumerate(probabilities):
        assert tokens.count(token) / 4000 == pytest.approx(probability, abs=0.03)
    assert 2 not in tokens
    assert int(sampling.sample(logits, SamplingOptions(temperature=0), [(0, 0)])) == 1


def test_impossible_tokens_are_not_drawn_at_the_ends_of_the_interval() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    assert sampling.sample_at(logits, [0.0]).tolist() == [1]
    assert sampling.sample_at(logits, [1 - 2**-53]).tolist() == [2]


def test_different_keys_give_different_points() -> None:
    points = [sampling.uniform(seed, sample, place) for seed in range(9) for sample in range(9) for place in range(50)]
    assert len(set(points)) == len(points) and all(0 <= point < 1 for point in points)
    assert sum(points) / len(points) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("temperature", [0, 0.001, 100])
@pytest.mark.parametrize("penalty", [0.01, 100])
def test_no_allowed_temperature_and_penalty_overflow(temperature: float, penalty: float) -> None:
    extreme = SamplingOptions(temperature, repetition_penalty=penalty)
    assert not options.sampling_problems(extreme)
    logits = sampling.apply_penalties(torch.tensor([[3e33, -3e33, 0.0]]), extreme, [[0, 1]])
    assert int(sampling.sample(logits, extreme, [(0, 0)])) == 0


@pytest.mark.parametrize("value", [1e-40, 1e-300, 1e-4, 1e39, math.inf, 1e300])
def test_temperatures_and_penalties_that_overflow_are_refused(value: float) -> None:
    assert len(options.sampling_problems(SamplingOptions(value, repetition_penalty=value))) == 2


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("row", [[math.nan, 1.0], [1.0, math.inf], [-math.inf, -math.inf]])
def test_no_token_is_drawn_from_values_that_are_not_finite(row: list[float], temperature: float) -> None:
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        sampling.sample(torch.tensor([[0.0, 1.0], row]), SamplingOptions(temperature), [(0, 0), (1, 0)])


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_invalid_numbers_are_reported_together(value: float) -> None:
    invalid = SamplingOptions(value, -1, value, value, value, value, -1)
    assert len(options.sampling_problems(invalid)) == 7 and not options.sampling_problems(SamplingOptions())
