"""Prompts that end inside a token: every kind of tokenizer, with a model of random weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ODD_TEXTS, SAMPLE_TEXTS, TOKENIZER_KINDS, train_each_kind
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.generation.generator import Generator, TextChunk
from gpt2kit.generation.healing import HealedPrompt, TokenHealing
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.trainers import train_bpe

RANDOM = GenerationOptions(temperature=1.5, top_p=1, max_new_tokens=6)
UNHEALED = replace(RANDOM, token_healing=False)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("kinds")
    train_each_kind(folder)
    return {kind: tokenizers.load(folder / kind) for kind in TOKENIZER_KINDS}


def heal(tokenizer: Tokenizer, prompt: str) -> HealedPrompt:
    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    healing = TokenHealing(tokenizer, tokenizers.token_bytes(tokenizer), tokenizers.added_ids(tokenizer))
    return healing.heal(prompt, encode(prompt), encode)


def choices(tokenizer: Tokenizer, prompt: str) -> set[str]:
    """Return the text of the tokens that may take the place of the end of a prompt."""
    return {tokenizer.decode([i]) for step in heal(tokenizer, prompt).steps for i in step.allowed}


def random_model(tokenizer: Tokenizer) -> Generator:
    torch.manual_seed(1)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 64, "vocab_size": tokenizers.size(tokenizer)}
    gpt2 = GPT2(
        {
            **sizes,
            "n_inner": 32,
            "activation_function": "gelu_new",
            "initializer_range": 0.4,
            "layer_norm_epsilon": 1e-5,
        }
    )
    return Generator(
        LoadedCheckpoint(Path(), gpt2.shape, tokenizer, {}, state=gpt2.state_dict()), note=lambda text: None
    )


def random_prompts() -> Iterator[str]:
    random_generator = random.Random(1)
    for text in [*dict.fromkeys(SAMPLE_TEXTS), *ODD_TEXTS]:
        yield text[: random_generator.randint(1, 40)]


def generate(generator: Generator, prompts: list[str], options: GenerationOptions) -> list[list[TextChunk]]:
    """Return the chunks of the first sample of each prompt."""
    chunks: list[list[TextChunk]] = [[] for _ in prompts]
    for chunk in generator.generate(prompts, options):
        chunks[chunk.prompt].append(chunk)
    return chunks


def texts(generator: Generator, prompts: list[str], options: GenerationOptions) -> list[str]:
    return ["".join(chunk.text for chunk in chunks) for chunks in generate(generator, prompts, options)]


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_whatever_is_chosen_spells_the_prompt(kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer, choices = kinds[kind], 0
    for prompt in random_prompts():
        healed = heal(tokenizer, prompt)
        typed = [step.token for step in healed.steps]
        text = tokenizer.decode([*healed.ids, *typed], skip_special_tokens=False)
        assert text == tokenizer.decode(tokenizer.encode(prompt).ids, skip_special_tokens=False)
        for count, step in enumerate(healed.steps):
            for token in step.allowed[1:]:
                choices += 1
                chosen = [*healed.ids, *typed[:count], token]
                assert tokenizer.decode(chosen, skip_special_tokens=False).startswith(text), (prompt, token)
    assert bool(choices) == (kind != "char")


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_a_text_contains_its_prompt_once(kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer, prompts = kinds[kind], list(random_prompts())
    generator = random_model(tokenizer)
    for prompt, chunks in zip(prompts, generate(generator, prompts, RANDOM), strict=True):
        assert chunks[0].sampled is not None
        text = tokenizer.decode(chunks[0].sampled.sequence.ids[1:], skip_special_tokens=False)
        before = tokenizer.decode(generator.encode(prompt), skip_special_tokens=False)
        after = "".join(chunk.text for chunk in chunks)
        assert text == before + after or "\N{REPLACEMENT CHARACTER}" in text, "random tokens may be parts of characters"
        assert chunks[-1].tokens == 6 or chunks[-1].end == "document"


def test_the_text_is_the_same_if_the_last_token_is_chosen_again(kinds: dict[str, Tokenizer]) -> None:
    """Draws depend on the number of tokens after the prompt, so healing does not shift them."""
    generator, same = random_model(kinds["bpe"]), 0
    prompts = ["the qu", "the quick"]
    for seed in range(40):
        healed, unhealed = (generate(generator, prompts, replace(options, seed=seed)) for options in (RANDOM, UNHEALED))
        for prompt, one, other in zip(prompts, healed, unhealed, strict=True):
            assert one[0].sampled is not None
            if one[0].sampled.token == generator.encode(prompt)[-1]:
                same += 1
                assert "".join(chunk.text for chunk in one) == "".join(chunk.text for chunk in other)
    assert 0 < same < 80


def test_a_healed_text_does_not_depend_on_its_batch(kinds: dict[str, Tokenizer]) -> None:
    prompts = ["", "the ", "日", "the quick brown fox ju", "白日依", "x"]
    generator = random_model(kinds["bpe"])
    options = replace(RANDOM, max_new_tokens=20)
    batched = generate(generator, prompts, options)
    for prompt, chunks in zip(prompts, batched, strict=True):
        (alone,) = generate(generator, [prompt], options)
        assert [(chunk.text, chunk.end, chunk.tokens) for chunk in alone] == [
            (chunk.text, chunk.end, chunk.tokens) for chunk in chunks
        ]


def test_a_character_of_several_tokens_is_chosen_again_as_a_whole() -> None:
    first, second, third, *other = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("日本")[0][0]
    merges = [(third, other[0]), (third + other[0], other[1])]  # a token has the end of one character and more
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    healed = heal(tokenizer, "x日")
    assert (healed.ids, healed.end) == (tokenizer.encode("x").ids, "日")
    assert [[letters[i] for i in step.allowed] for step in healed.steps] == [
        [first],
        [second],
        [third, *("".join(pair) for pair in merges)],
    ]


def test_the_last_space_of_an_indentation_belongs_to_the_next_word() -> None:
    tokenizer = train_bpe(["def f():\n    return\n"] * 9, TokenizerSpec(vocab_size=300))
    prompt = "def f():\n    "
    *others, word = tokenizer.encode(prompt + "return").ids
    healed = heal(tokenizer, prompt)
    assert [*healed.ids, *(step.token for step in healed.steps[:-1])] == others != tokenizer.encode(prompt).ids[:-1]
    assert word in healed.steps[-1].allowed


def test_special_tokens_are_not_chosen_again() -> None:
    spec = TokenizerSpec(vocab_size=300, special_tokens=["<user>", "<us"], parse_special=True)
    tokenizer = train_bpe(["<user> the user, the user"] * 9, spec)
    tokenizer = tokenizers.from_json(tokenizers.to_json(tokenizer), "test")
    assert not any(added in choices(tokenizer, "the us") for added in ("<user>", tokenizers.EOS))
    assert not heal(tokenizer, "the <user>").steps


def test_a_prompt_may_end_in_a_banned_word(kinds: dict[str, Tokenizer]) -> None:
    generator = random_model(kinds["bpe"])
    options = replace(RANDOM, bad_words=[" quick", "e"], max_new_tokens=40)
    for seed in range(5):
        (text,) = texts(generator, ["the quick"], replace(options, seed=seed))
        assert "e" not in text
        (text,) = texts(generator, ["the "], replace(options, seed=seed))
        assert not text.startswith("quick") and "e" not in text


def test_probabilities_are_among_the_tokens_that_are_possible(kinds: dict[str, Tokenizer]) -> None:
    generator = random_model(kinds["bpe"])
    sampled = next(generator.generate(["the "], RANDOM, alternatives=5)).sampled
    assert sampled is not None and 0 < sampled.probability <= 1
    assert all(generator.token_bytes(token).startswith(b" ") for token, _ in sampled.most_likely)


def test_no_new_tokens_leave_the_prompt_as_it_is(kinds: dict[str, Tokenizer]) -> None:
    generator = random_model(kinds["bpe"])
    (chunks,) = generate(generator, ["the "], replace(RANDOM, max_new_tokens=0))
    assert [(chunk.text, chunk.end, chunk.tokens) for chunk in chunks] == [("", "length", 0)]
