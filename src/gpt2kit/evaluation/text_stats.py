"""What the tokens of a text do not tell: the words of each document, and whether tokenizers decode it to itself."""

from __future__ import annotations

import array
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from gpt2kit.text.reader import read_rest
from gpt2kit.tokenization.report import first_difference
from gpt2kit.tokenization.sampling import SPACELESS, WIDE_PUNCTUATION

# Bytes of text that are encoded and decoded again.
CHECKED_BYTES = 16_000_000

# A character of a script without spaces, or wide punctuation, counts as a word.
_SPACELESS = "".join(f"{chr(first)}-{chr(last)}" for first, last in [*SPACELESS, *WIDE_PUNCTUATION])
_CHARACTER = re.compile(f"[{_SPACELESS}]")
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
_LETTER = re.compile(rf"[^\s{_SPACELESS}]")


@dataclass
class RoundTripCheck:
    """Whether a tokenizer decodes the documents that it has encoded to themselves."""

    documents: int = 0  # that were checked
    bytes: int = 0
    changed: int = 0  # documents that were decoded to another text
    example: str = ""  # where the first of them differs

    @property
    def is_lossless(self) -> bool:
        """Whether all documents were decoded to themselves."""
        return not self.changed


@dataclass
class TextStats:
    """What one pass over the documents of a text counts."""

    words: array.array[int] = field(default_factory=lambda: array.array("q"))  # of each document
    spaceless: int = 0  # words that are one character of a script without spaces
    round_trips: list[RoundTripCheck] = field(default_factory=list)  # of each tokenizer

    @property
    def word_unit(self) -> str:
        """What is counted as a word."""
        total = sum(self.words)
        if not self.spaceless:
            return "what stands between spaces"
        if self.spaceless == total:
            return "each character, for its script has no spaces"
        fraction = f"{self.spaceless / total:.0%} of the words"
        return f"each character of scripts without spaces ({fraction}), and else what stands between spaces"


def measure_text(
    pieces: Iterator[str], tokenizers: Sequence[Tokenizer], documents: int, checked_bytes: int = CHECKED_BYTES
) -> TextStats:
    """Count the words of the first documents; check each tokenizer on those within the first bytes.

    A reader yields a long document in pieces; each is encoded by itself, as for a store.
    """
    stats = TextStats(round_trips=[RoundTripCheck() for _ in tokenizers])
    checked = 0
    while len(stats.words) < documents and (first := next(pieces, None)) is not None:
        words, last, is_checked, differences = 0, "", checked < checked_bytes, [""] * len(tokenizers)
        for piece in itertools.chain([first], read_rest(first, pieces)):
            count, spaceless = count_words(piece)
            is_continued = last and piece and _LETTER.match(last) and _LETTER.match(piece)
            words += count - 1 if is_continued else count  # a word that two pieces share counts once
            stats.spaceless += spaceless
            last = piece[-1:]
            if checked < checked_bytes:
                checked += len(piece.encode())
                pairs = zip(differences, tokenizers, strict=True)
                differences = [difference or find_difference(tokenizer, piece) for difference, tokenizer in pairs]
        stats.words.append(words)
        for check, difference in zip(stats.round_trips, differences, strict=True):
            check.documents += is_checked
            check.changed += bool(difference)
            check.example = check.example or difference
    for check in stats.round_trips:
        check.bytes = checked
    return stats


def count_words(text: str) -> tuple[int, int]:
    """Return the number of words, and of those that are one character of a script without spaces."""
    if text.isascii() or not _CHARACTER.search(text):
        return len(text.split()), 0
    return len(_WORD.findall(text)), len(_CHARACTER.findall(text))


def find_difference(tokenizer: Tokenizer, text: str) -> str:
    """Return where a text and its decoded tokens differ, with a little around it; empty if they are the same."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    return "" if decoded == text else first_difference(text, decoded)
