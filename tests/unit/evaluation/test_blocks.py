"""A text with too few documents is cut into blocks, which have the same text for every tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import SENTENCE, train_tokenizer

from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.evaluation.blocks import BLOCK_BYTES, UNITS, Sampling, choose_sampling, find_boundaries, split_piece
from gpt2kit.evaluation.statistics import measure_text
from gpt2kit.text.reader import Reader
from gpt2kit.text.splits import UnfinishedPiece
from gpt2kit.tokenization import tokenizer

TEXT = "".join(SENTENCE.format(n) + "白日依山盡，黃河入海流。🙂\n" for n in range(30))
EDGES = np.linspace(0, len(TEXT.encode()), 8).astype(np.int64)[1:-1]


@pytest.mark.parametrize(
    ("sizes", "unit", "problem"),
    [
        ([100] * UNITS, "documents", ""),
        ([0, 1 << 40], "blocks", "2 documents"),
        ([UNITS * BLOCK_BYTES], "blocks", "1 document"),
        ([UNITS * BLOCK_BYTES - 1], "none", "1 document"),
        ([10**6, 10**6] + [10] * 40, "blocks", "42 documents, with most of the text in about 2 of them"),
        ([0], "none", "1 document"),
    ],
)
def test_a_text_of_few_or_unequal_documents_is_cut_into_blocks(sizes: list[int], unit: str, problem: str) -> None:
    sampling = choose_sampling(np.array(sizes))
    assert (sampling.unit, sampling.problem) == (unit, problem)
    assert len(sampling.edges) == (UNITS - 1 if unit == "blocks" else 0)


def test_characters_and_words_of_each_block_are_counted() -> None:
    pieces = [UnfinishedPiece(TEXT[start : start + 301]) for start in range(0, len(TEXT), 301)]
    parts, start = [""] * (len(EDGES) + 1), 0
    for piece in pieces:
        for number, part in split_piece(piece, start, EDGES):
            parts[number] += part
        start += len(piece.encode())
    assert "".join(parts) == TEXT
    starts = np.cumsum([len(part.encode()) for part in parts])[:-1]
    assert ((starts >= EDGES) & (starts < EDGES + 4)).all(), "at the next character"
    stats = measure_text(iter([*pieces[:-1], str(pieces[-1])]), [], 1, EDGES)
    assert stats.blocks[:, :2].tolist() == [[len(part.encode()), len(part)] for part in parts]
    assert stats.blocks[:, 2].sum() == stats.words[0] == measure_text(iter([TEXT]), [], 1).words[0]


@pytest.mark.parametrize("kind", ["bpe", "char", "spm-unigram", "wordpiece"])
def test_blocks_of_tokens_have_the_text_of_the_block(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    train_tokenizer([str(tmp_path / "a.txt")], tmp_path / kind, kind, 400)
    encoder = tokenizer.load(tmp_path / kind)
    store = open_or_build(Corpus([tmp_path / "a.txt"], encoder, Reader("line")), tmp_path)
    size = store.bytes
    sampling = Sampling("blocks", 7, size, "", np.linspace(0, size, 8).astype(np.int64)[1:-1])
    boundaries = find_boundaries(store, encoder, len(store), sampling)
    assert boundaries[0] == 1 and boundaries[-1] == len(store) and len(boundaries) == 8
    text = b"".join(line.encode() for line in TEXT.splitlines())  # documents, without their ends
    for edge, boundary in zip(sampling.edges.tolist(), boundaries[1:-1].tolist(), strict=True):
        before = tokenizer.decode(encoder, [i for i in store[1:boundary].tolist() if i != store.index.eos_id])
        slack = 0.05 * size if kind == "wordpiece" else 16  # it loses spaces, so its blocks are approximate
        assert abs(len(before.encode()) - edge) <= slack, kind
        if kind != "wordpiece":
            assert text[: len(before.encode())].decode(errors="ignore") == before.replace("\ufffd", "")


def test_a_text_that_is_counted_in_part_is_not_cut() -> None:
    sizes = np.array([10 * UNITS * BLOCK_BYTES])
    sampling = choose_sampling(sizes, can_be_cut=False)
    assert sampling.unit == "none" and "not counted as a whole" in sampling.problem
    assert choose_sampling(sizes).unit == "blocks"
    assert choose_sampling(np.full(UNITS, 9), can_be_cut=False).unit == "documents"
