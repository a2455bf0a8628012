"""The longest spans of some texts that stand word for word in a token store.

They are exact: found by hashes of all spans of the store, then compared token by token. Memory is that of the texts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gpt2kit.store import TokenStore

Tokens = NDArray[np.int64]

_CHUNK = 1 << 20
"""Tokens of the store that are looked through at a time."""

_BITS = 22
"""Of a hash, those that tell most of what cannot match."""

_BASE = np.uint64(0x9E3779B97F4A7C15)


def matches(training: TokenStore, texts: list[Tokens]) -> list[Tokens]:
    """For each token of each text, the length of the longest match from it on.

    If a span stands in the training text, so does each of its beginnings: so the length is found bit by bit, the
    highest first, each by one pass for all lengths that are asked for.
    """
    ends = np.cumsum([len(text) for text in texts])
    if not len(ends) or not ends[-1]:
        return [np.zeros(0, np.int64) for _ in texts]
    tokens = np.concatenate(texts)
    room = np.repeat(ends, [len(text) for text in texts]) - np.arange(len(tokens))  # up to the end of its text
    found = np.zeros(len(tokens), np.int64)
    step = 1 << (int(room.max()).bit_length() - 1)
    with tqdm(desc="looking for copies", total=step.bit_length(), leave=False, delay=1, disable=None) as bar:
        while step:
            asked = found + step
            asked[asked > room] = 0
            found = np.where(_present(training, tokens, asked), asked, found)
            step //= 2
            bar.update()
    return np.split(found, ends[:-1])


def _present(training: TokenStore, tokens: Tokens, asked: Tokens) -> NDArray[np.bool_]:
    """Whether the span of `asked` tokens from each token on stands in the training text (of 0 tokens: no)."""
    found = np.zeros(len(tokens), bool)
    wanted = []
    for length in np.unique(asked[asked > 0]).tolist():
        at = np.flatnonzero(asked == length)
        hashes, first, same = np.unique(_hashes(tokens, length)[at], return_index=True, return_inverse=True)
        wanted.append((length, at, hashes, at[first], same, np.zeros(len(hashes), bool)))
    longest = int(asked.max())
    for start in range(0, len(training), _CHUNK):
        chunk = training[start : start + _CHUNK + longest - 1].astype(np.int64)
        powers = _prefix(chunk)
        for length, _, hashes, first, _, known in wanted:
            if not known.all() and len(chunk) >= length:
                _look(chunk, _spans(powers, length), length, hashes, tokens, first, known)
    for _, at, _, _, same, known in wanted:
        found[at] = known[same]
    return found


def _look(
    chunk: Tokens,
    there: NDArray[np.uint64],
    length: int,
    hashes: NDArray[np.uint64],
    tokens: Tokens,
    first: Tokens,
    known: NDArray[np.bool_],
) -> None:
    """Mark in `known` the spans that stand in the chunk: those with one of its hashes, compared token by token."""
    shift = np.uint64(64 - _BITS)
    likely = np.zeros(1 << _BITS, bool)
    likely[hashes[~known] >> shift] = True
    places = np.flatnonzero(likely[there >> shift])
    at = np.minimum(np.searchsorted(hashes, there[places]), len(hashes) - 1)
    right = hashes[at] == there[places]
    places, at = places[right], at[right]
    while len(places):
        span, one = np.unique(at, return_index=True)  # one place of each span; the others if that was a chance hit
        offsets = np.arange(length)
        equal = (chunk[places[one][:, None] + offsets] == tokens[first[span][:, None] + offsets]).all(1)
        known[span[equal]] = True
        left = np.ones(len(places), bool)
        left[one] = False
        left &= ~known[at]
        places, at = places[left], at[left]


def _hashes(tokens: Tokens, length: int) -> NDArray[np.uint64]:
    """The hash of the span of `length` tokens from each token on; where there is no such span, 0."""
    found = np.zeros(len(tokens), np.uint64)
    if len(tokens) >= length:
        found[: len(tokens) - length + 1] = _spans(_prefix(tokens), length)
    return found


def _prefix(tokens: Tokens) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Sums of mixed tokens times powers of the base, and the powers, modulo 2^64."""
    mixed = tokens.astype(np.uint64) + np.uint64(1)
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(32)
    powers = np.cumprod(np.full(len(tokens), _BASE), dtype=np.uint64)
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * powers, dtype=np.uint64)]), powers


def _spans(prefix: tuple[NDArray[np.uint64], NDArray[np.uint64]], length: int) -> NDArray[np.uint64]:
    """The hashes of all spans of `length` tokens: their sums, with the power of their first token divided out."""
    sums, powers = prefix
    count = len(powers) - length + 1
    return (sums[length:] - sums[:count]) * _inverse(count)


def _inverse(count: int) -> NDArray[np.uint64]:
    """The inverses of the first powers of the base, modulo 2^64, which an odd base has."""
    return np.cumprod(np.full(count, np.uint64(pow(int(_BASE), -1, 1 << 64))), dtype=np.uint64)
