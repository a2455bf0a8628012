"""The n-gram model that measures how hard a text is to predict."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from gpt2kit.text import ngrams

WORDS = ["stone", "river", "light", "garden", "winter", "shadow", "bridge", "morning"]


def sentences(count: int, seed: int) -> bytes:
    chance = random.Random(seed)
    return "".join(" ".join(chance.choices(WORDS, k=6)) + ".\n" for _ in range(count)).encode()


def test_random_letters_take_the_bits_of_their_alphabet() -> None:
    letters = np.random.default_rng(1).integers(ord("a"), ord("a") + 16, 60_000, np.uint8).tobytes()
    assert ngrams.bits_per_byte(letters[:50_000], letters[50_000:], order=1) == pytest.approx(4.0, abs=0.02)


def test_words_take_the_bits_of_their_choice() -> None:
    bits = ngrams.bits_per_byte(sentences(2000, 1), sentences(200, 2))
    choice = 3 / (sum(map(len, WORDS)) / len(WORDS) + 1)  # one of eight words, spread over its letters and a space
    assert choice < bits < 1.2 * choice


def test_the_probabilities_of_all_bytes_add_up_to_one() -> None:
    train, context = sentences(20, 1), b"the stone "

    def bits(text: bytes) -> float:
        return ngrams.bits_per_byte(train, text) * len(text)

    total = sum(2 ** (bits(context) - bits(context + bytes([byte]))) for byte in range(256))
    assert total == pytest.approx(1.0)


def test_more_text_makes_it_easier_and_the_slope_says_so() -> None:
    more, less = (ngrams.measure(sentences(count, 1), sentences(100, 2)) for count in (1000, 20))
    assert more.bits_per_byte < less.bits_per_byte
    assert less.slope > 0 and more.bytes == len(sentences(1000, 1))
    noise = np.random.default_rng(1).integers(0, 256, 40_000, np.uint8).tobytes()
    assert abs(ngrams.measure(noise[:30_000], noise[30_000:]).slope) < 0.05


def test_copied_text_is_a_repetition() -> None:
    train = sentences(50, 1)
    assert ngrams.repeated_fraction(train, train[500:900]) == 1.0
    assert ngrams.repeated_fraction(train, bytes(range(200))) == 0.0


@pytest.mark.parametrize(("train", "held_out"), [(b"", b"abc"), (b"a", b"abc"), (b"abc", b""), (b"abc", b"a")])
def test_tiny_texts_have_finite_figures(train: bytes, held_out: bytes) -> None:
    measured = ngrams.measure(train, held_out)
    assert all(math.isfinite(value) for value in vars(measured).values())
