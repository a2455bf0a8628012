"""Find near copies among documents: MinHash signatures, and a search with locality-sensitive hashing (LSH).

The similarity of two documents is the Jaccard similarity of their shingles, which are short runs of letters and digits.
A signature estimates it: shingles are hashed into BUCKETS buckets, and the smallest hash of each is kept (one
permutation hashing). Documents whose signatures agree in a band of buckets are compared. Knows nothing of files.

No library: see docs/experiments.md. Results must also not change with the version of a library, because the text of a
resumed run must stay the same. For the same reason everything random here is a fixed function of counters.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# With 128 buckets, the standard error of a similarity of 0.8 is 0.035. Documents with fewer shingles than buckets, such
# as short poems, are compared almost exactly, because hardly any two of their shingles share a bucket.
BUCKETS = 128
# Bands are chosen so that two documents at the threshold are compared with at least this probability.
_RECALL = 0.99
# Characters that are hashed at a time. Larger arrays leave the processor's cache.
BATCH = 1 << 18
# A document is compared with at most this number of others that agree with it in a band. Only texts of millions of
# similar but different documents reach it, and would take quadratic time without it.
_MOST_COMPARED = 64

# Letters in a shingle. Characters of scripts with many of them say more than a letter of an alphabet, so shingles that
# begin with one are shorter; otherwise one other character in a poem of 24 would change too many of them.
_LETTERS = 5
_SHORTER = [
    (2, [(0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)]),  # Han
    (3, [(0x3040, 0x31FF), (0xAC00, 0xD7A3)]),  # kana, bopomofo, hangul
]
_IGNORED = np.uint32(0xFFFFFFFF)
_EMPTY = np.uint32(0xFFFFFFFF)

Rows = NDArray[np.unsignedinteger]


class Signatures(NamedTuple):
    """The signatures of documents."""

    values: NDArray[np.uint8]  # (documents, BUCKETS), 0 if a bucket is empty. A byte is enough to compare documents.
    bands: NDArray[np.uint32]  # (documents, bands): documents with the same hash of a band are compared


def band_length(threshold: float) -> int:
    """Return the buckets per band: as many as find _RECALL of the pairs at the threshold, since more compare fewer."""
    lengths = range(BUCKETS, 1, -1)
    return next((n for n in lengths if 1 - (1 - threshold**n) ** (BUCKETS // n) >= _RECALL), 1)


class Sketcher:
    """Collects the signatures of a stream of documents.

    Args:
        threshold: the lowest similarity that is searched for.
    """

    def __init__(self, threshold: float) -> None:
        self._length = band_length(threshold)
        self._values = _GrowingRows(BUCKETS, np.uint8)
        self._bands = _GrowingRows(BUCKETS // self._length, np.uint32)
        self._waiting: list[str] = []
        self._characters = 0

    def add(self, pieces: Iterable[str]) -> None:
        """Add one document, given in pieces, which are not all kept."""
        minima, text = None, ""
        for piece in pieces:
            for start in range(0, len(piece), BATCH):
                part = piece[start : start + BATCH]
                if text and len(text) + len(part) > BATCH:
                    minima = _merge(minima, _bucket_minima([text]))
                    text = ""
                text += part
        if minima is not None:
            self._flush()
            self._finish(_merge(minima, _bucket_minima([text])))
            return
        self._waiting.append(text)
        self._characters += len(text)
        # A document counts at least as its buckets do.
        if self._characters + len(self._waiting) * BUCKETS // 2 >= BATCH:
            self._flush()

    def signatures(self) -> Signatures:
        """Return the signatures of all documents so far."""
        self._flush()
        return Signatures(self._values.rows(), self._bands.rows())

    def _flush(self) -> None:
        if self._waiting:
            self._finish(_bucket_minima(self._waiting))
            self._waiting, self._characters = [], 0

    def _finish(self, minima: NDArray[np.uint32]) -> None:
        is_empty = minima == _EMPTY
        self._values.append(np.where(is_empty, 0, minima % 255 + 1))
        filled = _fill_empty(minima, is_empty)
        bands = np.zeros((len(minima), BUCKETS // self._length), np.uint64)
        for row in range(self._length):
            bands = (bands ^ filled[:, row :: self._length][:, : bands.shape[1]]) * _ODD
            bands ^= bands >> np.uint64(29)
        self._bands.append(bands >> np.uint64(32))


class _GrowingRows:
    """A matrix to which rows are appended. `resize` moves large arrays without a copy of them."""

    def __init__(self, width: int, dtype: type[np.unsignedinteger]) -> None:
        self._array, self._count = np.zeros((0, width), dtype), 0

    def append(self, rows: Rows) -> None:
        needed = self._count + len(rows)
        if needed > len(self._array):
            self._array.resize((needed + (1 << 16), self._array.shape[1]), refcheck=False)
        self._array[self._count : needed] = rows
        self._count = needed

    def rows(self) -> Rows:
        return self._array[: self._count]


# An odd multiplier mixes 64 bits: multiples of the golden ratio.
_ODD = np.uint64(0x9E3779B97F4A7C15)


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return hashes of numbers: the finalizer of SplitMix64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


@functools.cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return what each code point counts as (_IGNORED: nothing), and how long a shingle is that begins with it.

    Letters, marks and digits count, without case and in their usual width.
    """
    points = np.full(0x110000, _IGNORED, np.uint32)
    points[0] = 0  # between documents
    for number in range(1, 0x110000):
        character = chr(number)
        if unicodedata.category(character)[0] in "LMN":
            plain = unicodedata.normalize("NFKC", character).lower()
            points[number] = ord(plain) if len(plain) == 1 else number
    lengths = np.full(0x110000, _LETTERS, np.uint8)
    for length, ranges in _SHORTER:
        for first, last in ranges:
            lengths[first : last + 1] = length
    return points, lengths


