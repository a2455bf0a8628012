"""Verse: a constraint on tokens that holds a poem to its form, N lines of M letters.

A form is a row of places: free letters and fixed marks. A token fits if its characters fit the next places; a token
that ends inside a character fits if some allowed letter continues that way. So a poem can neither leave its form nor
reach a place where no token fits.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import Problems, UserError

LINE_ENDS = ("，", "。\n")
# Letters of a poem, at most.
_MOST_LETTERS = 1_000_000
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class VerseForm:
    """A poem's form.

    Args:
        lines: the number of lines.
        length: letters per line. A letter is what Unicode calls one, so a Han character is one letter.
        ends: text after the first line, the second, and so on, repeated. The poem's last line breaks are dropped.
        rhyme: groups of letters that rhyme. The second line, the fourth, and so on end in different ones of a group.
    """

    lines: int
    length: int
    ends: tuple[str, ...] = LINE_ENDS
    rhyme: tuple[str, ...] = ()

    @property
    def rhymes(self) -> int:
        """The number of lines that rhyme."""
        return self.lines // 2 if self.rhyme else 0

    @property
    def template(self) -> str:
        """The poem with U+0000 for each free letter."""
        lines = ("\0" * self.length + self.ends[i % len(self.ends)] for i in range(self.lines))
        return "".join(lines).rstrip("\n")


def form_problems(form: VerseForm) -> list[str]:
    """List what is invalid in a form, in terms of generate.py's options."""
    problems = Problems()
    problems.check(form.lines >= 1, f"--lines {form.lines}: must be at least 1")
    problems.check(form.length >= 1, f"--chars_per_line {form.length}: must be at least 1")
    problems.check(
        form.lines * form.length <= _MOST_LETTERS,
        f"--lines {form.lines} of {form.length} letters: more than {_MOST_LETTERS:,} together. Use fewer",
    )
    problems.check(all(form.ends), "--line_ends: one is empty. Give a mark or a line break for each")
    has_letter = any(is_letter(letter) or letter == "\0" for end in form.ends for letter in end)
    problems.check(not has_letter, "--line_ends: contains a letter. Give marks, spaces or line breaks")
    problems.check(
        not form.rhyme or max(len(letters(group)) for group in form.rhyme) >= form.rhymes,
        f"--rhyme: no group has the {form.rhymes} different letters that {form.lines} lines need. Give more",
    )
    return problems.messages


def is_letter(character: str) -> bool:
    """Return whether a character counts as a letter of a line."""
    return unicodedata.category(character)[0] == "L"


def letters(group: str) -> set[str]:
    """Return the letters of a group, without what separates them."""
    return set(filter(is_letter, group))


