"""The form of a poem holds for every tokenizer and every choice of allowed tokens."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from gpt2kit.errors import UserError
from gpt2kit.generation import verse
from gpt2kit.generation.verse import VerseConstraint, VerseForm
from gpt2kit.tokenization import trainers
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.tokenizer import added_ids, eos_id, token_bytes

POEMS = ["春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。", "床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。"] * 9
KINDS = {
    "bpe": (trainers.train_bpe, 300),
    "char": (trainers.train_char, 270),
    "words": (trainers.train_words, 300),
    "wordpiece": (trainers.train_wordpiece, 300),
}


@functools.cache
def train_on_poems(kind: str) -> Tokenizer:
    train, size = KINDS[kind]
    return train(POEMS, TokenizerSpec(vocab_size=size))


def constraint_of(tokenizer: Tokenizer, form: VerseForm) -> VerseConstraint:
    tokens, added = token_bytes(tokenizer), added_ids(tokenizer)
    return VerseConstraint(form, tokens, added, eos_id(tokenizer), lambda text: list(tokenizer.encode(text).ids))


def generate_poem(tokenizer: Tokenizer, form: VerseForm, seed: int, prompt: str = "") -> str:
    """Draw evenly from the allowed tokens, so that many end inside a character."""
    allowed = constraint_of(tokenizer, form).after(prompt)
    random_generator, new, eos = random.Random(seed), list[int](), eos_id(tokenizer)
    while True:
        fitting = np.flatnonzero(allowed(new))
        assert len(fitting), "no token fits"
        token = int(random_generator.choice(fitting))
        if token == eos:
            return str(tokenizer.decode(new, skip_special_tokens=False))
        new.append(token)


def assert_form(poem: str, form: VerseForm) -> None:
    assert len(poem) == len(form.template) and not poem.endswith("\n")
    assert all(
        verse.is_letter(c) if place == "\0" else c == place for c, place in zip(poem, form.template, strict=True)
    )
    lines = "".join(c if verse.is_letter(c) else " " for c in poem).split()
    assert len(lines) == form.lines and {len(line) for line in lines} == {form.length}
    assert len(set(lines)) == form.lines, "a line is repeated"
    if form.rhyme:
        ends = [line[-1] for line in lines[1::2]]
        assert len(set(ends)) == len(ends) and any(set(ends) <= verse.letters(group) for group in form.rhyme)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("length", [5, 7, 1])
@pytest.mark.parametrize("kind", ["bpe", "char", "words"])
def test_the_form_always_holds(kind: str, length: int, seed: int) -> None:
    form = VerseForm(8, length, rhyme=("曉鳥少 好草", "光霜鄉陽長", "ab東") if seed % 2 else ())
    assert_form(generate_poem(train_on_poems(kind), form, seed), form)


@pytest.mark.parametrize("seed", range(4))
def test_wordpiece_keeps_the_form_in_characters(seed: int) -> None:
    form = VerseForm(4, 5, ends=("，", "。"), rhyme=("曉鳥少龘",))
    assert_form(generate_poem(train_on_poems("wordpiece"), form, seed), form)


def test_a_tokenizer_that_lacks_the_characters_is_refused() -> None:
    with pytest.raises(UserError, match="no token for"):
        constraint_of(train_on_poems("wordpiece"), VerseForm(4, 5))
    with pytest.raises(UserError, match="for too few of the letters"):
        constraint_of(train_on_poems("wordpiece"), VerseForm(4, 5, ends=("，", "。"), rhyme=("龘靐",)))


def test_other_line_ends_are_kept() -> None:
    form = VerseForm(5, 3, ends=("\n", "; ", "…\n\n"))
    assert_form(generate_poem(train_on_poems("bpe"), form, 1), form)


def test_a_prompt_that_fits_is_the_beginning_of_the_poem() -> None:
    tokenizer = train_on_poems("char")
    form = VerseForm(4, 5)
    assert_form("春眠不覺曉，處處" + generate_poem(tokenizer, form, 1, "春眠不覺曉，處處"), form)
    assert_form(generate_poem(tokenizer, form, 1, "春曉\n"), form)
    rhymed = constraint_of(tokenizer, VerseForm(4, 2, rhyme=("曉鳥",)))
    assert rhymed.beginning("春天，花鳥。\n") and not rhymed.beginning("春天，花草。\n")
    assert not rhymed.beginning("春天，花鳥。\n春天，花曉。")


def test_a_line_is_repeated_if_no_rhyme_is_left_otherwise() -> None:
    """One letter per line and three rhymes for three lines: a line may have to be repeated, a rhyme may not."""
    form = VerseForm(6, 1, rhyme=("曉鳥少",))
    for seed in range(20):
        poem = generate_poem(train_on_poems("char"), form, seed, "曉，")
        assert set("曉，" + poem) & set("曉鳥少") == set("曉鳥少") and len(poem) == len(form.template) - 2


def test_invalid_forms_are_reported_together() -> None:
    assert len(verse.form_problems(VerseForm(0, 0, ends=("", "a"), rhyme=()))) == 4
    assert "--rhyme" in verse.form_problems(VerseForm(8, 5, rhyme=("曉鳥少",)))[0]
    assert not verse.form_problems(VerseForm(8, 5))
