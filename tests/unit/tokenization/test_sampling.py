from __future__ import annotations

from collections import Counter

import pytest

from gpt2kit.tokenization import sampling
from gpt2kit.tokenization.sampling import Sample, count_characters


def test_the_sample_of_a_small_text_is_the_text() -> None:
    items = ["a", "", "日本", "x", "\n"]
    sample = Sample(1000).fill(items)
    assert list(sample) == items
    assert (len(sample), sample.seen) == (9, 9)


def test_a_sample_is_even_within_its_budget_and_depends_on_the_seed() -> None:
    items = [f"{n:05d}" for n in range(20_000)]
    sample = list(Sample(10_000, seed=1).fill(items))
    assert len(sample) == 2000 and sample == sorted(sample)
    tenths = Counter(int(item) // 2000 for item in sample)
    assert min(tenths.values()) > 140 and max(tenths.values()) < 260
    assert sample == list(Sample(10_000, seed=1).fill(items)) != list(Sample(10_000, seed=2).fill(items))


def test_memory_does_not_grow_with_the_text() -> None:
    sample = Sample(1000)
    for n in range(5000):
        sample.offer(f"{n}")
        assert len(sample) <= 1260


def test_a_sample_that_shrinks_is_the_sample_of_the_smaller_budget() -> None:
    items = [f"{n} " * (n % 7) for n in range(3000)]
    sample = Sample(20_000, 3).fill(items)
    sample.shrink(2000)
    assert list(sample) == list(Sample(2000, 3).fill(items))


def test_one_item_is_kept_even_if_it_exceeds_the_budget() -> None:
    assert list(Sample(10).fill(["x" * 50])) == ["x" * 50]


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("plain words " * 99, 0), ("白日依山盡" * 99, 1), ("สวัสดี" * 99, 1), ("word 白" * 99, 3 / 8), ("，。" * 99, 0)],
)
def test_scripts_without_spaces_are_measured(text: str, fraction: float) -> None:
    assert Sample(1 << 20).fill([text]).spaceless_fraction == pytest.approx(fraction, abs=0.02)
    assert Sample(1 << 20).fill([]).spaceless_fraction == 0


def test_characters_are_counted_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "COUNT_BATCH", 3)
    counts = count_characters(["ab", "b", "🙂b\U0010ffff", "", "a"])
    assert list(counts.items()) == [("b", 3), ("a", 2), ("🙂", 1), ("\U0010ffff", 1)]
