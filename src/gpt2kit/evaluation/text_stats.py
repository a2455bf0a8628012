"""What tests must know of a text besides its tokens: how many words each document has, and whether tokenizers give it
back as it was."""

from __future__ import annotations

import array
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.text.reader import UnfinishedPiece
from gpt2kit.tokenization.report import first_difference

CHECKED = 16_000_000
"""Bytes of text that are encoded and decoded to see whether they come back."""

# Thai, Lao, Tibetan, Burmese, Khmer, Tai scripts, kana and bopomofo, Han, and their wide punctuation: no spaces.
_SPACELESS = (
    "\u0e01-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aad\u3001-\u312f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U0001b000-\U0001b16f"
    "\U00020000-\U0003ffff"
)
_ANY = re.compile(f"[{_SPACELESS}]")
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
_OTHER = re.compile(rf"[^\s{_SPACELESS}]")


@dataclass
class RoundTrip:
    """Whether a tokenizer gives documents back as they were."""

    documents: int = 0
    """Documents that were tried, and their bytes."""
    bytes: int = 0
    changed: int = 0
    """Those of them that do not come back."""
    example: str = ""
    """Where the first of them parts."""

    @property
    def lossless(self) -> bool:
        return not self.changed


@dataclass
class Reading:
    """What one pass over a text's documents has found."""

    counts: array.array[int] = field(default_factory=lambda: array.array("q"))
    spaceless: int = 0
    """Words that are one character of a script without spaces."""
    trips: list[RoundTrip] = field(default_factory=list)
    """One for each tokenizer."""

    @property
    def words(self) -> NDArray[np.int64]:
        """Words of each document."""
        return np.array(self.counts, np.int64)

    @property
    def unit(self) -> str:
        """What counted as a word."""
        total = sum(self.counts)
        if not self.spaceless:
            return "what stands between spaces"
        if self.spaceless == total:
            return "each character, for its script has no spaces"
        share = self.spaceless / total
        return (
            f"each character of scripts without spaces ({share:.0%} of the words), and else what stands between spaces"
        )


def read(pieces: Iterator[str], tokenizers: Sequence[Tokenizer], documents: int) -> Reading:
    """Count the words of the first `documents` documents; try each tokenizer on those within the first CHECKED bytes.

    Args:
        pieces: what a reader gives: a long document as several `UnfinishedPiece`s and a last `str`.
        tokenizers: those to try; each piece is encoded by itself, as for a token store.
        documents: how many to read.
    """
    found = Reading(trips=[RoundTrip() for _ in tokenizers])
    words, joined, changed = 0, "", [""] * len(tokenizers)
    while len(found.counts) < documents and (piece := next(pieces, None)) is not None:
        count, spaceless = count_words(piece)
        if joined and piece and _OTHER.match(joined) and _OTHER.match(piece):
            count -= 1  # the piece goes on with the word that the one before it has ended in
        words += count
        found.spaceless += spaceless
        joined = piece[-1:]
        size = len(piece.encode())
        for number, (tokenizer, trip) in enumerate(zip(tokenizers, found.trips, strict=True)):
            if trip.bytes >= CHECKED:
                continue
            trip.bytes += size
            changed[number] = changed[number] or difference(tokenizer, piece)
            if not isinstance(piece, UnfinishedPiece):
                trip.documents += 1
                trip.changed += bool(changed[number])
                trip.example = trip.example or changed[number]
                changed[number] = ""
        if not isinstance(piece, UnfinishedPiece):
            found.counts.append(words)
            words, joined = 0, ""
    for trip, left in zip(found.trips, changed, strict=True):
        if left:  # CHECKED bytes ended within a document
            trip.documents, trip.changed, trip.example = trip.documents + 1, trip.changed + 1, trip.example or left
    return found


def count_words(text: str) -> tuple[int, int]:
    """Words, and those of them that are one character of a script without spaces."""
    if text.isascii() or not _ANY.search(text):
        return len(text.split()), 0
    return len(_WORD.findall(text)), len(_ANY.findall(text))


def difference(tokenizer: Tokenizer, text: str) -> str:
    """Where a text and what comes back of it part, with a little around it; empty if they are the same."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    back = tokenizer.decode(ids, skip_special_tokens=False)
    return "" if back == text else first_difference(text, back)
