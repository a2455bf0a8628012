"""A verse's form holds for every tokenizer, model and seed."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from gpt2kit.errors import UserError
from gpt2kit.generation import verse
from gpt2kit.generation.verse import VerseConstraint, VerseForm
from gpt2kit.tokenization import trainers
from gpt2kit.tokenization.tokenizer import added_ids, eos_id, token_bytes

POEMS = ["春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。", "床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。"] * 9
KINDS = {
    "bpe": (trainers.train_bpe, 300),
    "char": (trainers.train_char, 270),
    "words": (trainers.train_words, 300),
    "wordpiece": (trainers.train_wordpiece, 300),
}


def made(kind: str) -> Tokenizer:
    train, size = KINDS[kind]
    return train(POEMS, trainers.TokenizerSpec(vocab_size=size))


def verse_of(tokenizer: Tokenizer, form: VerseForm) -> VerseConstraint:
    tokens, added = token_bytes(tokenizer), added_ids(tokenizer)
    return VerseConstraint(form, tokens, added, eos_id(tokenizer), lambda text: list(tokenizer.encode(text).ids))


def written(tokenizer: Tokenizer, form: VerseForm, seed: int, prompt: str = "") -> str:
    """A poem by a model that prefers anything to whole characters: drawn evenly from what is allowed."""
    allowed = verse_of(tokenizer, form).after(prompt)
    drawn, new, eos = random.Random(seed), list[int](), eos_id(tokenizer)
    while True:
        fits = np.flatnonzero(allowed(new))
        assert len(fits), "a place where nothing fits"
        token = int(drawn.choice(fits))
        if token == eos:
            return str(tokenizer.decode(new, skip_special_tokens=False))
        new.append(token)


def check(poem: str, form: VerseForm) -> None:
    assert len(poem) == len(form.template) and not poem.endswith("\n")
    assert all(
        verse.is_letter(c) if place == "\0" else c == place for c, place in zip(poem, form.template, strict=True)
    )
    lines = "".join(c if verse.is_letter(c) else " " for c in poem).split()
    assert len(lines) == form.lines and {len(line) for line in lines} == {form.length}
    assert len(set(lines)) == form.lines, "no line comes twice"
    if form.rhyme:
        ends = [line[-1] for line in lines[1::2]]
        assert len(set(ends)) == len(ends) and any(set(ends) <= verse.letters(group) for group in form.rhyme)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("length", [5, 7, 1])
@pytest.mark.parametrize("kind", ["bpe", "char", "words"])
def test_the_form_always_holds(kind: str, length: int, seed: int) -> None:
    tokenizer = made(kind)
    form = VerseForm(8, length, rhyme=("曉鳥少 好草", "光霜鄉陽長", "ab東") if seed % 2 else ())
    check(written(tokenizer, form, seed), form)


@pytest.mark.parametrize("seed", range(4))
def test_wordpiece_can_count_characters_too(seed: int) -> None:
    form = VerseForm(4, 5, ends=("，", "。"), rhyme=("曉鳥少龘",))
    check(written(made("wordpiece"), form, seed), form)
    with pytest.raises(UserError, match="no token for"):
        verse_of(made("wordpiece"), VerseForm(4, 5))
    with pytest.raises(UserError, match="has too few"):
        verse_of(made("wordpiece"), VerseForm(4, 5, ends=("，", "。"), rhyme=("龘靐",)))


def test_other_line_ends() -> None:
    form = VerseForm(5, 3, ends=("\n", "; ", "…\n\n"))
    check(written(made("bpe"), form, 1), form)


def test_a_prompt_that_fits_is_counted_in() -> None:
    tokenizer = made("char")
    form = VerseForm(4, 5)
    check("春眠不覺曉，處處" + written(tokenizer, form, 1, "春眠不覺曉，處處"), form)
    check(written(tokenizer, form, 1, "春曉\n"), form)
    rhymed = VerseForm(4, 2, rhyme=("曉鳥",))
    verses = verse_of(tokenizer, rhymed)
    assert verses.beginning("春天，花鳥。\n") and not verses.beginning("春天，花草。\n")
    assert not verses.beginning("春天，花鳥。\n春天，花曉。")


def test_rhymes_come_before_new_lines() -> None:
    """One letter a line, three rhymes for three lines: a line may have to be said again, no rhyme may."""
    form = VerseForm(6, 1, rhyme=("曉鳥少",))
    for seed in range(20):
        poem = written(made("char"), form, seed, "曉，")
        assert set("曉，" + poem) & set("曉鳥少") == set("曉鳥少") and len(poem) == len(form.template) - 2


def test_impossible_forms_are_named_together() -> None:
    wrong = VerseForm(0, 0, ends=("", "a"), rhyme=())
    assert len(verse.form_problems(wrong)) == 4
    assert "--rhyme" in verse.form_problems(VerseForm(8, 5, rhyme=("曉鳥少",)))[0] and not verse.form_problems(
        VerseForm(8, 5)
    )
