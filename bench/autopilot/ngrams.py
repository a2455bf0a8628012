"""Measure how hard a text is to predict, in about a second and without training: by an n-gram model of its bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Bytes of the longest context, and of a short one. A context and the byte after it fit into 64 bits.
ORDER, SHORT = 7, 2
# Bytes of the training text and of the held-out text that are enough.
SAMPLE, HELD_OUT_SAMPLE = 1 << 20, 1 << 17
# Another model counts this fraction of the same text: how much more text helps.
_PART = 8
# A byte is a repetition if the bytes before it, as many as this, are in the training text, too.
_REPEATED = 24

_Codes = NDArray[np.uint64]


@dataclass(frozen=True)
class Difficulty:
    """How well an n-gram model predicts a held-out text."""

    bits: float  # per byte, with contexts of up to as many bytes as is best: where text does not repeat, few
    short_bits: float  # ... of up to two bytes
    slope: float  # the exponent with which bits per byte fall with the size of the training text
    repetition: float  # the fraction of bytes whose context of 24 bytes is in the training text
    bytes: int  # of the training text that was counted


def measure(train: bytes, held_out: bytes) -> Difficulty:
    """Return how hard the held-out text is to predict from the training text."""
    train, held_out = train[:SAMPLE], held_out[:HELD_OUT_SAMPLE]
    part = train[: max(len(train) // _PART, 1)]
    by_order = bits_by_order(train, held_out)
    bits, bits_of_part = min(by_order), min(bits_by_order(part, held_out))
    slope = math.log(bits_of_part / bits) / math.log(_PART) if bits > 0 else 0.0
    return Difficulty(bits, by_order[SHORT], slope, repeated_fraction(train, held_out), len(train))


def bits_by_order(train: bytes, held_out: bytes) -> list[float]:
    """Return the bits per byte of a text by n-gram models of another one, with contexts of up to 0, 1, ... bytes.

    The estimate of each order is interpolated with that of the next lower one, as by Witten and Bell (1991): a context
    that was seen n times, with t different bytes after it, has the weight n / (n + t).
    """
    trained, asked = np.frombuffer(train, np.uint8), np.frombuffer(held_out, np.uint8)
    probability = np.full(len(asked), 1 / 256)
    bits = []
    for length in range(ORDER + 1):
        if len(trained) > length and len(asked) > length:
            probability[length:] = _mix(_codes(trained, length), _codes(asked, length), probability[length:])
        bits.append(float(-np.log2(probability).mean()) if len(asked) else 0.0)
    return bits


def _mix(trained: _Codes, asked: _Codes, lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of the bytes of a text after their contexts; `lower` are those after shorter ones."""
    grams, counts = np.unique(trained, return_counts=True)
    contexts, first, kinds = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, first)
    seen, kinds_after = _look_up(contexts, asked >> np.uint64(8), totals, kinds)
    (count,) = _look_up(grams, asked, counts)
    mixed = (count + kinds_after * lower) / np.maximum(seen + kinds_after, 1)
    return np.where(seen > 0, mixed, lower)


def repeated_fraction(train: bytes, held_out: bytes) -> float:
    """Return the fraction of the positions of a text whose last 24 bytes are in another text, too."""
    if min(len(train), len(held_out)) < _REPEATED:
        return 0.0
    words = [_hashes(np.frombuffer(text, np.uint8)) for text in (train, held_out)]
    return float(np.isin(words[1], words[0]).mean())


def _codes(text: NDArray[np.uint8], length: int) -> _Codes:
    """Return each byte after the first `length` ones, with that many bytes before it, as one number."""
    codes = np.zeros(len(text) - length, np.uint64)
    for start in range(length + 1):
        codes = (codes << np.uint64(8)) | text[start : len(text) - length + start]
    return codes


def _hashes(text: NDArray[np.uint8]) -> _Codes:
    """Return a hash of the bytes at each position, as many as a repetition has."""
    hashes = np.zeros(len(text) - _REPEATED + 1, np.uint64)
    for start in range(_REPEATED):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + text[start : len(text) - _REPEATED + 1 + start]
    return hashes


def _look_up(keys: _Codes, wanted: _Codes, *values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the values of the wanted keys; 0 for those that are missing. `keys` are sorted."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    is_found = keys[places] == wanted
    return [np.where(is_found, value[places], 0) for value in values]
