"""One text in three splits, by a hash of each document or by cuts in each document."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2kit.text import reader, splits
from gpt2kit.text.reader import Reader
from gpt2kit.text.splits import (
    CutRange,
    UnfinishedPiece,
    automatic_fraction,
    describe_split,
    longest_held_out_whole,
    longest_of_range,
    split_ranges,
)

LINES = [f"document {number}" for number in range(2000)]


def split(path: Path, lines: list[str], seed: int = 1, valid: float = 0.1, test: float = 0.2) -> dict[str, list[str]]:
    """Return the pieces of each split."""
    path.write_text("\n".join(lines), encoding="utf-8")
    ranges = split_ranges(valid, test, seed)
    return {name: list(Reader("line").read([path], split_range=split_range)) for name, split_range in ranges.items()}


def test_every_document_is_in_one_split_in_any_order(tmp_path: Path) -> None:
    parts = split(tmp_path / "a.txt", LINES)
    assert sorted(document for documents in parts.values() for document in documents) == sorted(LINES)
    assert 150 < len(parts["valid"]) < 250 and 330 < len(parts["test"]) < 470
    shuffled = random.Random(1).sample(LINES, len(LINES))
    again = split(tmp_path / "a.txt", [*shuffled, *LINES[:500]])
    assert {name: {*documents} for name, documents in again.items()} == {n: {*d} for n, d in parts.items()}
    assert {*split(tmp_path / "a.txt", LINES, seed=2)["test"]} != {*parts["test"]}


def test_changing_one_fraction_does_not_change_the_other_split(tmp_path: Path) -> None:
    parts = split(tmp_path / "a.txt", LINES)
    other = split(tmp_path / "a.txt", LINES, valid=0.3)
    assert other["test"] == parts["test"] and {*parts["valid"]} < {*other["valid"]}


def test_a_long_document_is_in_the_same_split_wherever_its_pieces_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces of a document depend on the text before it; its split must not."""
    monkeypatch.setattr(splits, "HEAD_LENGTH", 100)
    monkeypatch.setattr(reader, "PIECE_LENGTH", 300)
    monkeypatch.setattr("gpt2kit.text.sources.CHUNK", 300)

    def numbers(pieces: list[str]) -> list[str]:
        """Return the numbers that long documents begin with."""
        starts = [True, *(not isinstance(piece, UnfinishedPiece) for piece in pieces)]
        first_pieces = [piece for piece, is_start in zip(pieces, starts, strict=False) if is_start]
        return [piece.split()[0] for piece in first_pieces if not piece.startswith("x")]

    lengths = random.Random(1)
    long = [f"{number} " + "word " * lengths.randrange(50, 400) for number in range(60)]
    parts = {name: numbers(pieces) for name, pieces in split(tmp_path / "a.txt", long).items()}
    assert all(parts.values()) and sum(map(len, parts.values())) == 60
    for length in (7, 150):
        moved = split(tmp_path / "b.txt", ["x" * length + "\n" + document for document in long])
        assert {name: numbers(pieces) for name, pieces in moved.items()} == parts