def _bucket_minima(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return the smallest hash in each bucket for each text, (texts, BUCKETS); _EMPTY for an empty one."""
    hashes, owners = shingles(texts)
    minima = np.full(len(texts) * BUCKETS, _EMPTY, np.uint32)
    buckets = owners * BUCKETS + (hashes >> np.uint64(57)).astype(np.int64)
    np.minimum.at(minima, buckets, (hashes >> np.uint64(25)).astype(np.uint32))
    return minima.reshape(len(texts), BUCKETS)


def shingles(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of all shingles of all texts, in order, and the number of the text that each is of."""
    points, lengths = _tables()
    gap = "\0" * _LETTERS  # so that no shingle has letters of two texts
    raw = (gap.join(texts) + gap).encode("utf-32-le", "surrogatepass")
    letters = points[np.frombuffer(raw, "<u4")]
    owners = np.repeat(np.arange(len(texts)), [len(text) + _LETTERS for text in texts])
    counted = letters != _IGNORED
    letters, owners = letters[counted], owners[counted]
    length, letters = lengths[letters], letters.astype(np.uint64)
    hashes = letters.copy()
    for offset in range(1, _LETTERS):
        part = letters[offset:] * np.uint64(_POWERS[offset])
        part *= length[:-offset] > offset
        hashes[:-offset] += part
    is_letter = letters != 0
    hashes, owners = hashes[is_letter], owners[is_letter]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _ODD
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes, owners


_POWERS = [pow(0xD6E8FEB86659FD93, offset, 1 << 64) for offset in range(_LETTERS)]


def _merge(a: NDArray[np.uint32] | None, b: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return b if a is None else np.minimum(a, b)


@functools.cache
def _donors() -> NDArray[np.int64]:
    """Return for each attempt and bucket another bucket: (BUCKETS, BUCKETS), where each column is a permutation."""
    numbers = np.arange(BUCKETS * BUCKETS, dtype=np.uint64).reshape(BUCKETS, BUCKETS)
    return np.argsort(_mix(numbers), axis=0, kind="stable")


def _fill_empty(minima: NDArray[np.uint32], is_empty: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Return the minima with empty buckets filled from others, so that bands of short documents agree, too.

    An empty bucket takes the first in a random order of its own that is not empty.
    """
    filled = minima.copy()
    rows, columns = np.nonzero(is_empty & ~is_empty.all(axis=1, keepdims=True))
    for donors in _donors():
        if not len(rows):
            break
        values = minima[rows, donors[columns]]
        filled[rows, columns] = values
        is_left = values == _EMPTY
        rows, columns = rows[is_left], columns[is_left]
    return filled


def similarities(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimate the similarity of a document to others from their signature values: (BUCKETS,), (documents, BUCKETS)."""
    used = np.count_nonzero(one | others, axis=1)
    equal = np.count_nonzero((one == others) & (one != 0), axis=1)
    similarity: NDArray[np.float64] = equal / np.maximum(used, 1)
    return similarity


def find_copies(signatures: Signatures, thresholds: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return for each document the earlier one that it is a near copy of; -1 if it stays.

    Documents are taken in order. One is a copy if its similarity to an earlier one that stays is at least its
    threshold.

    Args:
        signatures: of all documents.
        thresholds: of each document; above 1, it always stays.
    """
    copy_of = np.full(len(thresholds), -1, np.int32)
    candidates = np.flatnonzero(signatures.values.any(axis=1))  # those with a letter or digit
    candidates = _drop_equal(signatures.values, thresholds, candidates, copy_of)
    equal = np.flatnonzero(copy_of >= 0)
    groups = _Groups(signatures.bands, candidates)
    for document, own in groups:
        if thresholds[document] <= 1:
            others = groups.members(own)
            if len(others):
                values = similarities(signatures.values[document], signatures.values[others])
                best = int(values.argmax())
                if values[best] >= thresholds[document]:
                    copy_of[document] = others[best]
                    continue
        groups.add(document, own)
    # What equals a copy is a copy of the same document.
    first = copy_of[equal]
    copy_of[equal] = np.where(copy_of[first] >= 0, copy_of[first], first)
    return copy_of


def _drop_equal(
    values: NDArray[np.uint8],
    thresholds: NDArray[np.float64],
    candidates: NDArray[np.int64],
    copy_of: NDArray[np.int32],
) -> NDArray[np.int64]:
    """Mark documents that equal an earlier one with the same threshold as its copies; return the others.

    Without this, a document that comes a million times would be compared with itself as often.
    """
    keys = np.zeros(len(candidates), np.uint64)
    words = values.view(np.uint64)  # (documents, BUCKETS // 8)
    for column in range(words.shape[1]):
        keys = _mix(keys ^ words[candidates, column])
    keys ^= thresholds[candidates].view(np.uint64)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    earlier = first[inverse]
    is_equal = earlier != np.arange(len(keys))
    can_be_copy = is_equal & (thresholds[candidates] <= 1)
    copy_of[candidates[can_be_copy]] = candidates[earlier[can_be_copy]]
    others: NDArray[np.int64] = candidates[~is_equal]
    return others


class _Groups:
    """The documents that agree with another one in a band, and per group of them those that stay.

    Flat arrays, because lists and dictionaries would take gigabytes for millions of documents.
    """

    def __init__(self, bands: NDArray[np.uint32], candidates: NDArray[np.int64]) -> None:
        has_other = np.zeros(len(candidates), bool)
        for band in range(bands.shape[1]):
            _, inverse, counts = np.unique(bands[candidates, band], return_inverse=True, return_counts=True)
            has_other |= (counts > 1)[inverse]
        self._documents = candidates[has_other]
        sizes = []
        self._groups = np.full((len(self._documents), bands.shape[1]), -1, np.int32)  # -1: alone
        total = 0
        for band in range(bands.shape[1]):
            _, inverse, counts = np.unique(bands[self._documents, band], return_inverse=True, return_counts=True)
            is_group = counts > 1
            numbers = np.where(is_group, np.cumsum(is_group) - 1 + total, -1)
            self._groups[:, band] = numbers[inverse]
            sizes.append(np.minimum(counts[is_group], _MOST_COMPARED))
            total += int(is_group.sum())
        self._sizes = np.concatenate(sizes) if sizes else np.zeros(0, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._counts = np.zeros(total, np.int32)
        self._members = np.zeros(int(self._sizes.sum()), np.int32)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Yield each document with its groups, in order."""
        for document, groups in zip(self._documents.tolist(), self._groups, strict=True):
            yield document, groups[groups >= 0]

    def members(self, groups: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the documents in these groups that stay."""
        counts = self._counts[groups]
        starts, counts = self._starts[groups][counts > 0], counts[counts > 0]
        parts = [self._members[start : start + count] for start, count in zip(starts, counts, strict=True)]
        documents: NDArray[np.int32] = np.unique(np.concatenate([self._members[:0], *parts]))
        return documents

    def add(self, document: int, groups: NDArray[np.int32]) -> None:
        """Add a document that stays to its groups."""
        groups = groups[self._counts[groups] < self._sizes[groups]]
        self._members[self._starts[groups] + self._counts[groups]] = document
        self._counts[groups] += 1
