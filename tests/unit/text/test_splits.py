"""One text split by documents: a document's split depends on nothing but its own text and the seed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gpt2kit.text import reader
from gpt2kit.text.reader import Reader, UnfinishedPiece, split_problems, split_ranges

LINES = [f"document {number}" for number in range(2000)]


def split(path: Path, lines: list[str], seed: int = 1, valid: float = 0.1, test: float = 0.2) -> dict[str, list[str]]:
    """Return the pieces of each split."""
    path.write_text("\n".join(lines), encoding="utf-8")
    ranges = split_ranges(valid, test, seed)
    return {name: list(Reader().read([path], hash_range=hash_range)) for name, hash_range in ranges.items()}


def test_every_document_is_in_one_split_in_any_order(tmp_path: Path) -> None:
    splits = split(tmp_path / "a.txt", LINES)
    assert sorted(document for documents in splits.values() for document in documents) == sorted(LINES)
    assert 150 < len(splits["valid"]) < 250 and 330 < len(splits["test"]) < 470
    shuffled = random.Random(1).sample(LINES, len(LINES))
    again = split(tmp_path / "a.txt", [*shuffled, *LINES[:500]])
    assert {name: {*documents} for name, documents in again.items()} == {n: {*d} for n, d in splits.items()}
    assert {*split(tmp_path / "a.txt", LINES, seed=2)["test"]} != {*splits["test"]}


def test_changing_one_fraction_does_not_change_the_other_split(tmp_path: Path) -> None:
    splits = split(tmp_path / "a.txt", LINES)
    other = split(tmp_path / "a.txt", LINES, valid=0.3)
    assert other["test"] == splits["test"] and {*splits["valid"]} < {*other["valid"]}


def test_a_long_document_is_in_the_same_split_wherever_its_pieces_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces of a document depend on the text before it; its split must not."""
    monkeypatch.setattr(reader, "HEAD_LENGTH", 100)
    monkeypatch.setattr(reader, "PIECE_LENGTH", 300)
    monkeypatch.setattr("gpt2kit.text.sources.CHUNK", 300)

    def numbers(pieces: list[str]) -> list[str]:
        """Return the numbers that long documents begin with."""
        starts = [True, *(not isinstance(piece, UnfinishedPiece) for piece in pieces)]
        first_pieces = [piece for piece, is_start in zip(pieces, starts, strict=False) if is_start]
        return [piece.split()[0] for piece in first_pieces if not piece.startswith("x")]

    lengths = random.Random(1)
    long = [f"{number} " + "word " * lengths.randrange(50, 400) for number in range(60)]
    splits = {name: numbers(pieces) for name, pieces in split(tmp_path / "a.txt", long).items()}
    assert all(splits.values()) and sum(map(len, splits.values())) == 60
    for length in (7, 150):
        moved = split(tmp_path / "b.txt", ["x" * length + "\n" + document for document in long])
        assert {name: numbers(pieces) for name, pieces in moved.items()} == splits


def test_invalid_fractions_are_reported() -> None:
    options = {"valid_files": None, "test_files": None, "valid_fraction": 0.1, "test_fraction": 0.2}
    assert not split_problems(options)
    (problem,) = split_problems({**options, "valid_files": "a.txt"})
    assert problem.startswith("data.valid_fraction 0.1: data.valid_files is set, too")
    (problem,) = split_problems({**options, "test_fraction": 1})
    assert problem.startswith("data.test_fraction 1: must be from 0 to below 1")
    (problem,) = split_problems({**options, "test_fraction": 0.9})
    assert problem.startswith("data.valid_fraction and data.test_fraction: together 1.0")
