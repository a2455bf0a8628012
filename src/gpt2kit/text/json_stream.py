"""JSON in a stream of text: values of any size, of which little is held.

A value that is not held whole gives its text in pieces, and is checked as it goes by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

SPACES = re.compile(r"[ \t\r\n]*")
BLANKS = re.compile(r"[ \t\r]*")
"""Where each line is a value of its own: then nothing is looked for behind its end."""

_STRING = re.compile(r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_HIGH = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_SCALAR = re.compile(r'[^\s"\[\]{},:]+')
_DECODER = json.JSONDecoder()


class Broken(ValueError):
    """Not JSON; what follows in the same record means nothing."""


class Wrong(ValueError):
    """JSON, but no text in it where it should be: the reason, and a detail."""


class Stream:
    """Text that is looked at a little ahead; what was consumed is dropped.

    Args:
        pieces: of the text.
        spaces: what may stand between the parts of a value, SPACES or BLANKS.
    """

    def __init__(self, pieces: Iterator[str], spaces: re.Pattern[str]) -> None:
        self._pieces, self._spaces = pieces, spaces
        self.text, self.at = "", 0
        self._lines = 1

    def more(self) -> bool:
        """Add the next piece to what is held; whether there was one."""
        piece = next(self._pieces, "")
        self._lines += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)

    def line_number(self) -> int:
        """Of the next character, from 1."""
        return self._lines + self.text.count("\n", 0, self.at)

    def peek(self) -> str:
        """The next character that is no space, not consumed; nothing at the end."""
        while True:
            self.at = self._spaces.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def line(self, limit: int) -> str | None:
        """The next line with its end, consumed; nothing at the end; None if it is longer than the limit."""
        searched = self.at
        while (end := self.text.find("\n", searched)) < 0:
            if len(self.text) - self.at > limit:
                return None
            searched = len(self.text) - self.at  # where it will be once the consumed text is dropped
            if not self.more():
                line, self.at = self.text[self.at :], len(self.text)
                return line
        line, self.at = self.text[self.at : end + 1], end + 1
        return line

    def skip_line(self) -> None:
        """Consume what is left of the line."""
        while (end := self.text.find("\n", self.at)) < 0:
            self.at = len(self.text)
            if not self.more():
                return
        self.at = end + 1

    def value(self, limit: int) -> tuple[bool, object]:
        """The next JSON value, consumed; (False, None), with nothing consumed, if it is longer than the limit."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text):
                    self.at = end
                    return True, value
                if not self.more():  # else: a number at the end of what is held may go on
                    self.at = len(self.text)
                    return True, value
            except RecursionError:
                raise Broken("not JSON", "nested too deep") from None
            except ValueError as error:
                if len(self.text) - self.at > limit:
                    return False, None
                if not self.more():
                    raise Broken("not JSON", str(error).split(":")[0]) from None

    def string(self) -> Iterator[str]:
        """The pieces of a JSON string; its opening quote is the next character."""
        self.at += 1
        while True:
            end = _STRING.match(self.text, self.at).end()  # type: ignore[union-attr]
            raw = self.text[self.at : end]
            closed = self.text[end : end + 1] == '"'
            if not closed and (high := _HIGH.search(raw)):  # the other half of the pair may follow
                end, raw = self.at + high.start(), raw[: high.start()]
            if raw:
                yield json.loads(f'"{raw}"')
            self.at = end + closed
            if closed:
                return
            rest = len(self.text) - self.at
            if (rest >= 12 or (rest and self.text[self.at] < " ")) or not self.more():
                raise Broken("not JSON", "a string that does not end, or a bad character in it")


def long_text(stream: Stream, name: str) -> Iterator[str]:
    """The pieces of the text of a value that is too long to be held; the stream is left behind the value."""
    first = stream.peek()
    if first == '"':
        yield from stream.string()
        return
    if first != "{":
        _skip(stream)
        raise Wrong(f"a {'list' if first == '[' else 'value'}, neither text nor an object")
    wrong: tuple[str, ...] | None = (f"no field {name!r}", "see reader.field")
    stream.at += 1
    while stream.peek() != "}":
        if stream.peek() != '"':
            raise Broken("not JSON", "a key is missing")
        key = ""
        for piece in stream.string():
            key += piece[: len(name) + 1] if len(key) <= len(name) else ""
        if stream.peek() != ":":
            raise Broken("not JSON", "':' is missing")
        stream.at += 1
        if key == name and stream.peek() == '"' and wrong:
            wrong = None
            yield from stream.string()
        else:
            if key == name and wrong:
                wrong = (f"field {name!r} is no text",)
            _skip(stream)
        if stream.peek() == ",":
            stream.at += 1
        elif stream.peek() != "}":
            raise Broken("not JSON", "',' or '}' is missing")
    stream.at += 1
    if wrong:
        raise Wrong(*wrong)


def _skip(stream: Stream) -> None:
    """Consume one JSON value, whatever its size."""
    depth = 0
    while True:
        character = stream.peek()
        if not character:
            raise Broken("not JSON", "it ends in the middle")
        if character == '"':
            for _ in stream.string():
                pass
        elif _SCALAR.match(stream.text, stream.at):
            while scalar := _SCALAR.match(stream.text, stream.at):
                stream.at = scalar.end()
                if stream.at < len(stream.text) or not stream.more():  # else the word may go on
                    break
        elif character in ("[{" if depth == 0 else "[]{},:"):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(character, 0)
            stream.at += 1
        else:
            raise Broken("not JSON", f"{character!r} instead of a value")
        if depth <= 0:
            return


def parsed(line: str) -> object:
    """A value that is held whole."""
    try:
        return json.loads(line)
    except RecursionError:
        raise Broken("not JSON", "nested too deep") from None
    except ValueError as error:
        raise Broken("not JSON", str(error)) from None
