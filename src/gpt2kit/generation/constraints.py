"""Constraints on the next token. Banned words are matched as bytes, whatever tokens spell them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
# A function from the ids generated so far to a mask of the tokens that may come next, (vocab_size,). It sees one
# sequence only, so a text does not depend on the rest of its batch.
Constraint = Callable[[Sequence[int]], Mask]


class BannedWords:
    """Prevents a text from containing any of `words`, even one that begins in the prompt.

    Only the last token of a word is banned, whatever tokens spell it. Bytes are compared, so case matters. The
    end-of-document token is always allowed.

    Args:
        words: the texts to ban.
        tokens: the bytes that each id adds to the text (`tokenizer.token_bytes`).
        banned_ids: ids to ban, whatever their bytes.
        eos: the id that ends a document; None if the vocabulary has no such token.
    """

    def __init__(self, words: Sequence[str], tokens: Sequence[bytes], banned_ids: set[int], eos: int | None) -> None:
        self._tokens = tokens
        self._words = [word.encode() for word in words]
        self._longest_start = max(map(len, self._words), default=1) - 1  # bytes of a word before its last token
        self._eos = eos
        self._allowed = np.ones(len(tokens), dtype=bool)
        self._allowed[sorted(banned_ids)] = False
        self._allowed[[i for i, token in enumerate(tokens) if any(word in token for word in self._words)]] = False
        self._tokens_with_prefix = functools.cache(self._find_tokens_with_prefix)

    def after(self, prompt: str) -> Constraint:
        """Return the constraint on what follows a prompt."""
        prompt_end = prompt.encode()[-self._longest_start :]

        def allowed(new: Sequence[int]) -> Mask:
            end = b""
            for token in reversed(new):
                if len(end) >= self._longest_start:
                    break
                end = self._tokens[token] + end
            end = prompt_end + end
            mask = self._allowed.copy()
            for word in self._words:
                for cut in range(1, len(word)):
                    if end.endswith(word[:cut]):
                        mask[self._tokens_with_prefix(word[cut:])] = False
            if self._eos is not None:
                mask[self._eos] = True
            return mask

        return allowed

    def _find_tokens_with_prefix(self, prefix: bytes) -> list[int]:
        return [i for i, token in enumerate(self._tokens) if token.startswith(prefix)]
