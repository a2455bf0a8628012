"""Verse: which tokens keep a poem's form, so many lines of so many letters, whatever the model would rather say.

A form is a row of places: letters to choose and marks that are given. A token fits if its characters fit the next
places; a token that ends within a character fits if some letter that may stand there goes on like that. So a poem can
neither leave its form nor come to a place where nothing fits.
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

from gpt2kit.errors import UserError

LINE_ENDS = ("，", "。\n")
_MOST = 1_000_000
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class VerseForm:
    """A poem's form.

    Args:
        lines: how many.
        length: letters in each: characters that Unicode calls letters, so Han characters count one each.
        ends: what stands after the first line, the second, and so on, over again; the last one's line breaks are left
            out at the poem's end.
        rhyme: groups of letters that rhyme. The second line, the fourth, and so on end in different letters of one.
    """

    lines: int
    length: int
    ends: tuple[str, ...] = LINE_ENDS
    rhyme: tuple[str, ...] = ()

    @property
    def rhymes(self) -> int:
        """How many lines rhyme."""
        return self.lines // 2 if self.rhyme else 0

    @property
    def template(self) -> str:
        """The whole poem with U+0000 for each letter to be chosen."""
        lines = ("\0" * self.length + self.ends[i % len(self.ends)] for i in range(self.lines))
        return "".join(lines).rstrip("\n")


def form_problems(form: VerseForm) -> list[str]:
    """Everything that is wrong with a form."""
    found = []
    if form.lines < 1:
        found.append(f"--lines {form.lines}: must be at least 1")
    if form.length < 1:
        found.append(f"--chars_per_line {form.length}: must be at least 1")
    if form.lines * form.length > _MOST:
        found.append(f"--lines {form.lines} of {form.length} letters: more than {_MOST:,} together. Give fewer")
    if not all(form.ends):
        found.append("--line_ends: one is empty. Give a mark or a line break for each")
    if any(is_letter(letter) or letter == "\0" for end in form.ends for letter in end):
        found.append("--line_ends: a letter in it. Give marks, spaces or line breaks")
    if form.rhyme and max(len(letters(group)) for group in form.rhyme) < form.rhymes:
        found.append(f"--rhyme: no group has {form.rhymes} different letters, as {form.lines} lines need. Give more")
    return found


def is_letter(character: str) -> bool:
    """Whether a line may have it."""
    return unicodedata.category(character)[0] == "L"


def letters(group: str) -> set[str]:
    """The different letters of a group, whatever stands between them."""
    return set(filter(is_letter, group))


class VerseConstraint:
    """The form as a constraint on tokens.

    Args:
        form: the form.
        tokens: what each id adds to the text (`tokenizer.token_bytes`).
        added: special tokens; none of them is part of a poem.
        eos: the id that ends a document, and the poem.
        encode: text to ids, to write the given marks as the tokenizer does.
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
            raise UserError("--lines: this tokenizer has no token of one letter, so no line can be counted out")
        lacking = set() if self._all_bytes else set(self._template) - whole - {"\0"}
        if lacking:
            raise UserError(f"--line_ends: this tokenizer has no token for {sorted(lacking)}. Give others")
        self._groups = [letters(group) & whole if not self._all_bytes else letters(group) for group in form.rhyme]
        self._groups = [group for group in self._groups if len(group) >= form.rhymes]
        if form.rhymes and not self._groups:
            raise UserError("--rhyme: this tokenizer can write too few of the letters. Give more")
        self._pieces = functools.lru_cache(1 << 12)(self._read)

    def beginning(self, prompt: str) -> str:
        """The prompt, if it is the beginning of such a poem and is to be counted in; else nothing."""
        if len(prompt) >= len(self._template):
            return ""
        places = self._template[: len(prompt)]
        if not all(is_letter(c) if place == "\0" else c == place for c, place in zip(prompt, places, strict=True)):
            return ""
        lines = [self.line(prompt, i) for i in range(1, self.form.lines, 2)]
        ends = [line[-1] for line in lines if len(line) == self.form.length]
        return prompt if not self.form.rhymes or self._endings(ends) is not None else ""

    def after(self, prompt: str) -> Callable[[Sequence[int]], Mask]:
        """The constraint on what follows a prompt."""
        begun = self.beginning(prompt).encode()

        def allowed(new: Sequence[int]) -> Mask:
            return self._allowed(begun + b"".join(self._tokens[i] for i in new))

        return allowed

    def line(self, text: str, i: int) -> str:
        """The letters of line i (from 0), as far as they are written."""
        return text[self._starts[i] : self._starts[i] + self.form.length]

    def _allowed(self, written: bytes) -> Mask:
        found = np.zeros(len(self._tokens), dtype=bool)
        text, begun = _split(written)
        if len(text) >= len(self._template):
            found[self._eos] = True
            return found
        if self._template[len(text)] != "\0":
            found[self._given(self._template[len(text) :].split("\0")[0].encode()[len(begun) :], begun)] = True
            return found
        i = bisect.bisect_right(self._starts, len(text)) - 1
        self._letters(found, text, begun, i, self.form.length - (len(text) - self._starts[i]))
        return found

    def _given(self, rest: bytes, begun: bytes) -> list[int]:
        """The ids that write a mark: as the tokenizer cuts it, or, within a character, all that fit."""
        if not begun:
            first = self._encode(rest.decode())[:1]
            if first and self._tokens[first[0]] and rest.startswith(self._tokens[first[0]]):
                return first
        return [i for i, token in enumerate(self._tokens) if token and rest.startswith(token)]

    def _letters(self, found: Mask, text: str, begun: bytes, i: int, left: int) -> None:
        """Mark the tokens that go on in line i, of which `left` letters are missing, one of them maybe begun."""
        pieces = self._pieces(begun)
        line = self.line(text, i)
        last, forbidden = self._last(text, i, line, left)
        size = pieces.count + pieces.open
        fits = size <= left
        for at in np.flatnonzero(size == left) if last is not None or forbidden else ():
            more, rest = pieces.text[at], pieces.rest[at]
            same = forbidden.get(more if rest else more[:-1], set())
            if not rest:
                fits[at] = more[-1] not in same and (last is None or more[-1] in last)
            elif last is None:  # the line's last letter is begun here: some letter must be left to end it
                fits[at] = _beginnings()[rest] > sum(c.encode().startswith(rest) for c in same)
            else:
                fits[at] = any(c.encode().startswith(rest) for c in last - same)
        found[pieces.ids[fits]] = True

    def _last(self, text: str, i: int, line: str, left: int) -> tuple[set[str] | None, dict[str, set[str]]]:
        """The letters in which line i may end (None: any), and, by what is yet to be written before, those in which it
        must not, so as not to repeat an earlier line."""
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
        """The letters that rhyme with those used, without them; None if they do not rhyme among themselves."""
        fitting = [group for group in self._groups if len(set(used)) == len(used) and set(used) <= group]
        return set().union(*fitting) - set(used) if fitting else None

    def _read(self, begun: bytes) -> _Pieces:
        """What each token adds after the first bytes of a letter: only tokens that are letters and nothing else."""
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
    """The tokens that may stand in a line: the letters each completes, the bytes of one more that it begins."""

    ids: NDArray[np.int64]
    text: list[str]
    rest: list[bytes]
    count: NDArray[np.int64]
    open: NDArray[np.int64]


def _whole(token: bytes) -> tuple[str, bytes] | None:
    """The characters and the first bytes of one more; None for what is no such text."""
    for cut in range(4):
        if cut > len(token):
            break
        try:
            text = token[: len(token) - cut].decode()
        except UnicodeDecodeError:
            continue
        return text, token[len(token) - cut :]
    return None


def _split(written: bytes) -> tuple[str, bytes]:
    found = _whole(written)
    assert found is not None, "only what is text so far was allowed"
    return found


@functools.lru_cache(1)
def _beginnings() -> Counter[bytes]:
    """The first bytes of letters, each with the number of letters that begin so."""
    found: Counter[bytes] = Counter()
    for code in range(0x80, sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000 and is_letter(chr(code)):
            whole = chr(code).encode()
            found.update(whole[:cut] for cut in range(1, len(whole)))
    return found
