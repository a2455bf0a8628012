"""Find the documents of one split that are also in another one."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from gpt2kit.data.store import TokenStore


def leakage_note(a: TokenStore, name_a: str, b: TokenStore, name_b: str, tokenizer: Tokenizer) -> list[str]:
    """Return a line on the documents of `b` that are also in `a`, with an example; no line without such documents."""
    count, first = count_shared(a, b)
    if not count:
        return []
    start = tokenizer.decode(document_tokens(b, first, 32))[:60]
    duplicates = f"{count:,} {name_b} documents ({count / b.documents:.1%})"
    return [f"{duplicates} are also in the {name_a} text, such as {start!r}"]


def count_shared(a: TokenStore, b: TokenStore) -> tuple[int, int]:
    """Count the documents of `b` that are also in `a`; return the count and the number of the first one, or 0.

    Takes about 32 bytes of memory per document of `b`, so `b` should be the smaller store. Hashes have 8 bytes: for two
    texts of ten million different documents each, the probability of a collision is 1 in 200,000.
    """
    unique, inverse = np.unique(np.concatenate([*b.hashes()]), return_inverse=True)
    in_a = np.zeros(len(unique), bool)
    for hashes in a.hashes():
        positions = np.minimum(np.searchsorted(unique, hashes), len(unique) - 1)
        in_a[positions[unique[positions] == hashes]] = True
    shared = in_a[inverse]  # (documents of b,)
    return int(shared.sum()), int(shared.argmax())


def document_tokens(store: TokenStore, number: int, limit: int) -> list[int]:
    """Return the first tokens of a document, at most `limit`."""
    lengths = store.lengths()[: number + 1, 0]
    start = 1 + int(lengths[:number].sum()) + (number if store.index.append_eos else 0)
    tokens: list[int] = store[start : start + min(int(lengths[number]), limit)].tolist()
    return tokens
