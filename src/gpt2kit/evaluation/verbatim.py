"""The longest spans of some texts that stand word for word in a token store.

They are exact: found by hashes of all spans of the store, then compared token by token. Memory is that of the texts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gpt2kit.data.store import TokenStore

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
    wanted = [_Spans(tokens, np.flatnonzero(asked == n), n) for n in np.unique(asked[asked > 0]).tolist()]
    longest = int(asked.max())
    for start in range(0, len(training), _CHUNK):
        chunk = training[start : start + _CHUNK + longest - 1].astype(np.int64)
        prefix = _prefix(chunk)
        for spans in wanted:
            if len(chunk) >= spans.length and not spans.known.all():
                spans.look(chunk, _hashes(prefix, spans.length))
    for spans in wanted:
        found[spans.at] = spans.known[spans.same]
    return found


class _Spans:
    """Spans of one length that are looked for, each different one once.

    Args:
        tokens: that they are cut from.
        at: where each begins.
        length: of them all.
    """

    def __init__(self, tokens: Tokens, at: Tokens, length: int) -> None:
        self.at, self.length = at, length
        cut = tokens[at[:, None] + np.arange(length)]
        self.spans, first, self.same = np.unique(cut, axis=0, return_index=True, return_inverse=True)
        hashes = _hashes(_prefix(tokens), length)[at[first]]
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]
        self.known = np.zeros(len(self.spans), bool)
        """Which of the spans have been found."""

    def look(self, chunk: Tokens, there: NDArray[np.uint64]) -> None:
        """Find spans in a chunk, `there` being the hashes of all of its own: those alike are compared by token."""
        shift = np.uint64(64 - _BITS)
        likely = np.zeros(1 << _BITS, bool)
        likely[self._hashes[~self.known[self._order]] >> shift] = True
        places = np.flatnonzero(likely[there >> shift])
        first = np.searchsorted(self._hashes, there[places])
        behind = np.searchsorted(self._hashes, there[places], side="right")
        for more in range(int((behind - first).max(initial=0))):  # one turn, unless spans have the same hash by chance
            right = first + more < behind
            self._compare(chunk, places[right], self._order[(first + more)[right]])

    def _compare(self, chunk: Tokens, places: Tokens, numbers: Tokens) -> None:
        offsets = np.arange(self.length)
        while len(places):
            span, one = np.unique(numbers, return_index=True)  # one place of each; more if it was a chance hit
            equal = (chunk[places[one][:, None] + offsets] == self.spans[span]).all(1)
            self.known[span[equal]] = True
            left = np.ones(len(places), bool)
            left[one] = False
            left &= ~self.known[numbers]
            places, numbers = places[left], numbers[left]


def _prefix(tokens: Tokens) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Sums of mixed tokens times powers of the base, and the powers, modulo 2^64."""
    mixed = tokens.astype(np.uint64) + np.uint64(1)
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(32)
    powers = np.cumprod(np.full(len(tokens), _BASE), dtype=np.uint64)
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * powers, dtype=np.uint64)]), powers


def _hashes(prefix: tuple[NDArray[np.uint64], NDArray[np.uint64]], length: int) -> NDArray[np.uint64]:
    """The hashes of all spans of `length` tokens: their sums, with the power of their first token divided out."""
    sums, powers = prefix
    count = len(powers) - length + 1
    return (sums[length:] - sums[:count]) * _inverse(count)


def _inverse(count: int) -> NDArray[np.uint64]:
    """The inverses of the first powers of the base, modulo 2^64, which an odd base has."""
    return np.cumprod(np.full(count, np.uint64(pow(int(_BASE), -1, 1 << 64))), dtype=np.uint64)
