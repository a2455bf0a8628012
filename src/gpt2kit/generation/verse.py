"""Verse: a constraint on tokens that keeps a poem in its form, N lines of M letters.

The template of a form is a sequence of free letters and fixed marks. A token fits if its characters fit the next
positions of the template. A token that ends inside a character fits if some allowed letter begins with these bytes. So
a poem always keeps its form, and it never reaches a position where no token fits.
"""

from __future__ import annotations

import bisect
import codecs
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
from gpt2kit.generation.constraints import Constraint, Mask

Ids = NDArray[np.int64]
LINE_ENDS = ("，", "。\n")
# Maximum number of letters in a poem.
_MAX_LETTERS = 1_000_000
# A free letter in a template.
_FREE = "\0"


@dataclass(frozen=True)
class VerseForm:
    """The form of a poem. A letter is a character of Unicode category L, so a Han character is one letter."""

    lines: int
    length: int  # letters per line
    ends: tuple[str, ...] = LINE_ENDS  # text after each line, repeated; the last line breaks of a poem are dropped
    rhyme: tuple[str, ...] = ()  # groups of letters; every second line ends in a different letter of one group

    @property
    def rhymes(self) -> int:
        """The number of lines that rhyme."""
        return self.lines // 2 if self.rhyme else 0

    @property
    def template(self) -> str:
        """The poem with U+0000 for each free letter."""
        lines = (_FREE * self.length + self.ends[i % len(self.ends)] for i in range(self.lines))
        return "".join(lines).rstrip("\n")


def form_problems(form: VerseForm) -> list[str]:
    """List what is invalid in a form, in terms of generate.py's options."""
    problems = Problems()
    problems.check(form.lines >= 1, f"--lines {form.lines}: must be at least 1")
    problems.check(form.length >= 1, f"--chars_per_line {form.length}: must be at least 1")
    problems.check(
        form.lines * form.length <= _MAX_LETTERS,
        f"--lines {form.lines} of {form.length} letters: more than {_MAX_LETTERS:,} letters together. Use fewer",
    )
    problems.check(all(form.ends), "--line_ends: one is empty. Each must be a mark or a line break")
    has_letter = any(is_letter(letter) or letter == _FREE for end in form.ends for letter in end)
    problems.check(not has_letter, "--line_ends: contains a letter. Give marks, spaces or line breaks")
    problems.check(
        not form.rhyme or max(len(letters(group)) for group in form.rhyme) >= form.rhymes,
        f"--rhyme: no group has the {form.rhymes} different letters that {form.lines} lines need. Give more letters",
    )
    return problems.messages


def is_letter(character: str) -> bool:
    """Return whether a character counts as a letter of a line."""
    return unicodedata.category(character)[0] == "L"


def letters(group: str) -> set[str]:
    """Return the letters of a group, without separators."""
    return set(filter(is_letter, group))