def pieces_of(text: str, ends: list[int]) -> Iterator[str]:
    """Yield a document in pieces that end at these characters."""
    bounds = [0, *sorted({end for end in ends if 0 < end < len(text)}), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    yield from (UnfinishedPiece(piece) for piece in pieces[:-1])
    yield pieces[-1]


@given(
    text=st.text(alphabet="ab 春\n", min_size=1, max_size=900),
    ends=st.lists(st.integers(1, 900), max_size=8),
    fractions=st.sampled_from([(0.05, 0.05), (0.0, 0.3), (0.3, 0.0), (0.01, 0.5), (0.4, 0.59)]),
)
@example(text="ab\n" * 300, ends=[855, 810, 811, 856], fractions=(0.05, 0.05))
def test_the_parts_of_a_cut_document_join_to_the_document(
    text: str, ends: list[int], fractions: tuple[float, float]
) -> None:
    ranges = split_ranges(*fractions, seed=1, longest=0)
    order = [ranges[name] for name in ("train", "valid", "test") if name in ranges]  # type: ignore[index]
    parts = [list(part.take(pieces_of(text, ends), len(text))) for part in order]
    assert "".join(piece for part in parts for piece in part) == text
    assert ["".join(part) for part in parts] == ["".join(part.take(iter([text]), len(text))) for part in order]
    for part in parts:
        assert all(isinstance(piece, UnfinishedPiece) for piece in part[:-1])
        assert not part or not isinstance(part[-1], UnfinishedPiece), "the part does not end"


def test_a_document_is_cut_at_a_line_end_if_one_is_near() -> None:
    lines = "".join(f"line {number}\n" for number in range(1000))
    for part in split_ranges(0.05, 0.05, seed=1, longest=0).values():
        (text,) = part.take(iter([lines]), len(lines))
        assert text.startswith("line ") and text.endswith("\n")
    one_line = "x" * 1000
    assert list(CutRange(0.95, 1.0).take(iter([one_line]), 1000)) == ["x" * 50]
    last_line_end = "x" * 999 + "\n"
    assert list(CutRange(0.998, 1.0).take(iter([last_line_end]), 1000)) == ["x\n"]


def test_every_file_is_cut_wherever_its_pieces_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["".join(f"line {n} of {name}\r\n" for n in range(size)) for name, size in (("a", 900), ("b", 30))]
    for name, text in zip("ab", texts, strict=True):
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    ranges = split_ranges(0.1, 0.1, seed=1, longest=0)

    def read() -> dict[str, str]:
        return {name: "".join(Reader().read(paths, split_range=part)) for name, part in ranges.items()}

    parts = read()
    assert sorted("".join(parts.values())) == sorted("".join(texts).replace("\r\n", "\n"))
    lines = {*"".join(texts).replace("\r\n", "\n").splitlines()}
    assert all({*part.splitlines()} < lines for part in parts.values()), "a cut within a line"
    assert 80 < parts["test"].count("of a\n") < 91 and 1 < parts["test"].count("of b\n") < 4
    for size in (64, 100, 2500):
        monkeypatch.setattr(reader, "PIECE_LENGTH", size)
        monkeypatch.setattr("gpt2kit.text.sources.CHUNK", size)
        assert read() == parts


def test_short_documents_are_skipped_before_a_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab\n" + "c" * 100 + "\n" + "de\n" + "f" * 60)
    kept = Reader("line", min_chars=9, max_documents=2).read([tmp_path / "a.txt"], split_range=CutRange(0.5, 1.0))
    assert list(kept) == ["c" * 50, "f" * 30]


@pytest.mark.parametrize(
    ("documents", "characters", "longest", "fraction", "expected"),
    [
        (12, 12_000_000, 1_000_000, 0.05, 0),  # too few
        (400, 4_000_000, 20_000, 0.05, None),
        (399, 4_000_000, 20_000, 0.05, 0),
        (400, 4_000_000, 20_001, 0.05, 20_000),  # one document is more than a tenth of the split
        (1, 300, 300, 0.05, 0),
    ],
)
def test_documents_are_cut_if_they_are_few_or_long(
    documents: int, characters: int, longest: int, fraction: float, expected: int | None
) -> None:
    longest_whole = longest_held_out_whole(documents, characters, longest, fraction)
    assert longest_whole == expected
    assert longest_of_range(split_ranges(fraction, 0.0, 1, longest_whole)["train"]) == expected


def test_one_long_document_does_not_cut_the_others(tmp_path: Path) -> None:
    """A poem is in the split that it has without the long document, and the splits keep their sizes."""
    poems = [f"poem {number}" for number in range(3000)]
    (tmp_path / "a.txt").write_text("\n".join([*poems, "word " * 2500]), encoding="utf-8")
    longest = longest_held_out_whole(3001, 40_000, 12_500, 0.05)
    ranges = split_ranges(0.05, 0.05, 1, longest)
    parts = {name: list(Reader("line").read([tmp_path / "a.txt"], split_range=ranges[name])) for name in ranges}
    without = split(tmp_path / "b.txt", poems, valid=0.05, test=0.05)
    assert {name: parts[name][:-1] for name in parts} == without
    assert "".join(part[-1] for part in parts.values()) == "word " * 2500
    assert [len(parts[name][-1]) for name in ("valid", "test")] == [625, 625]


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_splits_by_hash_and_cuts_are_near_their_fractions(sigma: float) -> None:
    source = random.Random(1)
    texts = [f"{number} ".ljust(int(source.lognormvariate(6, sigma)), "x") for number in range(500)]
    size = sum(map(len, texts))
    longest = longest_held_out_whole(500, size, max(map(len, texts)), 0.05)
    for seed in range(20):
        ranges = split_ranges(0.05, 0.05, seed, longest)
        for name in ("valid", "test"):
            part = "".join(piece for text in texts for piece in ranges[name].take(iter([text]), len(text)))
            assert 0.025 < len(part) / size < 0.08


@pytest.mark.parametrize(
    ("size", "expected"), [(1_000_000, 0.05), (100_000_000, 0.05), (1_000_000_000, 0.005), (23_000, 0.056), (300, 0.1)]
)
def test_the_held_out_fraction_is_five_percent_within_limits(size: int, expected: float) -> None:
    assert automatic_fraction(size, block_size=256) == expected


def test_a_split_is_described_in_one_line() -> None:
    assert describe_split(split_ranges(0.05, 0.05, 1)) == (
        "held out by a hash of each document: 5 % for validation, 5 % for the test"
    )
    assert describe_split(split_ranges(0.05, 0.0, 1, longest=0)) == (
        "held out of each document, at its end: 5 % for validation"
    )
    assert describe_split(split_ranges(0.05, 0.05, 1, longest=4000)) == (
        "held out by a hash of each document, and at the end of those above 4,000 characters: 5 % for validation, 5 % "
        "for the test"
    )
    assert not describe_split({})
