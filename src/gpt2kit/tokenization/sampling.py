"""Sample a stream of documents evenly, and count its characters."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from gpt2kit.text.reader import batched

# A sample is reduced when it exceeds its budget by this factor.
_SLACK = 1.25
# Characters that are counted at a time.
COUNT_BATCH = 1 << 20

# Scripts without spaces between words, as first and last code points: Thai, Lao, Tibetan and Burmese; Khmer; Tai
# scripts; kana and bopomofo; Han; half-width kana.
SPACELESS = [(0x0E01, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAD), (0x3040, 0x312F)]
SPACELESS += [(0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)]
SPACELESS += [(0xFF66, 0xFF9F), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF)]
# The wide punctuation of East Asian scripts.
WIDE_PUNCTUATION = [(0x3001, 0x303F), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65)]


class Sample:
    """A random sample of a stream: complete items, with at most `budget` bytes in all.

    Every item gets a random key. The items with the smallest keys are kept, in the order of the stream. So the sample
    depends only on the stream, the budget and the seed, and memory use only on the budget.

    Args:
        budget: maximum bytes of UTF-8 to keep.
        seed: seed of the random keys.
    """

    def __init__(self, budget: int, seed: int = 1) -> None:
        self.budget = budget
        self.seen = 0  # bytes of all items so far
        self._random = random.Random(seed)
        self._largest_key = 1.0
        self._raw = bytearray()
        self._keys, self._lengths = array("d"), array("q")

    def fill(self, items: Iterable[str]) -> Sample:
        """Offer every item of a stream, and return the sample."""
        for _ in self.watch(items):
            pass
        return self

    def watch(self, items: Iterable[str]) -> Iterator[str]:
        """Offer every item of a stream, and yield it."""
        for item in items:
            self.offer(item)
            yield item
        self.shrink(self.budget)

    def offer(self, item: str) -> None:
        """Keep or drop one more item. The sample may exceed its budget by a quarter until `shrink` is called."""
        raw = item.encode()
        self.seen += len(raw)
        key = self._random.random()
        if key < self._largest_key:
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
        count = max(int(np.searchsorted(np.cumsum(lengths[order]), self.budget, side="right")), 1)
        if count < len(order):
            self._largest_key = float(keys[order[count]])
        is_kept = np.zeros(len(keys), bool)
        is_kept[order[:count]] = True
        _compact(self._raw, lengths, is_kept)
        self._keys, self._lengths = array("d", keys[is_kept]), array("q", lengths[is_kept])

    def __len__(self) -> int:
        """Return the bytes of the sample."""
        return len(self._raw)

    def __iter__(self) -> Iterator[str]:
        start = 0
        for length in self._lengths:
            yield self._raw[start : start + length].decode()
            start += length

    @property
    def spaceless_fraction(self) -> float:
        """The fraction of bytes in scripts without spaces, such as Chinese and Thai, estimated from 1 MB."""
        starts = np.linspace(0, max(len(self) - 1024, 0), 1024).astype(int)
        raw = b"".join(bytes(self._raw[start : start + 1024]) for start in starts)
        codes = np.frombuffer(raw.decode(errors="ignore").encode("utf-32-le"), np.uint32)
        count = sum(int(((codes >= first) & (codes <= last)).sum()) for first, last in SPACELESS)
        return min(3 * count / max(len(raw), 1), 1.0)  # nearly all of these characters have three bytes


def _compact(raw: bytearray, lengths: np.ndarray, is_kept: np.ndarray) -> None:
    """Drop items in place: a second copy of a large sample would double the memory."""
    target = start = 0
    with memoryview(raw) as view:
        for length, kept in zip(lengths.tolist(), is_kept.tolist(), strict=True):
            if kept:
                view[target : target + length] = view[start : start + length]
                target += length
            start += length
    del raw[target:]


def count_characters(texts: Iterable[str]) -> dict[str, int]:
    """Count each character; the most frequent first, equally frequent ones by code point."""
    counts = np.zeros(0x110000, np.int64)
    for batch in batched(texts, COUNT_BATCH):
        codes = np.frombuffer("".join(batch).encode("utf-32-le"), np.uint32)
        counts += np.bincount(codes, minlength=len(counts))
    used = np.flatnonzero(counts)
    order = used[np.argsort(-counts[used], kind="stable")]
    return {chr(code): int(counts[code]) for code in order}
