from __future__ import annotations

from collections import Counter

import pytest

from gpt2kit.tokenization.sampling import Sample, count_characters


def test_everything_stays_if_there_is_room() -> None:
    items = ["a", "", "日本", "x", "\n"]
    drawn = Sample(1000).fill(items)
    assert list(drawn) == items
    assert (len(drawn), drawn.seen) == (9, 9)


def test_the_draw_is_even_bounded_and_the_seeds() -> None:
    items = [f"{n:05d}" for n in range(20_000)]
    drawn = list(Sample(10_000, seed=1).fill(items))
    assert len(drawn) == 2000 and drawn == sorted(drawn)
    tenths = Counter(int(item) // 2000 for item in drawn)
    assert min(tenths.values()) > 140 and max(tenths.values()) < 260
    assert drawn == list(Sample(10_000, seed=1).fill(items)) != list(Sample(10_000, seed=2).fill(items))


def test_the_memory_does_not_grow_with_the_text() -> None:
    sample = Sample(1000)
    for n in range(5000):
        sample.offer(f"{n}")
        assert len(sample) <= 1260


def test_drawing_less_at_once_or_later_is_the_same() -> None:
    items = [f"{n} " * (n % 7) for n in range(3000)]
    later = Sample(20_000, 3).fill(items)
    later.shrink(2000)
    assert list(later) == list(Sample(2000, 3).fill(items))


def test_one_item_stays_however_long() -> None:
    assert list(Sample(10).fill(["x" * 50])) == ["x" * 50]


@pytest.mark.parametrize(
    ("text", "share"), [("plain words " * 99, 0), ("白日依山盡" * 99, 1), ("สวัสดี" * 99, 1), ("word 白" * 99, 3 / 8)]
)
def test_scripts_without_spaces_are_seen(text: str, share: float) -> None:
    assert Sample(1 << 20).fill([text]).unspaced_fraction == pytest.approx(share, abs=0.02)
    assert Sample(1 << 20).fill([]).unspaced_fraction == 0


def test_characters_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2kit.tokenization.sampling._COUNT_BATCH", 3)
    counts = count_characters(["ab", "b", "🙂b\U0010ffff", "", "a"])
    assert list(counts.items()) == [("b", 3), ("a", 2), ("🙂", 1), ("\U0010ffff", 1)]
