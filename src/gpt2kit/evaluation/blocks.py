"""What the intervals of a text are computed from: its documents or, if they are too few, blocks of equal size.

A block has the same bytes of text for every tokenizer. A character or a token that is in two blocks belongs to the one
in which it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.data.store import TokenStore
from gpt2kit.tokenization.tokenizer import token_bytes

# Minimum number of documents, and number of blocks. In a long text losses are correlated over thousands of tokens, so
# a few long blocks give better intervals than many short ones (bench/intervals.py).
UNITS = 20
# Minimum size of a block, about a thousand tokens.
BLOCK_BYTES = 4096
# Tokens that are read at a time.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Sampling:
    """What the intervals of a text are computed from."""

    unit: str  # "documents", "blocks", or "none" if there are too few of both
    count: int  # number of units
    size: int  # bytes of the text
    problem: str = ""  # why the documents are not used
    edges: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # where blocks meet, in bytes


def choose_sampling(sizes: NDArray[np.int64], can_be_cut: bool = True) -> Sampling:
    """Choose the units for a text from the bytes of its documents.

    It cannot be cut into blocks if only a part of each document is counted, or all but its first token.
    """
    size = int(sizes.sum())
    # The number of documents of equal size that would vary as much (Kish's effective sample size).
    effective = size**2 / max(float((sizes.astype(np.float64) ** 2).sum()), 1.0)
    if effective >= UNITS:
        return Sampling("documents", len(sizes), size)
    problem = f"{len(sizes):,} document{'s' if len(sizes) > 1 else ''}"
    if len(sizes) >= UNITS:
        problem += f", with most of the text in about {effective:.0f} of them"
    if not can_be_cut:
        problem += ", not counted as a whole"
    if not can_be_cut or size < UNITS * BLOCK_BYTES:
        return Sampling("none", 0, size, problem)
    return Sampling("blocks", UNITS, size, problem, np.linspace(0, size, UNITS + 1).astype(np.int64)[1:-1])


def split_piece(piece: str, start: int, edges: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
    """Yield the parts of a piece of text that begins at byte `start`, each with the number of its block."""
    number = int(np.searchsorted(edges, start, side="right"))
    raw = piece.encode() if number < len(edges) else b""
    begin = 0
    for edge in edges[number : np.searchsorted(edges, start + len(raw))].tolist():
        end = edge - start
        while end < len(raw) and raw[end] & 0xC0 == 0x80:  # inside a character
            end += 1
        yield number, raw[begin:end].decode()
        begin, number = end, number + 1
    yield number, raw[begin:].decode() if begin else piece


def find_boundaries(store: TokenStore, tokenizer: Tokenizer, tokens: int, sampling: Sampling) -> NDArray[np.int64]:
    """Return the first of a store's tokens in each block, and the end of the text; `tokens` of the store are tested."""
    if not len(sampling.edges):
        return np.array([1, tokens])
    lengths = np.array([len(part) for part in token_bytes(tokenizer)])
    lengths[store.index.eos_id] = 0
    chunks = [slice(start, min(start + _CHUNK, tokens)) for start in range(1, tokens, _CHUNK)]
    # The bytes of the tokens are those of the text, unless the tokenizer loses text or adds spaces.
    scale = sum(int(lengths[store[chunk]].sum()) for chunk in chunks) / sampling.size
    starts = np.ones(len(sampling.edges), np.int64)  # token 0 precedes the text
    position = 0
    for chunk in chunks:
        sizes = lengths[store[chunk]]
        ends = position + np.cumsum(sizes)
        starts += np.searchsorted(ends - sizes, sampling.edges * scale)  # tokens that begin before each edge
        position = int(ends[-1])
    return np.concatenate([[1], starts, [tokens]])
