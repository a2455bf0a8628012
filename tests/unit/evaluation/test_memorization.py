"""Copies from the training text: exact, against a search by brute force."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Outcome, Run

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import parser, test
from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.evaluation import memorization
from gpt2kit.text.reader import Reader


class Tokens:
    """A token store in memory."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = np.array(tokens, np.uint16)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, span: slice) -> np.ndarray:
        return self._tokens[span]


def brute(training: list[int], text: list[int]) -> list[int]:
    spans = {tuple(training[a:b]) for a in range(len(training)) for b in range(a + 1, len(training) + 1)}
    return [
        max((n for n in range(1, len(text) - at + 1) if tuple(text[at : at + n]) in spans), default=0)
        for at in range(len(text))
    ]


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("seed", range(6))
def test_the_longest_matches_are_those_of_brute_force(seed: int, chunk: int) -> None:
    random = np.random.default_rng(seed)
    training = random.integers(0, 2 + 3 * seed, 90).tolist()
    texts = [random.integers(0, 2 + 3 * seed, size).tolist() for size in (20, 1, 0, 13)]
    texts.append([*training[30:61], 9999])
    store: Any = Tokens(training)
    matches = memorization.find_matches(store, [np.array(text, np.int64) for text in texts], chunk)
    assert [lengths.tolist() for lengths in matches] == [brute(training, text) for text in texts]


def test_spans_with_the_same_hash_are_compared_by_token() -> None:
    """A Thue-Morse sequence and its complement have the same polynomial hash modulo 2^64, whatever the base."""
    sequence = np.array([number.bit_count() % 2 for number in range(2048)])
    hashes = [memorization.hash_spans(memorization.prefix_sums(tokens), 2048) for tokens in (sequence, 1 - sequence)]
    assert hashes[0] == hashes[1]
    for training, longest in (([*(1 - sequence), 2], 1024), ([*(1 - sequence), 2, *sequence], 2048)):
        store: Any = Tokens(training)
        (lengths,) = memorization.find_matches(store, [sequence])
        assert lengths[0] == longest


def test_a_text_longer_than_the_training_text() -> None:
    store: Any = Tokens([1, 2])
    (lengths,) = memorization.find_matches(store, [np.array([1, 2, 1, 2, 3])])
    assert lengths.tolist() == [2, 1, 2, 1, 0]
    assert memorization.find_matches(store, []) == []


def test_what_is_learnt_by_heart_shows(run: Run, corpus: Path, call: Callable[..., Outcome], inside: Path) -> None:
    def main(args: list[str]) -> None:
        parser.run(test.test, args)

    words = ["--ckpt_path", run.folder, "--memorization", "--train_files", corpus / "train.txt"]
    code, out, err = call(main, *words, "--json_output", "a.json")
    assert code == 0 and "copied from the training text" in out, err
    found = json.loads((inside / "a.json").read_text())["results"][0]["copies"]
    assert found["same_text"] is True and found["held_out"]["tokens"] <= found["generated"]["tokens"]
    longest = found["held_out"]["longest"][0]
    assert longest[1].strip() in (corpus / "train.txt").read_text()
    assert "the quick brown fox jumps" in longest[1] or "the lazy dog" in longest[1]
    code, out, _ = call(main, *words, "--seed", 2, "--json_output", "b.json")
    code, out, _ = call(main, *words, "--json_output", "c.json")
    assert (inside / "a.json").read_text() == (inside / "c.json").read_text().replace("c.json", "a.json")
    assert (inside / "a.json").read_text() != (inside / "b.json").read_text()
    (inside / "other.txt").write_text("zzzz\n")
    code, out, err = call(
        main, "--ckpt_path", run.folder, "--memorization", "--train_files", "other.txt", "--json_output", "d.json"
    )
    found = json.loads((inside / "d.json").read_text())["results"][0]["copies"]
    assert found["same_text"] is False and found["generated"]["shares"]["8"] == 0
    assert "are not the text that it was trained on" in err


def test_what_is_written_and_drawn(run: Run, corpus: Path) -> None:
    opened = checkpoint.open(run.folder)
    store = open_or_build(Corpus([corpus / "test.txt"], opened.tokenizer, Reader()), corpus / "cache")
    generated = memorization.generate_texts(opened.model, store.index.eos_id, 16, 1)
    assert sum(map(len, generated)) >= memorization.TOKENS
    assert all(0 < len(text) <= 16 and store.index.eos_id not in text for text in generated)
    drawn = memorization.draw_texts(store, 16, 100, 1)
    assert sum(map(len, drawn)) == 100 and all(0 < len(text) <= 16 for text in drawn)
    assert sum(map(len, memorization.draw_texts(store, 10**6, 10**6, 1))) == store.tokens - 1 - store.documents
    spans = memorization.summarize([np.arange(6)], [np.array([4, 3, 2, 1, 0, 2])], opened.tokenizer)
    assert spans.shares == {4: 1 / 3, 8: None, 16: None, 32: None} and spans.mean == 2.0
    assert [size for size, _ in spans.longest] == [4, 2]
