"""Batches of text to token ids, in order: always the ids that the tokenizer itself gives.

The encoder works in the background, on all cores by itself, while the caller reads text and writes ids. It never reads
far ahead, so memory does not depend on the corpus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.unsignedinteger]
AHEAD = 2
"""Batches that are encoded, or wait to be, while the caller works on another one."""
_SLICE = 1 << 16
"""Characters encoded by one call: each takes 100 to 250 bytes meanwhile, and much memory is slow memory."""


def encoded(
    batches: Iterable[list[str]],
    tokenizer: Tokenizer,
    dtype: np.dtype[np.unsignedinteger],
) -> Iterator[tuple[list[str], list[Ids]]]:
    """Yield each batch with the ids of each of its texts; no special token is added to a text.

    Exhaust or close the iterator, and its thread ends.

    Args:
        batches: lists of texts, about a million characters each.
        tokenizer: as `tokenizer.from_json` gives it.
        dtype: a type that holds every id.
    """
    waiting: deque[tuple[list[str], Future[list[Ids]]]] = deque()
    pool = ThreadPoolExecutor(1, "encoding")
    try:
        for texts in batches:
            waiting.append((texts, pool.submit(_encode, tokenizer, texts, dtype)))
            if len(waiting) == AHEAD:
                done, ids = waiting.popleft()
                yield done, ids.result()
        for done, ids in waiting:
            yield done, ids.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(tokenizer: Tokenizer, texts: list[str], dtype: np.dtype[np.unsignedinteger]) -> list[Ids]:
    """Encode a batch in slices: the library's results take a hundred times the memory of the ids."""
    count = max(1, len(texts) * _SLICE // max(1, sum(map(len, texts))))
    found: list[Ids] = []
    for start in range(0, len(texts), count):
        encodings = tokenizer.encode_batch_fast(texts[start : start + count], add_special_tokens=False)
        found += [np.array(encoding.ids, dtype) for encoding in encodings]
    return found
