"""Streams of text: token ids to whole characters (`TextStream`), and strings that end a text (`StopStrings`)."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from gpt2kit.tokenization import tokenizer as tokenizers

# Maximum number of tokens that wait for the last byte of a character. An untrained model may never generate it.
_MAX_HELD = 16


class TextStream:
    """Decodes tokens one by one, in whole characters. The chunks together are the text of all tokens decoded at once.

    A token may be a part of a character, and some tokenizers decode the space before a word only if a token precedes
    it. So the last few tokens are decoded with and without the new ones, and a chunk is the difference.

    Args:
        tokenizer: decodes the ids.
        before: the ids before the first token; their text is not repeated.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(before)[-_MAX_HELD:]
        self._held: list[int] = []
        self._context_text = self._decode([])

    def push(self, token: int) -> str:
        """Return the characters that this token completes."""
        self._held.append(token)
        text = self._decode(self._held)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._held) < _MAX_HELD:
            return ""
        return self._release(text)

    def flush(self) -> str:
        """Return the rest of the text; an incomplete character becomes U+FFFD."""
        return self._release(self._decode(self._held)) if self._held else ""

    def _release(self, text: str) -> str:
        chunk = text[len(self._context_text) :]
        self._context, self._held = self._held, []
        self._context_text = self._decode([])
        return chunk

    def _decode(self, ids: list[int]) -> str:
        return tokenizers.decode(self._tokenizer, self._context + ids)


class StopStrings:
    """Ends a text before the first of several strings. Characters that may begin one of them are held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.is_reached = False

    def push(self, chunk: str) -> str:
        """Return the characters that cannot be part of a stop string; none once a string is reached."""
        if self.is_reached:
            return ""
        text = self._held + chunk
        positions = [text.find(string) for string in self._strings if string in text]
        if positions:
            self.is_reached, self._held = True, ""
            return text[: min(positions)]
        end = len(text) - max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """Return the characters that were held back; none once a string is reached."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `string`."""
    longest = min(len(string) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(string[:length])), 0)
