"""Token ids to text as they come: whole characters (`TextStream`), and texts that end generation (`StopStrings`)."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

# Tokens that may wait for the last byte of a character; an untrained model may never produce it.
_MOST_HELD = 16


class TextStream:
    """Text token by token, in whole characters; joined, it is the text of all tokens decoded at once.

    A token may be a part of a character, and some tokenizers show the space before a word only if something precedes
    it. So each chunk is what the text of a few tokens gains by the next ones.

    Args:
        tokenizer: decodes the ids.
        before: the ids in front, whose text is not given again.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(before)[-_MOST_HELD:]
        self._held: list[int] = []
        self._context_text = self._decode([])

    def push(self, token: int) -> str:
        """Return the characters that this token completes."""
        self._held.append(token)
        text = self._decode(self._held)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._held) < _MOST_HELD:
            return ""
        return self._release(text)

    def flush(self) -> str:
        """Return what is left at the end; a character that lacks bytes becomes U+FFFD."""
        return self._release(self._decode(self._held)) if self._held else ""

    def _release(self, text: str) -> str:
        chunk = text[len(self._context_text) :]
        self._context, self._held = self._held, []
        self._context_text = self._decode([])
        return chunk

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(self._context + ids, skip_special_tokens=False))


class StopStrings:
    """Text up to the first of some strings; what may be the beginning of one is held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.is_reached = False

    def push(self, chunk: str) -> str:
        """Return the text that is certain by now; nothing once a string is reached."""
        if self.is_reached or not self._strings:
            return "" if self.is_reached else chunk
        text = self._held + chunk
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            self.is_reached, self._held = True, ""
            return text[: min(places)]
        kept = max(_overlap(text, string) for string in self._strings)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """Return what was held back; nothing once a string is reached."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Return how many of the last characters of `text` are a beginning of `string`."""
    longest = min(len(string) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(string[:length])), 0)
