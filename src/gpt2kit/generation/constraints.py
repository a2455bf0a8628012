"""Constraints on the next token, and banned words, which hold however a word is spelled in tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Constraint = Callable[[Sequence[int]], NDArray[np.bool_]]
"""From the ids generated so far to which tokens may come next, `[vocab_size]`. It depends on one text alone, so it does
not matter with which others the text is generated."""


class BannedWords:
    """Allows no text that contains one of `words`, even if it begins in the prompt. The end is always allowed.

    Exact: only the last token that would complete a word is banned, whatever tokens spell it. It compares bytes, so
    case matters.

    Args:
        words: the texts to ban.
        tokens: the bytes that each id adds to the text (`tokenizer.token_bytes`).
        banned_ids: ids to ban, whatever their bytes.
        eos: the id that ends a document.
    """

    def __init__(self, words: Sequence[str], tokens: Sequence[bytes], banned_ids: set[int], eos: int) -> None:
        self._tokens = tokens
        self._words = [word.encode() for word in words]
        self._longest = max(map(len, self._words), default=1) - 1  # bytes before a token that can matter
        self._allowed = np.ones(len(tokens), dtype=bool)
        self._allowed[sorted(banned_ids)] = False
        for i, token in enumerate(tokens):
            if any(word in token for word in self._words):
                self._allowed[i] = False
        self._allowed[eos] = True
        self._eos = eos
        self._order = sorted(range(len(tokens)), key=lambda i: tokens[i])
        self._sorted = [tokens[i] for i in self._order]
        self._by_prefix: dict[bytes, list[int]] = {}

    def after(self, prompt: str) -> Constraint:
        """Return the constraint on what follows a prompt."""
        before = prompt.encode()[-self._longest :] if self._longest else b""

        def allowed(new: Sequence[int]) -> NDArray[np.bool_]:
            end, at = b"", len(new)
            while at and len(end) < self._longest:
                at -= 1
                end = self._tokens[new[at]] + end
            end = end if at else before + end
            mask = self._allowed.copy()
            for word in self._words:
                for cut in range(1, len(word)):
                    if end.endswith(word[:cut]):
                        mask[self._tokens_with_prefix(word[cut:])] = False
            mask[self._eos] = True
            return mask

        return allowed

    def _tokens_with_prefix(self, prefix: bytes) -> list[int]:
        if prefix not in self._by_prefix:
            start = end = bisect_left(self._sorted, prefix)
            while end < len(self._sorted) and self._sorted[end].startswith(prefix):
                end += 1
            self._by_prefix[prefix] = self._order[start:end]
        return self._by_prefix[prefix]
