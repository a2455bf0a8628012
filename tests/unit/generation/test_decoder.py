"""The loop: cached, batched, beyond the context, each text as if it were alone."""

from __future__ import annotations

import itertools
import typing
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gpt2kit.generation.decoder import BatchReader, Decoder, TokenSequence
from gpt2kit.generation.options import SamplingOptions
from gpt2kit.model.config import Activation
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.inference import InferenceGPT2
from gpt2kit.training.module import GPT2Module

PROMPTS = [[0], [0, 5, 6, 7, 8, 9, 10], [0, 11, 12], list(range(14)), list(range(40))]
GREEDY = SamplingOptions(temperature=0)
PURE = SamplingOptions(temperature=1, top_p=1)


@pytest.fixture(scope="module")
def gpt2() -> GPT2:
    """Hugging Face's model, to compare with. Random weights, wide enough to have opinions; 50 tokens in 64 rows."""
    torch.manual_seed(2)
    module = GPT2Module(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=16, initializer_range=0.4)
    return module.model.eval()


def inference(gpt2: GPT2, dtype: torch.dtype = torch.float32) -> InferenceGPT2:
    return InferenceGPT2(gpt2.shape, gpt2.state_dict(), "cpu", dtype)


def write(
    gpt2: GPT2, texts: list[TokenSequence], rules: SamplingOptions, tokens: int, eos: int = -1
) -> list[list[int]]:
    decoder = Decoder(inference(gpt2), texts, rules, eos)
    for _ in range(tokens):
        if decoder.active:
            decoder.step()
    return [text.new for text in texts]


def plain(gpt2: GPT2, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return gpt2(torch.tensor([ids])).logits[0, -1, :50]


def test_the_cache_changes_nothing(gpt2: GPT2) -> None:
    ids = [0, 3]
    while len(ids) < 16:
        ids.append(int(plain(gpt2, ids).argmax()))
    assert write(gpt2, [TokenSequence([0, 3])], GREEDY, 14) == [ids[2:]]


def test_batched_logits_are_those_of_one_by_one(gpt2: GPT2) -> None:
    """Prompts of different length, growing, outgrowing the context at different times, rows leaving in between."""
    model = inference(gpt2, torch.float64)  # what is not rounding would show
    drawn = torch.Generator().manual_seed(1)
    rows = [list(prompt) for prompt in PROMPTS]
    together, alone = BatchReader(model), [BatchReader(model) for _ in rows]
    for step in range(40):
        if step in (3, 20):
            together.select(kept := [i for i in range(len(rows)) if i != 1])
            rows, alone = [rows[i] for i in kept], [alone[i] for i in kept]
        found = together.logits(rows)
        expected = torch.cat([reader.logits([row]) for reader, row in zip(alone, rows, strict=True)])
        assert found.shape[1] == 50 and torch.allclose(found, expected, atol=1e-6)
        rows = [[*row, int(torch.randint(50, (1,), generator=drawn))] for row in rows]
    assert together.has_outgrown_context


def test_beyond_the_context_the_newest_half_stays(gpt2: GPT2) -> None:
    reader, row = BatchReader(inference(gpt2)), list(range(15))
    for length in range(15, 40):
        found = reader.logits([row])[0]
        begin = 0 if length <= 16 else length - 8 - (length - 17) % 9  # half, and what has grown since
        assert torch.allclose(found, plain(gpt2, row[begin:]), atol=1e-4), length
        row = [*row, length % 50]


@pytest.mark.parametrize("activation", typing.get_args(Activation))
def test_logits_are_those_of_transformers(activation: Activation) -> None:
    options = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_inner": 40, "vocab_size": 70, "n_positions": 100}
    model = GPT2({**options, "activation_function": activation, "layer_norm_epsilon": 0.01, "initializer_range": 0.4})
    row = torch.randint(0, 70, (100,), generator=torch.Generator().manual_seed(3)).tolist()
    reader = BatchReader(inference(model.eval()))
    for length in (60, 61, 62, 100):
        with torch.inference_mode():
            expected = model(torch.tensor([row[:length]])).logits[0, -1, :70]
        torch.testing.assert_close(reader.logits([row[:length]])[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rules", [GREEDY, replace(PURE, top_p=0.95), replace(PURE, repetition_penalty=1.3, top_k=9)])
def test_a_text_does_not_depend_on_its_batch(gpt2: GPT2, rules: SamplingOptions) -> None:
    texts = [TokenSequence(prompt, sample) for prompt in PROMPTS for sample in (0, 1)]
    together = write(gpt2, texts, rules, 40, eos=7)
    for text, new in zip(texts, together, strict=True):
        assert write(gpt2, [TokenSequence(text.prompt, text.sample)], rules, 40, eos=7) == [new]
    if rules.temperature:
        assert together[0] != together[1], "samples differ"
    assert 7 not in itertools.chain(*together), "the end is no text"


def test_seeds(gpt2: GPT2) -> None:
    one, again, other = (write(gpt2, [TokenSequence([0])], replace(PURE, seed=seed), 30) for seed in (1, 1, 2))
    assert one == again != other


def test_padded_rows_are_never_drawn(gpt2: GPT2) -> None:
    with torch.no_grad():
        weights = gpt2.transformer.wte.weight
        kept = weights[50:].clone()
        weights[50:] = weights[:50].abs().max() * 10
    assert max(write(gpt2, [TokenSequence([0])], PURE, 300)[0]) < 50
    with torch.no_grad():
        weights[50:] = kept


def test_alternatives_are_the_models_own(gpt2: GPT2) -> None:
    decoder = Decoder(inference(gpt2), [TokenSequence([0])], replace(PURE, top_k=1), -1, alternatives=3)
    chosen = decoder.step()[0]
    probabilities = plain(gpt2, [0]).softmax(-1)
    assert chosen.probability == pytest.approx(float(probabilities[chosen.token]), rel=1e-4)
    assert [token for token, _ in chosen.most_likely] == probabilities.topk(3).indices.tolist()
    assert chosen.most_likely[0][0] == chosen.token
