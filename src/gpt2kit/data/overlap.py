"""Documents that stand in two splits: what is measured on them means nothing."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from gpt2kit.data.store import TokenStore


def told(a: TokenStore, name_a: str, b: TokenStore, name_b: str, tokenizer: Tokenizer) -> list[str]:
    """A line on the documents of `b` that stand in `a`, with the first of them, if there are any."""
    count, first = shared(a, b)
    if not count:
        return []
    start = tokenizer.decode(document(b, first, 32))[:60]
    share = count / b.documents
    return [f"{count:,} {name_b} documents ({share:.1%}) stand in the {name_a} text, too, such as {start!r}"]


def shared(a: TokenStore, b: TokenStore) -> tuple[int, int]:
    """How many documents of `b` stand in `a`, too, and the number of the first (0 if there is none).

    It holds some 32 bytes for each document of `b`, so `b` is the smaller one. Hashes of 8 bytes: the chance that two
    texts of ten million documents each seem to share one is 1 in 200,000.
    """
    known, places = np.unique(np.concatenate([*b.hashes()]), return_inverse=True)
    met = np.zeros(len(known), bool)
    for some in a.hashes():
        at = np.minimum(np.searchsorted(known, some), len(known) - 1)
        met[at[known[at] == some]] = True
    twice = met[places]
    return int(twice.sum()), int(twice.argmax())


def document(store: TokenStore, number: int, most: int) -> list[int]:
    """The tokens of a document, at most so many of them."""
    lengths = store.lengths()[: number + 1, 0]
    start = 1 + int(lengths[:number].sum()) + (number if store.index.append_eos else 0)
    tokens: list[int] = store[start : start + min(int(lengths[number]), most)].tolist()
    return tokens
