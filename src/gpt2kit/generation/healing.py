"""Token healing: the last tokens of a prompt are chosen again, so that a prompt may end inside a token.

After `def`, a text continues with a token such as ` main`, which begins with a space. A prompt that ends in `def ` has
a token of its own for the space, and the model has never seen a name after that one. So the space is removed, and the
next token is chosen among those that begin with a space.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer, models

from gpt2kit.tokenization import tokenizer as tokenizers

# Maximum number of tokens to choose again. Half a word is often several tokens, while the whole word is one that only
# all of them together begin.
_MAX_TOKENS = 8


@dataclass(frozen=True)
class HealingStep:
    """A token of a prompt that is chosen again."""

    token: int
    allowed: list[int]  # the token itself, and those that begin with it and the rest of the prompt


@dataclass(frozen=True)
class HealedPrompt:
    """A prompt whose last tokens are chosen again."""

    ids: list[int]  # without these tokens
    end: str = ""  # their text
    steps: Sequence[HealingStep] = ()


class TokenHealing:
    """Finds the tokens of prompts that should be chosen again.

    Args:
        tokenizer: encodes the prompts.
        tokens: the bytes that each id adds to the text (`tokenizer.token_bytes`).
        added: ids of special tokens. They are never chosen again, nor in place of another token.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[bytes], added: set[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = [b"" if i in added else token for i, token in enumerate(tokens)]
        if isinstance(tokenizer.model, models.WordPiece):  # a token without ## begins a word, after a space
            for token, i in tokenizer.get_vocab(with_added_tokens=False).items():
                if not token.startswith("##") and i not in added:
                    self._tokens[i] = b" " + self._tokens[i]

    def heal(self, prompt: str, ids: list[int], encode: Callable[[str], list[int]]) -> HealedPrompt:
        """Return a prompt with these ids without its end, if there are longer tokens that begin with this end."""
        typed = self._split_last_space(prompt, ids, encode)
        last = range(max(len(typed) - _MAX_TOKENS, 0), len(typed))
        first = next((i for i in last if self._longer_tokens(typed[i:])), len(typed))
        while first < len(typed) and 0x80 <= self._tokens[typed[first]][0] < 0xC0:  # inside a character
            first -= 1
        end = self._decode(typed)[len(self._decode(typed[:first])) :]
        if not end or not prompt.endswith(end):  # a normalizer may have changed the prompt
            return HealedPrompt(ids)
        steps = [HealingStep(typed[i], [typed[i], *self._longer_tokens(typed[i:])]) for i in range(first, len(typed))]
        return HealedPrompt(typed[:first], end, steps)

    def _split_last_space(self, prompt: str, ids: list[int], encode: Callable[[str], list[int]]) -> list[int]:
        """Encode the last space or line break by itself, because that is how GPT-2 splits spaces before a word."""
        if not prompt[-1:].isspace():
            return ids
        split = encode(prompt[:-1]) + encode(prompt[-1])
        return split if self._decode(split) == self._decode(ids) else ids

    def _longer_tokens(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of longer tokens that begin with these; none if a special token is among these."""
        parts = [self._tokens[i] for i in ids]
        if not all(parts):
            return []
        start, (order, tokens) = b"".join(parts), self._sorted_tokens
        # 0xFF is not in any text.
        return order[bisect.bisect_right(tokens, start) : bisect.bisect_left(tokens, start + b"\xff")]

    @functools.cached_property
    def _sorted_tokens(self) -> tuple[list[int], list[bytes]]:
        """The ids in the order of their bytes, and these bytes."""
        order = sorted(range(len(self._tokens)), key=self._tokens.__getitem__)
        return order, [self._tokens[i] for i in order]

    def _decode(self, ids: Sequence[int]) -> str:
        return tokenizers.decode(self._tokenizer, ids)