class VerseConstraint:
    """The form as a constraint on tokens.

    Args:
        form: the form.
        tokens: the bytes that each id adds to the text (`tokenizer.token_bytes`).
        added: special tokens; none of them may be part of a poem.
        eos: the id that ends a document, and the poem.
        encode: text to ids, to spell the fixed marks as the tokenizer does.
    """

    def __init__(
        self, form: VerseForm, tokens: Sequence[bytes], added: set[int], eos: int, encode: Callable[[str], list[int]]
    ) -> None:
        self.form = form
        self._tokens = [b"" if i in added else token for i, token in enumerate(tokens)]
        self._eos = eos
        self._encode = encode
        self._all_bytes = {bytes([byte]) for byte in range(256)} <= set(self._tokens)
        self._template = form.template
        lengths = (form.length + len(form.ends[i % len(form.ends)]) for i in range(form.lines))
        self._starts = [0, *itertools.accumulate(lengths)]
        whole = {read[0] for token in self._tokens if (read := _whole(token)) and not read[1]}
        if not self._all_bytes and not any(len(text) == 1 and is_letter(text) for text in whole):
            raise UserError(
                "--lines: this tokenizer has no token of a single letter, so it cannot count lines. Use another one"
            )
        missing = set() if self._all_bytes else set(self._template) - whole - {"\0"}
        if missing:
            raise UserError(f"--line_ends: this tokenizer has no token for {sorted(missing)}. Give others")
        self._groups = [letters(group) & whole if not self._all_bytes else letters(group) for group in form.rhyme]
        self._groups = [group for group in self._groups if len(group) >= form.rhymes]
        if form.rhymes and not self._groups:
            raise UserError("--rhyme: this tokenizer has too few of the letters. Give more")
        self._pieces = functools.lru_cache(1 << 12)(self._read)

    def beginning(self, prompt: str) -> str:
        """Return the prompt if it is the beginning of such a poem, else an empty text."""
        if len(prompt) >= len(self._template):
            return ""
        places = self._template[: len(prompt)]
        if not all(is_letter(c) if place == "\0" else c == place for c, place in zip(prompt, places, strict=True)):
            return ""
        lines = [self.line(prompt, i) for i in range(1, self.form.lines, 2)]
        ends = [line[-1] for line in lines if len(line) == self.form.length]
        return prompt if not self.form.rhymes or self._endings(ends) is not None else ""

    def after(self, prompt: str) -> Callable[[Sequence[int]], Mask]:
        """Return the constraint on what follows a prompt."""
        start = self.beginning(prompt).encode()

        def allowed(new: Sequence[int]) -> Mask:
            return self._allowed(start + b"".join(self._tokens[i] for i in new))

        return allowed

    def line(self, text: str, i: int) -> str:
        """Return the letters of line i (from 0) that the text has."""
        return text[self._starts[i] : self._starts[i] + self.form.length]

    def _allowed(self, poem: bytes) -> Mask:
        """Return which tokens may follow; `poem` may end inside a character."""
        mask = np.zeros(len(self._tokens), dtype=bool)
        text, rest = _split(poem)
        if len(text) >= len(self._template):
            mask[self._eos] = True
        elif self._template[len(text)] != "\0":
            marks = self._template[len(text) :].split("\0")[0].encode()
            mask[self._mark_tokens(marks[len(rest) :], rest)] = True
        else:
            i = bisect.bisect_right(self._starts, len(text)) - 1
            mask[self._letter_tokens(text, rest, i, self.form.length - (len(text) - self._starts[i]))] = True
        return mask

    def _mark_tokens(self, marks: bytes, rest: bytes) -> list[int]:
        """Return the ids that spell fixed marks: the tokenizer's own, or, inside a character, all that fit."""
        if not rest:
            first = self._encode(marks.decode())[:1]
            if first and self._tokens[first[0]] and marks.startswith(self._tokens[first[0]]):
                return first
        return [i for i, token in enumerate(self._tokens) if token and marks.startswith(token)]

    def _letter_tokens(self, text: str, rest: bytes, i: int, left: int) -> NDArray[np.int64]:
        """Return the ids that continue line i, which lacks `left` letters, the first perhaps begun by `rest`."""
        pieces = self._pieces(rest)
        last, forbidden = self._last(text, i, self.line(text, i), left)
        size = pieces.count + pieces.open
        fits = size <= left
        for at in np.flatnonzero(size == left) if last is not None or forbidden else ():
            more, opened = pieces.text[at], pieces.rest[at]
            repeats = forbidden.get(more if opened else more[:-1], set())
            if not opened:
                fits[at] = more[-1] not in repeats and (last is None or more[-1] in last)
            elif last is None:  # the line's last letter is begun here: some letter must be left to end it
                fits[at] = _beginnings()[opened] > sum(c.encode().startswith(opened) for c in repeats)
            else:
                fits[at] = any(c.encode().startswith(opened) for c in last - repeats)
        return pieces.ids[fits]

    def _last(self, text: str, i: int, line: str, left: int) -> tuple[set[str] | None, dict[str, set[str]]]:
        """Return the letters in which line i may end (None: any), and those that would repeat an earlier line, by the
        letters that come before them."""
        forbidden: dict[str, set[str]] = {}
        for j in range(i):
            earlier = self.line(text, j)
            if earlier.startswith(line):
                forbidden.setdefault(earlier[len(line) : -1], set()).add(earlier[-1])
        if not self.form.rhymes or i % 2 == 0:
            return None, forbidden
        last = self._endings([self.line(text, j)[-1] for j in range(1, i, 2)]) or set()
        return last, {} if any(last <= same for same in forbidden.values()) else forbidden

    def _endings(self, used: list[str]) -> set[str] | None:
        """Return the letters that rhyme with those used, without them; None if these do not rhyme with each other."""
        fitting = [group for group in self._groups if len(set(used)) == len(used) and set(used) <= group]
        return set().union(*fitting) - set(used) if fitting else None

    def _read(self, begun: bytes) -> _Pieces:
        """Return the tokens that consist of letters, after the first bytes of a letter."""
        ids, texts, rests = [], [], []
        for i, token in enumerate(self._tokens):
            if not token or (0x80 <= token[0] < 0xC0) != bool(begun):
                continue
            read = _whole(begun + token) if self._all_bytes or not begun else None
            if read is None or (read[1] and not self._all_bytes) or not all(map(is_letter, read[0])):
                continue
            if read[1] and read[1] not in _beginnings():
                continue
            ids.append(i)
            texts.append(read[0])
            rests.append(read[1])
        counts = np.array([len(text) for text in texts], dtype=np.int64)
        opened = np.array([bool(rest) for rest in rests], dtype=np.int64)
        return _Pieces(np.array(ids, dtype=np.int64), texts, rests, counts, opened)


@dataclass(frozen=True)
class _Pieces:
    """Tokens of letters: the letters that each completes, and the first bytes of one more that it begins."""

    ids: NDArray[np.int64]
    text: list[str]
    rest: list[bytes]
    count: NDArray[np.int64]
    open: NDArray[np.int64]


def _whole(token: bytes) -> tuple[str, bytes] | None:
    """Return the characters, and the first bytes of one more; None for bytes that are not such text."""
    for cut in range(4):
        if cut > len(token):
            break
        try:
            text = token[: len(token) - cut].decode()
        except UnicodeDecodeError:
            continue
        return text, token[len(token) - cut :]
    return None


def _split(poem: bytes) -> tuple[str, bytes]:
    parts = _whole(poem)
    assert parts is not None, "every token that was allowed continues a text"
    return parts


@functools.lru_cache(1)
def _beginnings() -> Counter[bytes]:
    """Return the first bytes of letters, with the number of letters that begin with them."""
    counts: Counter[bytes] = Counter()
    for code in range(0x80, sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000 and is_letter(chr(code)):
            whole = chr(code).encode()
            counts.update(whole[:cut] for cut in range(1, len(whole)))
    return counts
