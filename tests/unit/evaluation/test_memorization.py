"""Matches in the training text, compared with a search by brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SMALL_SHAPE

from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.evaluation import memorization
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer


class MemoryStore:
    """A token store in memory."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = np.array(tokens, np.uint16)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, span: slice) -> np.ndarray:
        return self._tokens[span]


def longest_matches(training: list[int], text: list[int]) -> list[int]:
    spans = {tuple(training[a:b]) for a in range(len(training)) for b in range(a + 1, len(training) + 1)}
    return [
        max((n for n in range(1, len(text) - start + 1) if tuple(text[start : start + n]) in spans), default=0)
        for start in range(len(text))
    ]


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("seed", range(6))
def test_matches_agree_with_a_brute_force_search(seed: int, chunk: int) -> None:
    random = np.random.default_rng(seed)
    training = random.integers(0, 2 + 3 * seed, 90).tolist()
    texts = [random.integers(0, 2 + 3 * seed, size).tolist() for size in (20, 1, 0, 13)]
    texts.append([*training[30:61], 9999])
    store: Any = MemoryStore(training)
    matches = memorization.find_matches(store, [np.array(text, np.int64) for text in texts], chunk)
    assert [lengths.tolist() for lengths in matches] == [longest_matches(training, text) for text in texts]


def test_spans_with_the_same_hash_are_compared_by_token() -> None:
    """A Thue-Morse sequence and its complement have the same polynomial hash modulo 2^64, whatever the base."""
    sequence = np.array([number.bit_count() % 2 for number in range(2048)])
    hashes = [memorization.hash_spans(memorization.prefix_sums(tokens), 2048) for tokens in (sequence, 1 - sequence)]
    assert hashes[0] == hashes[1]
    for training, longest in (([*(1 - sequence), 2], 1024), ([*(1 - sequence), 2, *sequence], 2048)):
        store: Any = MemoryStore(training)
        (lengths,) = memorization.find_matches(store, [sequence])
        assert lengths[0] == longest


def test_a_text_longer_than_the_training_text() -> None:
    store: Any = MemoryStore([1, 2])
    (lengths,) = memorization.find_matches(store, [np.array([1, 2, 1, 2, 3])])
    assert lengths.tolist() == [2, 1, 2, 1, 0]
    assert memorization.find_matches(store, []) == []


def test_generated_and_drawn_texts_have_the_requested_sizes(corpus: Path) -> None:
    byte_level = tokenizer.load(corpus / "tokenizer")
    store = open_or_build(Corpus([corpus / "test.txt"], byte_level, Reader("line")), corpus / "cache")
    gpt2 = GPT2({**SMALL_SHAPE, "vocab_size": 320}).eval()
    generated = memorization.generate_texts(gpt2, store.index.eos_id, 16, 1)
    assert sum(map(len, generated)) >= memorization.TOKENS
    assert all(0 < len(text) <= 16 and store.index.eos_id not in text for text in generated)
    drawn = memorization.draw_texts(store, 16, 100, 1)
    assert sum(map(len, drawn)) == 100 and all(0 < len(text) <= 16 for text in drawn)
    assert sum(map(len, memorization.draw_texts(store, 10**6, 10**6, 1))) == store.tokens - 1 - store.documents


def test_the_longest_matches_are_listed_without_overlaps(corpus: Path) -> None:
    byte_level = tokenizer.load(corpus / "tokenizer")
    stats = memorization.summarize([np.arange(6)], [np.array([4, 3, 2, 1, 0, 2])], byte_level)
    assert stats.shares == {4: 1 / 3, 8: None, 16: None, 32: None} and stats.mean == 2.0
    assert [size for size, _ in stats.longest] == [4, 2]
