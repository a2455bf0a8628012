"""Split a text into training, validation and test: by a hash of each document, by cutting documents, or by both."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# Characters of a document that decide its split by hash.
HEAD_LENGTH = 1 << 16
# A document is cut at the first line end within this number of characters and 4 % of the document, which leaves
# something of a part of 5 %; or else between two characters.
CUT_REACH = 2000

# What is held out by default for validation, and as much again for the test.
HELD_OUT = 0.05
MOST_HELD_OUT, MOST_HELD_OUT_BYTES = 0.1, 5_000_000
# Documents are held out whole if at least this many are expected in a split, and cut otherwise.
_ENOUGH_DOCUMENTS = 20
# A document longer than this fraction of a split is cut in any case: if it were held out whole, the split would be too
# large, and with another seed too small. With a tenth, splits are about as near to their fractions as if all documents
# were equally long (tests/unit/text/test_splits.py).
_LONGEST_DOCUMENT = 0.1
# UTF-8 bytes of a token, estimated so high that a text of the size that an error names is long enough.
_BYTES_PER_TOKEN = 5

Split = Literal["train", "valid", "test"]
_USES: dict[Split, str] = {"valid": "validation", "test": "the test"}


class UnfinishedPiece(str):
    """A piece of a document that continues in the next item; another `str` ends its document."""


class Context(str):
    """A piece of a document that the loss does not count: with `reader.loss_on`, what it does not name."""


class UnfinishedContext(Context, UnfinishedPiece):
    """Such a piece that continues in the next item."""


@dataclass(frozen=True)
class HashRange:
    """One split of a text: the documents whose hash, a number from 0 to 1, is in [low, high).

    The hash is of the seed and of the document's first HEAD_LENGTH characters. So the order of documents does not
    matter, and equal documents are in the same split.
    """

    low: float
    high: float
    seed: int

    def contains(self, head: str) -> bool:
        """Return whether the split contains a document; `head` has at least its first HEAD_LENGTH characters."""
        text = f"{self.seed}\n{head[:HEAD_LENGTH]}".encode("utf-8", "surrogatepass")
        point = int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / (1 << 48)
        return self.low <= point < self.high

    def take(self, pieces: Iterator[str], length: int) -> Iterator[str]:
        """Yield the pieces of one document if it is in the split."""
        head = [next(pieces)]
        while isinstance(head[-1], UnfinishedPiece) and sum(map(len, head)) < HEAD_LENGTH:
            head.append(next(pieces))
        is_selected = self.contains("".join(head))
        for piece in itertools.chain(head, pieces):
            if is_selected:
                yield piece


@dataclass(frozen=True)
class CutRange:
    """One split of a text: of each document, the characters from the fraction `low` to the fraction `high` of them.

    Both ends move forward to the next line end, if one is near. The move depends on nothing but the document and the
    fraction, so ranges that join at a fraction have each character exactly once.
    """

    low: float
    high: float
    unit: Literal["document"] = "document"  # tells it from a HashRange in checkpoints and cache keys

    def take(self, pieces: Iterator[str], length: int) -> Iterator[str]:
        """Yield the part of one document, which has `length` characters. The part may be empty."""
        targets = round(self.low * length), round(self.high * length)
        reach = min(CUT_REACH, length // 25)
        text, position = "", 0  # what is read but not yielded, and where it begins
        last = ""  # the part's last piece so far
        for piece in pieces:
            text += piece
            end = position + len(text)
            if end < length and any(end - reach < target <= end for target in targets):
                continue  # the line end may be in the next piece
            start, stop = (_cut_point(text, target - position, length - position, reach) for target in targets)
            if part := text[start:stop]:
                if last:
                    yield UnfinishedPiece(last)
                last = part
            text, position = "", end
        if last:
            yield last


@dataclass(frozen=True)
class MixedRange:
    """One split of many documents, a few of them long: whole documents by hash, and a part of each long one."""

    documents: HashRange  # the documents of at most `longest` characters
    ends: CutRange  # the longer ones
    longest: int

    @property
    def low(self) -> float:
        """Where the split begins, as in a `HashRange`."""
        return self.documents.low

    @property
    def high(self) -> float:
        """Where the split ends, as in a `HashRange`."""
        return self.documents.high

    def take(self, pieces: Iterator[str], length: int) -> Iterator[str]:
        """Yield the part of one document, which has `length` characters. The part may be empty."""
        return (self.documents if length <= self.longest else self.ends).take(pieces, length)


SplitRange = HashRange | CutRange | MixedRange


def parse_range(raw: object) -> SplitRange | None:
    """Return the range that `dataclasses.asdict` stored in a checkpoint; None if it is not valid."""
    if not isinstance(raw, dict):
        return None
    if set(raw) == {"documents", "ends", "longest"} and type(raw["longest"]) is int and raw["longest"] > 0:
        documents, ends = parse_range(raw["documents"]), parse_range(raw["ends"])
        if isinstance(documents, HashRange) and isinstance(ends, CutRange):
            return MixedRange(documents, ends, raw["longest"])
    if all(type(raw.get(end)) in (int, float) and 0 <= raw[end] <= 1 for end in ("low", "high")):
        if set(raw) == {"low", "high", "seed"} and type(raw["seed"]) is int:
            return HashRange(**raw)
        if set(raw) == {"low", "high", "unit"} and raw["unit"] == "document":
            return CutRange(**raw)
    return None


def _cut_point(text: str, target: int, length: int, reach: int) -> int:
    """Return where `text` is cut for a target; `length` is the number of characters up to the document's end.

    A line end that ends the document is no cut point: what follows would be empty.
    """
    if target <= 0 or target >= min(length, len(text)):
        return max(0, min(target, len(text)))
    return text.find("\n", target - 1, min(target + reach, length - 1)) + 1 or target


def automatic_fraction(size: int, block_size: int) -> float:
    """Return the fraction of a text of `size` bytes to hold out for validation, and as much again for the test.

    It is 5 %, but at least about one block, and at most 10 % or 5 MB.
    """
    size = max(size, 1)
    fraction = max(HELD_OUT, block_size * _BYTES_PER_TOKEN / size)
    # Two digits, which are easy to read in the run's config.
    return float(f"{min(fraction, MOST_HELD_OUT, MOST_HELD_OUT_BYTES / size):.2g}")


def split_ranges(
    valid_fraction: float, test_fraction: float, seed: int, longest: int | None = None
) -> dict[Split, SplitRange]:
    """Return the range of each split of the training text; empty if the text is not split.

    By hash, the test split is at the lower end and the validation split at the upper, so changing one does not move the
    other. Cuts leave the beginning of each document for training, and its end for the test. `longest` is what
    `longest_held_out_whole` returns.
    """
    if not valid_fraction and not test_fraction:
        return {}
    first, second = round(1.0 - valid_fraction - test_fraction, 12), round(1.0 - test_fraction, 12)
    low, high = test_fraction, 1.0 - valid_fraction
    splits: list[tuple[Split, float, HashRange, CutRange]] = [
        ("train", 1.0, HashRange(low, high, seed), CutRange(0.0, first)),
        ("valid", valid_fraction, HashRange(high, 1.0, seed), CutRange(first, second)),
        ("test", test_fraction, HashRange(0.0, low, seed), CutRange(second, 1.0)),
    ]
    ranges: dict[Split, SplitRange] = {}
    for split, fraction, by_hash, cut in splits:
        if fraction and longest:
            ranges[split] = MixedRange(by_hash, cut, longest)
        elif fraction:
            ranges[split] = by_hash if longest is None else cut
    return ranges


def longest_held_out_whole(documents: int, characters: int, longest: int, fraction: float) -> int | None:
    """Return the characters of the longest document that is held out whole, by hash; longer ones are cut.

    It is 0 if all documents are cut, because they are few, and None if none is.

    Args:
        documents: number of documents of the text.
        characters: number of characters of the text.
        longest: number of characters of its longest document.
        fraction: the smallest fraction that is held out.
    """
    if documents * fraction < _ENOUGH_DOCUMENTS:
        return 0
    limit = int(fraction * characters * _LONGEST_DOCUMENT)
    return limit if longest > limit else None


def longest_of_range(split_range: SplitRange) -> int | None:
    """Return the `longest` with which `split_ranges` gives this range."""
    if isinstance(split_range, MixedRange):
        return split_range.longest
    return 0 if isinstance(split_range, CutRange) else None


def smallest_text(tokens: int) -> int:
    """Return the bytes of a text of which at least `tokens` tokens are left for training, by a high estimate."""
    return round(tokens * _BYTES_PER_TOKEN / (1 - 2 * HELD_OUT))


def describe_split(ranges: dict[Split, SplitRange]) -> str:
    """Return how the text was split; empty if it was not."""
    if not ranges:
        return ""
    held_out = {split: f"{(item.high - item.low) * 100:.2g} %" for split, item in ranges.items() if split != "train"}
    how = "held out by a hash of each document"
    if isinstance(ranges["train"], CutRange):
        how = "held out of each document, at its end"
    elif isinstance(ranges["train"], MixedRange):
        how += f", and at the end of those above {ranges['train'].longest:,} characters"
    parts = [f"{fraction} for {_USES[split]}" for split, fraction in held_out.items()]
    return f"{how}: {', '.join(parts)}"
