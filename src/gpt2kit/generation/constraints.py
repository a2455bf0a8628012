"""Text that must not be written, kept away at the choice of the next token, however it is spelled in tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Constraint = Callable[[Sequence[int]], NDArray[np.bool_]]
"""Given the new ids so far, which token may come next: `[vocab_size]`. A function of a text alone, so that it does not
matter with which others the text is written."""


class Ban:
    """No new text that holds one of `words`, also if it begins in the prompt; the document's end is always allowed.

    Exact: the last token that would complete a word is forbidden, whatever tokens spell it; all others are allowed.
    It compares bytes, so capitals matter.

    Args:
        words: must not be written.
        tokens: what each id adds to the text (`tokenizer.token_bytes`).
        never: ids that must not be written.
        eos: the id that ends a document.
    """

    def __init__(self, words: Sequence[str], tokens: Sequence[bytes], never: set[int], eos: int) -> None:
        self._tokens = tokens
        self._words = [word.encode() for word in words]
        self._longest = max(map(len, self._words), default=1) - 1
        self._always = np.ones(len(tokens), dtype=bool)
        self._always[sorted(never)] = False
        for i, token in enumerate(tokens):
            if any(word in token for word in self._words):
                self._always[i] = False
        self._always[eos] = True
        self._eos = eos
        self._order = sorted(range(len(tokens)), key=lambda i: tokens[i])
        self._sorted = [tokens[i] for i in self._order]
        self._starting: dict[bytes, list[int]] = {}

    def after(self, prompt: str) -> Constraint:
        """The constraint on what follows a prompt."""
        before = prompt.encode()[-self._longest :] if self._longest else b""

        def allowed(new: Sequence[int]) -> NDArray[np.bool_]:
            end, at = b"", len(new)
            while at and len(end) < self._longest:
                at -= 1
                end = self._tokens[new[at]] + end
            end = end if at else before + end
            found = self._always
            for word in self._words:
                for cut in range(1, len(word)):
                    if end.endswith(word[:cut]):
                        found = found.copy() if found is self._always else found
                        found[self._begin_with(word[cut:])] = False
            found[self._eos] = True
            return found

        return allowed

    def _begin_with(self, rest: bytes) -> list[int]:
        if rest not in self._starting:
            at = bisect_left(self._sorted, rest)
            end = at
            while end < len(self._sorted) and self._sorted[end].startswith(rest):
                end += 1
            self._starting[rest] = self._order[at:end]
        return self._starting[rest]
