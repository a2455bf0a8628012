"""What a user may ask of generation: how tokens are chosen, how much text, and when it ends. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gpt2kit.errors import problems_of
from gpt2kit.generation import verse as verses
from gpt2kit.generation.verse import Form

Precision = Literal["auto", "32", "bf16", "16"]


@dataclass(frozen=True)
class Rules:
    """How to choose. The defaults draw from the model's own probabilities."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int = 1


def rule_problems(rules: Rules) -> list[str]:
    """Everything that is wrong with the numbers."""
    broken = {
        f"--temperature {rules.temperature}: must not be negative": not rules.temperature >= 0,
        f"--top_k {rules.top_k}: must not be negative": rules.top_k < 0,
        f"--top_p {rules.top_p}: must be above 0 and at most 1": not 0 < rules.top_p <= 1,
        f"--min_p {rules.min_p}: must be from 0 to 1": not 0 <= rules.min_p <= 1,
        f"--typical_p {rules.typical_p}: must be above 0 and at most 1": not 0 < rules.typical_p <= 1,
        f"--repetition_penalty {rules.repetition_penalty}: must be above 0": not 0 < rules.repetition_penalty < 1e6,
        f"--no_repeat_ngram_size {rules.no_repeat_ngram_size}: must not be negative": rules.no_repeat_ngram_size < 0,
    }
    return problems_of(broken)


@dataclass(frozen=True)
class Wish:
    """What to write. `form` None: prose; else `max_new_tokens` does not count, since the form says where the end is."""

    rules: Rules = field(default_factory=Rules)
    num_samples: int = 1
    max_new_tokens: int = 200
    stop: tuple[str, ...] = ()
    banned_words: tuple[str, ...] = ()
    max_newlines: int | None = None
    strip_special: bool = False
    form: Form | None = None
    batch_size: int = 16
    alternatives: int = 0


def problems(wish: Wish) -> list[str]:
    """Everything that is wrong with a wish, in the words of the command line."""
    rules, form = wish.rules, wish.form
    broken = {
        f"--num_samples {wish.num_samples}: must be at least 1": wish.num_samples < 1,
        f"--max_new_tokens {wish.max_new_tokens}: must not be negative": wish.max_new_tokens < 0,
        f"--batch_size {wish.batch_size}: must be at least 1": wish.batch_size < 1,
        "--num_samples: at temperature 0 all would be the same. Leave one of them out": wish.num_samples > 1
        and rules.temperature == 0,
        "--stop: an empty text stops everything. Leave it out": "" in wish.stop,
        "--banned_words: an empty word is everywhere. Leave it out": "" in wish.banned_words,
        f"--max_newlines {wish.max_newlines}: must not be negative": (wish.max_newlines or 0) < 0,
        "--stop: a verse ends where its form ends. Leave out one of them": form is not None and bool(wish.stop),
    }
    found = rule_problems(rules) + problems_of(broken)
    ends, rhyme = (form.ends, form.rhyme) if form else ((), ())
    words = {"--stop": wish.stop, "--banned_words": wish.banned_words, "--line_ends": ends, "--rhyme": rhyme}
    found += [
        f"{name}: holds bytes that are no text. Give it in UTF-8" for name, some in words.items() if not _text(*some)
    ]
    return found + (verses.problems(form) if form else [])


def _text(*words: str) -> bool:
    """Whether all are text; what a shell hands over may hold other bytes."""
    return not any(0xD800 <= ord(letter) < 0xE000 for word in words for letter in word)
