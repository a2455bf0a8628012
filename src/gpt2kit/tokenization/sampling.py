"""Streams of documents: an even draw from one of unknown length, within a budget of bytes; batches; counts of
characters."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

Text = TypeVar("Text", bound=str)

_SLACK = 1.25
_COUNT_AT_ONCE = 1 << 20
"""Characters counted by one call."""

# Scripts written without spaces: Thai, Lao, Tibetan, Myanmar; Khmer; kana; Han and its extensions.
_UNSPACED = [
    (0x0E00, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
]


class Sample:
    """At most `budget` bytes of whole items, drawn evenly: each item of the stream is as likely as any other.

    Every item gets a random key from the seed; those with the smallest keys stay, in the order of the stream. So the
    draw depends on the stream and the seed alone, and the memory on the budget alone.
    """

    def __init__(self, budget: int, seed: int = 0) -> None:
        self.budget = budget
        self.seen = 0
        """Bytes of UTF-8 that were offered."""
        self._random = random.Random(seed)
        self._limit = 1.0
        self._raw = bytearray()
        self._keys, self._lengths = array("d"), array("q")

    def fill(self, items: Iterable[str]) -> Sample:
        """Offer every item of a stream."""
        for _ in self.watch(items):
            pass
        return self

    def watch(self, items: Iterable[str]) -> Iterator[str]:
        """Hand a stream on, offering every item of it."""
        for item in items:
            self.offer(item)
            yield item
        self.shrink(self.budget)

    def offer(self, item: str) -> None:
        """Draw, or do not draw, one more item. (The budget may be passed by a quarter until `shrink`.)"""
        raw = item.encode()
        self.seen += len(raw)
        key = self._random.random()
        if key < self._limit:
            self._keys.append(key)
            self._lengths.append(len(raw))
            self._raw += raw
            if len(self._raw) > self.budget * _SLACK:
                self.shrink(self.budget)

    def shrink(self, budget: int) -> None:
        """Keep at most this many bytes, but at least one item."""
        self.budget = min(budget, self.budget)
        if len(self._raw) <= self.budget:
            return
        keys, lengths = np.array(self._keys), np.array(self._lengths)
        order = np.argsort(keys, kind="stable")
        stay = max(int(np.searchsorted(np.cumsum(lengths[order]), self.budget, side="right")), 1)
        self._limit = float(keys[order[stay]]) if stay < len(order) else self._limit
        kept = np.zeros(len(keys), bool)
        kept[order[:stay]] = True
        self._raw = _moved_together(self._raw, lengths, kept)
        self._keys, self._lengths = array("d", keys[kept]), array("q", lengths[kept])

    def __len__(self) -> int:
        """Bytes that were kept."""
        return len(self._raw)

    def __iter__(self) -> Iterator[str]:
        at = 0
        for length in self._lengths:
            yield self._raw[at : at + length].decode()
            at += length

    @property
    def unspaced(self) -> float:
        """The share of bytes that are Chinese, Japanese, Thai and others written without spaces (by a look at 1 MB)."""
        raw = b"".join(bytes(self._raw[int(at) :][:1024]) for at in np.linspace(0, max(len(self) - 1024, 0), 1024))
        codes = np.frombuffer(raw.decode(errors="ignore").encode("utf-32-le"), np.uint32)
        found = sum(int(((codes >= low) & (codes <= high)).sum()) for low, high in _UNSPACED)
        return min(3 * found / max(len(raw), 1), 1.0)


def _moved_together(raw: bytearray, lengths: np.ndarray, kept: np.ndarray) -> bytearray:
    """The kept stretches of `raw`, moved in place: a second copy of a big sample would double the memory."""
    to = at = 0
    with memoryview(raw) as view:
        for length, stays in zip(lengths.tolist(), kept.tolist(), strict=True):
            if stays:
                view[to : to + length] = view[at : at + length]
                to += length
            at += length
    del raw[to:]
    return raw


def batched(pieces: Iterable[Text], size: int) -> Iterator[list[Text]]:
    """Group pieces into lists; a list ends with the piece that brings it to `size` characters."""
    batch: list[Text] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece)
        if characters >= size:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def count_characters(texts: Iterable[str]) -> dict[str, int]:
    """How often each character occurs; the most frequent first, equal ones by code point."""
    counts = np.zeros(0x110000, np.int64)
    held, size = [], 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= _COUNT_AT_ONCE:
            counts += _counted(held)
            held, size = [], 0
    counts += _counted(held)
    found = np.flatnonzero(counts)
    order = found[np.argsort(-counts[found], kind="stable")]
    return {chr(code): int(counts[code]) for code in order}


def _counted(texts: list[str]) -> np.ndarray:
    return np.bincount(np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32), minlength=0x110000)
