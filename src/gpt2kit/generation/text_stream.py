"""Token ids to text as they come: whole characters (`Stream`), and texts that end generation (`Stops`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer

_HELD = 16
"""Tokens that may wait for a character's last byte; a model that has not learnt to write may never send it."""


class Stream:
    """Text as it comes, token by token, in whole characters; joined, it is what decoding all tokens at once gives.

    A token may be part of a character, and in some kinds the space before a word shows only when something stands
    before it. So each piece is what the text of a few tokens gains by the next ones.

    Args:
        tokenizer: decodes the ids.
        before: the ids in front, whose text is not given again.
    """

    def __init__(self, tokenizer: Tokenizer, before: list[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._context = list(before or [])[-_HELD:]
        self._held: list[int] = []
        self._known = self._text([])

    def push(self, token: int) -> str:
        """The characters that this token completes."""
        self._held.append(token)
        text = self._text(self._held)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._held) < _HELD:
            return ""
        return self._given(text)

    def flush(self) -> str:
        """What is left at the end: a character that lacks bytes shows as U+FFFD."""
        return self._given(self._text(self._held)) if self._held else ""

    def _given(self, text: str) -> str:
        piece = text[len(self._known) :]
        self._context, self._held = self._held, []
        self._known = self._text([])
        return piece

    def _text(self, more: list[int]) -> str:
        return str(self._tokenizer.decode(self._context + more, skip_special_tokens=False))


class Stops:
    """Text up to the first of some words; what may be the beginning of one waits."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._held = ""
        self.met = False

    def push(self, piece: str) -> str:
        """What may be given out by now; after `met` nothing more."""
        if self.met or not self._words:
            return "" if self.met else piece
        text = self._held + piece
        found = [at for word in self._words if (at := text.find(word)) >= 0]
        if found:
            self.met, self._held = True, ""
            return text[: min(found)]
        keep = max(_begun(text, word) for word in self._words)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What has waited in vain; after `met` nothing."""
        held, self._held = self._held, ""
        return held


def whole_characters(tokenizer: Tokenizer, ids: Iterable[int], before: list[int] | None = None) -> Iterator[str]:
    """The pieces of text that `ids` give after `before`; see `Stream`."""
    stream = Stream(tokenizer, before)
    for token in ids:
        if piece := stream.push(token):
            yield piece
    if rest := stream.flush():
        yield rest


def _begun(text: str, word: str) -> int:
    """How many of the text's last characters are the beginning of the word."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
