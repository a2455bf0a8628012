from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from gpt2kit.generation.constraints import BannedWords
from gpt2kit.tokenization import trainers
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.tokenizer import eos_id, token_bytes

TEXT = ["春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。", "Never say never again.\n\n\nNo 🙂 never!"] * 20


@pytest.fixture(scope="module", params=["bpe", "char"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    train = {"bpe": trainers.train_bpe, "char": trainers.train_char}[request.param]
    return train(TEXT, TokenizerSpec(vocab_size=330))


def test_token_bytes_join_to_the_text(tokenizer: Tokenizer) -> None:
    tokens = token_bytes(tokenizer)
    for text in [*TEXT[:2], "é日本🙂\x00 abc\u2581"]:
        assert b"".join(tokens[i] for i in tokenizer.encode(text).ids).decode() == text


@pytest.mark.parametrize("words", [["never"], ["花", "落知"], ["🙂"], ["\n\n"], ["e", "ever"]])
def test_banned_words_are_never_generated(tokenizer: Tokenizer, words: list[str]) -> None:
    """Draw from tokens that contain or are contained in the words, so that they are likely to be spelled."""
    tokens = token_bytes(tokenizer)
    eos = eos_id(tokenizer)
    banned = [word.encode() for word in words]
    related = [i for i, token in enumerate(tokens) if token and any(token in word or word in token for word in banned)]
    random_generator = random.Random(1)
    prompt = words[0][:-1]
    allowed = BannedWords(words, tokens, set(), eos).after(prompt)
    new: list[int] = []
    for _ in range(400):
        mask = allowed(new)
        assert mask[eos]
        new.append(random_generator.choice([i for i in [*related, tokens.index(b"x")] if mask[i] and i != eos]))
    text = prompt.encode() + b"".join(tokens[i] for i in new)
    assert not any(word in text for word in banned)


def test_only_the_token_that_completes_a_word_is_banned(tokenizer: Tokenizer) -> None:
    tokens = token_bytes(tokenizer)
    banned_words = BannedWords(["never"], tokens, {5}, eos_id(tokenizer))
    mask = banned_words.after("neve")([])
    assert [i for i in np.flatnonzero(~mask) if i != 5] == [
        i for i, token in enumerate(tokens) if token.startswith(b"r") or b"never" in token
    ]
    other_case = banned_words.after("Neve")([])
    assert not mask[5] and other_case.sum() == len(tokens) - 1 - sum(b"never" in token for token in tokens)
