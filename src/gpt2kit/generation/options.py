"""Options of sampling and generation, shared by generate.py, the web demo, TextSamples and the Python API. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt2kit.errors import Problems
from gpt2kit.generation import verse
from gpt2kit.generation.verse import VerseForm

# A logit divided by a temperature and multiplied by a penalty of these ranges stays below the largest float32, 3.4e38,
# up to a logit of 3e33. Those of a usable model are below 1e4.
_TEMPERATURES = (0.001, 100)
_PENALTIES = (0.01, 100)
# Limits of memory, which is used before the first token: texts in total and at the same time.
_MAX_SAMPLES = 1_000_000
_MAX_BATCH_SIZE = 10_000

Precision = Literal["auto", "32", "bf16", "16", "32-true", "bf16-true", "16-true"]


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    temperature: float = 0.8
    """Sampling temperature: lower is more conservative, higher more random, 0 is greedy."""
    top_k: int = 0
    """Sample from the k most likely tokens only. 0: off."""
    top_p: float = 0.95
    """Sample from the most likely tokens whose probabilities together reach top_p. 1: off."""
    min_p: float = 0.0
    """Sample from tokens with at least this fraction of the most likely token's probability. 0: off."""
    typical_p: float = 1.0
    """Sample from the tokens closest to the expected information content, up to this total probability. 1: off."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the text already contains become less likely. 1: off."""
    no_repeat_ngram_size: int = 0
    """Never repeat a sequence of this many tokens, unless nothing else is possible. 0: off."""
    seed: int = 1
    """Random seed. The same seed gives the same text, whatever other prompts are generated with it."""


@dataclass(frozen=True)
class GenerationOptions(SamplingOptions):
    """What to generate, and when it ends."""

    num_samples: int = 1
    """Texts per prompt."""
    max_new_tokens: int | None = None
    """Maximum number of tokens to generate; a text may end earlier. Default: 200. Verse has no such limit."""
    stop: Sequence[str] = ()
    """Stop before this text. May be given several times; \\n is a line break, \\\\ a backslash."""
    bad_words: Sequence[str] = ()
    """Never generate this text. May be given several times; \\n is a line break, \\\\ a backslash."""
    max_newlines: int | None = None
    """Maximum number of line breaks in a row."""
    no_special_tokens: bool = False
    """Never generate the tokenizer's special tokens."""
    parse_special: bool = False
    """Encode the name of a special token in a prompt as that token. Default: as ordinary text."""
    token_healing: bool = True
    """A prompt may end inside a token: its last token is chosen again, among those that begin with the same text. Off:
    --no_token_healing."""
    lines: int | None = None
    """Generate verse with this many lines. Every poem has exactly this form."""
    chars_per_line: int | None = None
    """Letters in each line of the verse, such as 5 or 7. Default: 7."""
    line_ends: Sequence[str] = ()
    """Text after each line of the verse, one value per line, repeated as needed. Default: ， 。\\n"""
    rhyme: Sequence[str] = ()
    """Letters that rhyme, as groups. Every second line ends in a different letter of one group."""
    batch_size: int = 16
    """Texts generated at the same time. Changes the speed, not the texts."""

    @property
    def form(self) -> VerseForm | None:
        """The form of the verse; None for prose."""
        if self.lines is None:
            return None
        length = 7 if self.chars_per_line is None else self.chars_per_line
        return VerseForm(self.lines, length, tuple(self.line_ends) or verse.LINE_ENDS, tuple(self.rhyme))

    @property
    def token_limit(self) -> int | None:
        """Maximum number of new tokens; None for verse, which ends with its form."""
        if self.lines is not None:
            return None
        return 200 if self.max_new_tokens is None else self.max_new_tokens


def sampling_problems(options: SamplingOptions) -> list[str]:
    """List what is invalid, in terms of generate.py's options."""
    problems = Problems()
    temperature, (least, most) = options.temperature, _TEMPERATURES
    problems.check(
        temperature == 0 or least <= temperature <= most,
        f"--temperature {temperature}: must be 0 (greedy), or from {least} to {most}",
    )
    problems.check(options.top_k >= 0, f"--top_k {options.top_k}: must not be negative")
    problems.check(0 < options.top_p <= 1, f"--top_p {options.top_p}: must be above 0 and at most 1")
    problems.check(0 <= options.min_p <= 1, f"--min_p {options.min_p}: must be from 0 to 1")
    problems.check(0 < options.typical_p <= 1, f"--typical_p {options.typical_p}: must be above 0 and at most 1")
    penalty, size, (least, most) = options.repetition_penalty, options.no_repeat_ngram_size, _PENALTIES
    problems.check(least <= penalty <= most, f"--repetition_penalty {penalty}: must be from {least} to {most}")
    problems.check(size >= 0, f"--no_repeat_ngram_size {size}: must not be negative")
    return problems.messages


def generation_problems(options: GenerationOptions) -> list[str]:
    """List what is invalid, in terms of generate.py's options."""
    problems = Problems(sampling_problems(options))
    is_verse, is_greedy = options.lines is not None, options.temperature == 0
    problems.check(
        1 <= options.num_samples <= _MAX_SAMPLES,
        f"--num_samples {options.num_samples}: must be from 1 to {_MAX_SAMPLES:,}",
    )
    problems.check(
        options.num_samples <= 1 or not is_greedy,
        "--num_samples: all samples would be the same at temperature 0. Leave out one of the two",
    )
    limit = options.max_new_tokens
    problems.check(limit is None or limit >= 0, f"--max_new_tokens {limit}: must not be negative")
    problems.check(
        limit is None or not is_verse, "--max_new_tokens: verse ends where its form ends. Leave out one of the two"
    )
    problems.check(
        1 <= options.batch_size <= _MAX_BATCH_SIZE,
        f"--batch_size {options.batch_size}: must be from 1 to {_MAX_BATCH_SIZE:,}",
    )
    problems.check("" not in options.stop, "--stop: an empty text would stop at once. Omit it")
    problems.check(not (options.stop and is_verse), "--stop: verse ends where its form ends. Leave out one of the two")
    problems.check("" not in options.bad_words, "--bad_words: an empty word bans everything. Omit it")
    newlines = options.max_newlines
    problems.check(newlines is None or newlines >= 0, f"--max_newlines {newlines}: must not be negative")
    has_form_options = options.chars_per_line is not None or options.line_ends or options.rhyme
    problems.check(
        is_verse or not has_form_options, "--chars_per_line, --line_ends, --rhyme: need --lines, the number of lines"
    )
    for name in ("stop", "bad_words", "line_ends", "rhyme"):
        texts = getattr(options, name)
        problems.check(all(map(is_text, texts)), f"--{name}: contains bytes that are not UTF-8. Encode it as UTF-8")
    return problems.messages + (verse.form_problems(options.form) if options.form else [])


def is_text(argument: str) -> bool:
    """Return whether an argument is text; a shell may also pass other bytes, which Python keeps as surrogates."""
    return not any(0xD800 <= ord(character) < 0xE000 for character in argument)
