from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import ODD_TEXTS, SAMPLE_TEXTS, TOKENIZER_KINDS, train_each_kind
from tokenizers import Tokenizer

from gpt2kit.evaluation.surprisal import Surprisal, encode, make_rows, read_documents, write_table
from gpt2kit.text.reader import UnfinishedPiece
from gpt2kit.tokenization import tokenizer as tokenizers


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("kinds")
    train_each_kind(folder)
    return {kind: tokenizers.load(folder / kind) for kind in TOKENIZER_KINDS}


def measure(text: str, tokenizer: Tokenizer) -> Surprisal:
    """Return the tokens of a text with made-up numbers: 1 nat for the first token, 2 for the second, and so on."""
    ids, spans = encode([text], tokenizer)
    nats = np.arange(1.0, len(ids) + 1)
    return make_rows(text, spans, np.stack([nats, nats, nats]))


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_tokens_cover_the_text_in_order(kind: str, kinds: dict[str, Tokenizer]) -> None:
    for text in {*SAMPLE_TEXTS, *ODD_TEXTS}:
        covered = [False] * len(text)
        last = (0, 0)
        for row in measure(text, kinds[kind]):
            assert last <= (row.start, row.end) and row.token == text[row.start : row.end], repr(text)
            covered[row.start : row.end] = [True] * len(row.token)
            last = (row.start, row.end)
        if kind != "wordpiece":  # it drops whitespace and some other characters
            assert all(covered), repr(text)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_words_add_up_to_the_tokens(kind: str, kinds: dict[str, Tokenizer]) -> None:
    for text in {*SAMPLE_TEXTS, *ODD_TEXTS}:
        rows = measure(text, kinds[kind])
        words = rows.words()
        assert sum(word.tokens for word in words) == len(rows)
        assert sum(word.nats for word in words) == pytest.approx(sum(row.nats for row in rows))
        assert all(text[word.start : word.end] == word.word for word in words)
        if kind != "wordpiece":
            assert "".join(word.word for word in words).replace(" ", "").split() == "".join(text.split()).split()


def test_a_space_belongs_to_the_word_after_it(kinds: dict[str, Tokenizer]) -> None:
    assert [word[:4] for word in measure(" the  quick fox.\n", kinds["char"]).words()] == [
        ("the", 1, 4, 4),
        ("quick", 6, 11, 7),
        ("fox.", 12, 16, 6),
    ]


def test_the_parts_of_a_character_have_the_whole_character(kinds: dict[str, Tokenizer]) -> None:
    rows = measure("a 🫨b", kinds["bpe"])
    parts = [row for row in rows if "🫨" in row.token]
    assert len(parts) > 1 and {row.token.strip() for row in parts} == {"🫨"}
    assert [word.word for word in rows.words()] == ["a", "🫨b"]
    assert [word.word for word in measure("白日依山", kinds["char"]).words()] == list("白日依山")


def test_words_that_share_a_token_are_one_row() -> None:
    rows = make_rows("ab cd ef", [(0, 1), (1, 4), (4, 5), (5, 8)], np.ones((3, 4)))
    assert [(word.word, word.tokens) for word in rows.words()] == [("ab cd", 3), ("ef", 1)]
    assert not make_rows("", [], np.ones((3, 0))).words()


def test_documents_get_the_numbers_of_their_own_tokens(kinds: dict[str, Tokenizer]) -> None:
    pieces = [UnfinishedPiece("ab\n"), "c", "", "d", "never read"]
    numbers = np.arange(100.0)
    chunks = (np.stack([numbers[i : i + 3]] * 3) for i in range(0, 100, 3))
    documents = list(read_documents(iter(pieces), 3, kinds["char"], chunks, ends=True))
    assert [document.text for document in documents] == ["ab\nc", "", "d"]
    assert [[row.nats for row in document] for document in documents] == [[0, 1, 2, 3], [], [6]]
    assert [row[:3] for row in documents[0]][-1] == ("c", 3, 4)


def test_a_table_is_read_by_csv_readers(tmp_path: Path) -> None:
    text = 'a\tb\nc\\d"e\r'
    spans = [(i, i + 1) for i in range(len(text))]
    write_table(tmp_path / "a.tsv", [make_rows(text, spans, np.ones((3, len(text))))] * 2)
    with open(tmp_path / "a.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    tokens = [row["token"] for row in rows if row["document"] == "2"]
    assert tokens == ["a", "\\t", "b", "\\n", "c", "\\\\", "d", '"', "e", "\\r"]
    assert rows[0] == {
        **{"document": "1", "token": "a", "start": "0", "end": "1"},
        **{"nats": "1.000000", "bits": "1.442695", "rank": "1", "entropy": "1.442695"},
    }
    assert len((tmp_path / "a.tsv").read_text().splitlines()) == 21