class VerseConstraint:
    """The form of a poem as a constraint on tokens.

    Args:
        form: the form.
        tokens: the bytes that each id adds to the text (`tokenizer.token_bytes`).
        added: ids of special tokens; a poem contains none of them.
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
        self._template = form.template
        lengths = (form.length + len(form.ends[i % len(form.ends)]) for i in range(form.lines))
        self._line_starts = [0, *itertools.accumulate(lengths)]
        groups = [letters(group) for group in form.rhyme]
        # A tokenizer with a token for each byte can spell any character; another one only those that are tokens.
        self._has_all_bytes = {bytes([byte]) for byte in range(256)} <= set(self._tokens)
        if not self._has_all_bytes:
            characters = self._find_characters()
            groups = [group & characters for group in groups]
        self._rhyme_groups = [group for group in groups if len(group) >= form.rhymes]
        if form.rhymes and not self._rhyme_groups:
            raise UserError("--rhyme: this tokenizer has tokens for too few of the letters. Give more letters")
        self._letter_tokens = functools.lru_cache(1 << 12)(self._find_letter_tokens)

    def _find_characters(self) -> set[str]:
        """Return the characters that are tokens; raise if they are not enough for the form."""
        decoded = filter(None, map(decode_start, self._tokens))
        characters = {text for text, rest in decoded if len(text) == 1 and not rest}
        if not any(map(is_letter, characters)):
            raise UserError(
                "--lines: this tokenizer has no token for a single letter, so letters cannot be counted. Use another "
                "tokenizer"
            )
        missing = set(self._template) - characters - {_FREE}
        if missing:
            raise UserError(f"--line_ends: this tokenizer has no token for {sorted(missing)}. Use other marks")
        return characters

    def beginning(self, prompt: str) -> str:
        """Return the prompt if it is the beginning of a poem in this form, else an empty text."""
        if len(prompt) >= len(self._template):
            return ""
        for character, place in zip(prompt, self._template, strict=False):
            if not (is_letter(character) if place == _FREE else character == place):
                return ""
        used = self._used_rhymes(prompt)
        is_rhymed = len(set(used)) == len(used) and any(group.issuperset(used) for group in self._rhyme_groups)
        return prompt if is_rhymed or not self.form.rhymes else ""

    def after(self, prompt: str) -> Constraint:
        """Return the constraint on what follows a prompt."""
        start = self.beginning(prompt).encode()

        def allowed(new: Sequence[int]) -> Mask:
            return self._allowed(start + b"".join(self._tokens[i] for i in new))

        return allowed

    def _allowed(self, poem: bytes) -> Mask:
        """Return which tokens may follow; `poem` may end inside a character."""
        mask = np.zeros(len(self._tokens), dtype=bool)
        split = decode_start(poem)
        assert split is not None, "every token that was allowed continues a text"
        text, rest = split
        if len(text) >= len(self._template):
            mask[self._eos] = True
        elif self._template[len(text)] == _FREE:
            mask[self._next_letters(text, rest)] = True
        else:
            marks = self._template[len(text) :].split(_FREE)[0]
            mask[self._next_marks(marks, rest)] = True
        return mask

    def _next_marks(self, marks: str, rest: bytes) -> list[int]:
        """Return the ids that spell fixed marks: the tokenizer's choice, or all that fit after the bytes `rest`."""
        raw = marks.encode()
        if not rest:
            first = self._encode(marks)[:1]
            if first and self._tokens[first[0]] and raw.startswith(self._tokens[first[0]]):
                return first
        return [i for i, token in enumerate(self._tokens) if token and raw.startswith(token, len(rest))]

    def _next_letters(self, text: str, rest: bytes) -> Ids:
        """Return the ids that continue the last line of `text` and `rest`, the first bytes of a letter, if any."""
        number = bisect.bisect_right(self._line_starts, len(text)) - 1
        line = self._line(text, number)
        left = self.form.length - len(line)
        ids, sizes, decoded = self._letter_tokens(rest)
        fits = sizes <= left
        rhymes, repeats = self._line_ends(text, number, line)
        if rhymes is not None or repeats:
            for i in np.flatnonzero(sizes == left):
                fits[i] = can_end_line(*decoded[i], rhymes, repeats)
        return ids[fits]

    def _line(self, text: str, number: int) -> str:
        """Return the letters of line `number`, counted from 0, that the text contains so far."""
        return text[self._line_starts[number] :][: self.form.length]

    def _used_rhymes(self, text: str) -> list[str]:
        """Return the last letters of the complete lines that rhyme."""
        lines = (self._line(text, number) for number in range(1, self.form.lines, 2))
        return [line[-1] for line in lines if len(line) == self.form.length]

    def _line_ends(self, text: str, number: int, line: str) -> tuple[set[str] | None, dict[str, set[str]]]:
        """Return the letters with which a line may end to rhyme (None: any), and those that would repeat an earlier
        line, by the letters that come between `line` and them."""
        repeats: dict[str, set[str]] = {}
        for earlier in (self._line(text, i) for i in range(number)):
            if earlier.startswith(line):
                repeats.setdefault(earlier[len(line) : -1], set()).add(earlier[-1])
        if not self.form.rhymes or number % 2 == 0:
            return None, repeats
        used = self._used_rhymes(text)
        rhymes = set[str]().union(*(group for group in self._rhyme_groups if group.issuperset(used))).difference(used)
        # A line may repeat an earlier one if no rhyme would be left otherwise.
        return rhymes, {} if any(rhymes <= ends for ends in repeats.values()) else repeats

    def _find_letter_tokens(self, start: bytes) -> tuple[Ids, Ids, list[tuple[str, bytes]]]:
        """Return the tokens that consist of letters, after the first bytes of a letter.

        The arrays contain their ids and the number of letters that each contains or begins. The list contains the
        result of `decode_start` for `start` and each token.
        """
        ids, decoded = [], []
        for i, token in enumerate(self._tokens):
            # 0x80 to 0xBF continue a character in UTF-8: they are needed after `start`, and wrong without it.
            if not token or (0x80 <= token[0] < 0xC0) != bool(start):
                continue
            split = decode_start(start + token)
            if split is None or not all(map(is_letter, split[0])):
                continue
            if not split[1] or (self._has_all_bytes and split[1] in _letter_starts()):
                ids.append(i)
                decoded.append(split)
        sizes = [len(text) + bool(rest) for text, rest in decoded]
        return np.array(ids, np.int64), np.array(sizes, np.int64), decoded


def can_end_line(text: str, rest: bytes, rhymes: set[str] | None, repeats: dict[str, set[str]]) -> bool:
    """Return whether a line may end with these letters, or with one more letter that begins with the bytes `rest`."""
    if not rest:
        return text[-1] not in repeats.get(text[:-1], ()) and (rhymes is None or text[-1] in rhymes)
    repeated = repeats.get(text, set())
    if rhymes is None:
        return _letter_starts()[rest] > sum(letter.encode().startswith(rest) for letter in repeated)
    return any(letter.encode().startswith(rest) for letter in rhymes - repeated)


def decode_start(raw: bytes) -> tuple[str, bytes] | None:
    """Return the characters in `raw`, and the first bytes of one more; None for bytes that are not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return decoder.decode(raw), decoder.getstate()[0]
    except UnicodeDecodeError:
        return None


@functools.lru_cache(1)
def _letter_starts() -> Counter[bytes]:
    """Return the first bytes of letters, with the number of letters that begin with them."""
    counts: Counter[bytes] = Counter()
    for code in range(0x80, sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000 and is_letter(chr(code)):
            letter = chr(code).encode()
            counts.update(letter[:cut] for cut in range(1, len(letter)))
    return counts
