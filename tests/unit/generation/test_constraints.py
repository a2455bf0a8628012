"""What is banned is never written, whatever tokens spell it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from gpt2kit.generation.constraints import BannedWords
from gpt2kit.generation.text_stream import StopStrings
from gpt2kit.tokenization import trainers
from gpt2kit.tokenization.tokenizer import eos_id, token_bytes

TEXT = ["春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。", "Never say never again.\n\n\nNo 🙂 never!"] * 20


@pytest.fixture(scope="module", params=["bpe", "char"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    train = {"bpe": trainers.train_bpe, "char": trainers.train_char}[request.param]
    return train(TEXT, trainers.TokenizerSpec(vocab_size=330))


def test_bytes_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    tokens = token_bytes(tokenizer)
    for text in [*TEXT[:2], "é日本🙂\x00 abc\u2581"]:
        assert b"".join(tokens[i] for i in tokenizer.encode(text).ids).decode() == text


@pytest.mark.parametrize("words", [["never"], ["花", "落知"], ["🙂"], ["\n\n"], ["e", "ever"]])
def test_no_draw_writes_it(tokenizer: Tokenizer, words: list[str]) -> None:
    """Random tokens, likely to spell the words, from a vocabulary of pieces of them."""
    tokens = token_bytes(tokenizer)
    eos = eos_id(tokenizer)
    ban = BannedWords(words, tokens, set(), eos)
    near = [
        i for i, token in enumerate(tokens) if token and any(token in w.encode() or w.encode() in token for w in words)
    ]
    drawn = random.Random(1)
    prompt = words[0][:-1]
    allowed = ban.after(prompt)
    new: list[int] = []
    for _ in range(400):
        mask = allowed(new)
        assert mask[eos]
        new.append(drawn.choice([i for i in [*near, tokens.index(b"x")] if mask[i] and i != eos]))
    written = prompt.encode() + b"".join(tokens[i] for i in new)
    assert not any(word.encode() in written for word in words)


def test_only_what_completes_a_word_is_forbidden(tokenizer: Tokenizer) -> None:
    tokens = token_bytes(tokenizer)
    ban = BannedWords(["never"], tokens, {5}, eos_id(tokenizer))
    mask = ban.after("neve")([])
    assert [i for i in np.flatnonzero(~mask) if i != 5] == [
        i for i, token in enumerate(tokens) if token.startswith(b"r") or b"never" in token
    ]
    assert not mask[5] and ban.after("Neve")([]).sum() == len(tokens) - 1 - sum(b"never" in token for token in tokens)


def test_stop_words_wait_for_their_end() -> None:
    stops = StopStrings(["END", "\n\n"])
    assert [stops.push(piece) for piece in ["a E", "N", "x\n", "b\n", "\nmore", "never"]] == [
        "a ",
        "",
        "ENx",
        "\nb",
        "",
        "",
    ]
    assert stops.is_reached and not stops.flush()
    open_ = StopStrings(["END"])
    assert open_.push("aEN") + open_.flush() == "aEN" and not open_.is_reached
    assert StopStrings([]).push("x") == "x"
    first = StopStrings(["cd", "bcde"])
    assert first.push("abcde") == "a" and first.is_reached
