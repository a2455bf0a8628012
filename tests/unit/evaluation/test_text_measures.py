"""Words and round trips of documents that are read in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import train_tokenizer

from gpt2kit.evaluation.statistics import count_words, measure_text
from gpt2kit.text.splits import UnfinishedPiece
from gpt2kit.tokenization import tokenizer


@pytest.mark.parametrize(
    ("text", "words", "spaceless"),
    [
        ("one two  three\n", 3, 0),
        ("", 0, 0),
        ("   ", 0, 0),
        ("naïve café", 2, 0),
        ("江南江北舊家鄉，三十年來", 12, 12),  # the comma counts
        ("今日はhello worldです", 3 + 2 + 2, 5),
        ("สวัสดี", 6, 6),
        ("안녕 세상", 2, 0),
        ("𠮷野家", 3, 3),
    ],
)
def test_words_are_counted(text: str, words: int, spaceless: int) -> None:
    assert count_words(text) == (words, spaceless)


@pytest.mark.parametrize("text", ["one two three", "江南 ab江", "  a  "])
def test_a_word_split_between_two_pieces_counts_once(text: str) -> None:
    for cut in range(len(text) + 1):
        stats = measure_text(iter([UnfinishedPiece(text[:cut]), text[cut:], "next one"]), [], 9)
        assert stats.words.tolist() == [count_words(text)[0], 2], cut


def test_the_unit_of_words_is_reported() -> None:
    assert measure_text(iter(["a b"]), [], 9).word_unit == "text between spaces"
    assert measure_text(iter(["江南"]), [], 9).word_unit.startswith("each character")
    assert "(67% of the words)" in measure_text(iter(["江南 b"]), [], 9).word_unit


@pytest.fixture(scope="module")
def wordpiece(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tokenizer.Tokenizer:
    folder = tmp_path_factory.mktemp("wordpiece")
    train_tokenizer([str(corpus / "train.txt")], folder, kind="wordpiece", vocab_size=200)
    return tokenizer.load(folder)


def test_a_tokenizer_that_loses_text_is_detected(corpus: Path, wordpiece: tokenizer.Tokenizer) -> None:
    both = [tokenizer.load(corpus / "tokenizer"), wordpiece]
    pieces = ["the fox", "the  fox", UnfinishedPiece("the fo"), "x  é"]
    lossless, lossy = measure_text(iter(pieces), both, 9).round_trips
    assert lossless.is_lossless and lossless.documents == 3 and lossless.bytes == 7 + 8 + 11
    assert not lossy.is_lossless and lossy.changed == 2 and lossy.documents == 3 and "'the  fox' as" in lossy.example
    assert measure_text(iter(["a", "b", "c"]), both, 2).round_trips[0].documents == 2


def test_only_the_first_bytes_are_checked_for_round_trips(wordpiece: tokenizer.Tokenizer) -> None:
    (check,) = measure_text(iter(["the fox", "the fox", "the  fox"]), [wordpiece], 9, checked_bytes=8).round_trips
    assert check.is_lossless and check.documents == 2, "the third document is not checked"
    pieces = [UnfinishedPiece("the  fox"), UnfinishedPiece("the fox"), "x", "y"]
    (check,) = measure_text(iter(pieces), [wordpiece], 9, checked_bytes=8).round_trips
    assert check.changed == 1 == check.documents, "a part of the document is checked"
