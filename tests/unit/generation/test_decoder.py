"""The generation loop, compared with Hugging Face's model on one sequence at a time."""

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

PROMPTS = [[0], [0, 5, 6, 7, 8, 9, 10], [0, 11, 12], list(range(14)), list(range(40))]
SHAPE = {
    "n_embd": 32,
    "n_inner": 40,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 0.01,
    "initializer_range": 0.4,
}
GREEDY = SamplingOptions(temperature=0)
PURE = SamplingOptions(temperature=1, top_p=1)


@pytest.fixture(scope="module")
def gpt2() -> GPT2:
    """A model with large random weights, so that predictions are not uniform; 50 tokens in 64 rows."""
    torch.manual_seed(2)
    return GPT2({**SHAPE, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16}).eval()


def inference(gpt2: GPT2, dtype: torch.dtype = torch.float32) -> InferenceGPT2:
    return InferenceGPT2(gpt2.shape, gpt2.state_dict(), "cpu", dtype)


def generate(
    gpt2: GPT2, sequences: list[TokenSequence], options: SamplingOptions, tokens: int, eos: int = -1
) -> list[list[int]]:
    decoder = Decoder(inference(gpt2), sequences, options, eos)
    for _ in range(tokens):
        if decoder.active:
            decoder.step()
    return [sequence.new for sequence in sequences]


def reference_logits(gpt2: GPT2, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return gpt2(torch.tensor([ids])).logits[0, -1, :50]


def test_cached_generation_agrees_with_full_forward_passes(gpt2: GPT2) -> None:
    ids = [0, 3]
    while len(ids) < 16:
        ids.append(int(reference_logits(gpt2, ids).argmax()))
    assert generate(gpt2, [TokenSequence([0, 3])], GREEDY, 14) == [ids[2:]]


def test_batched_logits_agree_with_those_of_each_row_alone(gpt2: GPT2) -> None:
    """Prompts differ in length, outgrow the context at different times, and rows are dropped in between."""
    model = inference(gpt2, torch.float64)  # differences are rounding only
    random_generator = torch.Generator().manual_seed(1)
    rows = [list(prompt) for prompt in PROMPTS]
    batch, single = BatchReader(model), [BatchReader(model) for _ in rows]
    for step in range(40):
        if step in (3, 20):
            kept = [i for i in range(len(rows)) if i != 1]
            batch.select(kept)
            rows, single = [rows[i] for i in kept], [single[i] for i in kept]
        logits = batch.logits(rows)
        expected = torch.cat([reader.logits([row]) for reader, row in zip(single, rows, strict=True)])
        assert logits.shape[1] == 50 and torch.allclose(logits, expected, atol=1e-6)
        rows = [[*row, int(torch.randint(50, (1,), generator=random_generator))] for row in rows]
    assert batch.has_outgrown_context


def test_a_full_context_is_reduced_to_its_newest_half(gpt2: GPT2) -> None:
    reader, row = BatchReader(inference(gpt2)), list(range(15))
    for length in range(15, 40):
        logits = reader.logits([row])[0]
        start = 0 if length <= 16 else length - 8 - (length - 17) % 9  # half, and the tokens since then
        assert torch.allclose(logits, reference_logits(gpt2, row[start:]), atol=1e-4), length
        row = [*row, length % 50]


@pytest.mark.parametrize("activation", typing.get_args(Activation))
def test_logits_agree_with_transformers(activation: Activation) -> None:
    sizes = {"n_layer": 3, "n_head": 4, "vocab_size": 70, "n_positions": 100}
    model = GPT2({**SHAPE, **sizes, "activation_function": activation})
    row = torch.randint(0, 70, (100,), generator=torch.Generator().manual_seed(3)).tolist()
    reader = BatchReader(inference(model.eval()))
    for length in (60, 61, 62, 100):
        with torch.inference_mode():
            expected = model(torch.tensor([row[:length]])).logits[0, -1, :70]
        torch.testing.assert_close(reader.logits([row[:length]])[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [GREEDY, replace(PURE, top_p=0.95), replace(PURE, repetition_penalty=1.3, top_k=9)])
def test_a_text_does_not_depend_on_its_batch(gpt2: GPT2, options: SamplingOptions) -> None:
    sequences = [TokenSequence(prompt, sample) for prompt in PROMPTS for sample in (0, 1)]
    batched = generate(gpt2, sequences, options, 40, eos=7)
    for sequence, new in zip(sequences, batched, strict=True):
        assert generate(gpt2, [TokenSequence(sequence.prompt, sequence.sample)], options, 40, eos=7) == [new]
    if options.temperature:
        assert batched[0] != batched[1], "samples of one prompt differ"
    assert 7 not in itertools.chain(*batched), "the end-of-document token is not part of a text"


def test_a_seed_reproduces_its_text(gpt2: GPT2) -> None:
    one, same_seed, other_seed = (
        generate(gpt2, [TokenSequence([0])], replace(PURE, seed=seed), 30) for seed in (1, 1, 2)
    )
    assert one == same_seed != other_seed


def test_padded_rows_of_the_embedding_are_never_sampled(gpt2: GPT2) -> None:
    with torch.no_grad():
        weights = gpt2.transformer.wte.weight
        padding = weights[50:].clone()
        weights[50:] = weights[:50].abs().max() * 10
    assert max(generate(gpt2, [TokenSequence([0])], PURE, 300)[0]) < 50
    with torch.no_grad():
        weights[50:] = padding


def test_reported_probabilities_are_those_before_filters(gpt2: GPT2) -> None:
    decoder = Decoder(inference(gpt2), [TokenSequence([0])], replace(PURE, top_k=1), -1, alternatives=3)
    sampled = decoder.step()[0]
    probabilities = reference_logits(gpt2, [0]).softmax(-1)
    assert sampled.probability == pytest.approx(float(probabilities[sampled.token]), rel=1e-4)
    assert [token for token, _ in sampled.most_likely] == probabilities.topk(3).indices.tolist()
    assert sampled.most_likely[0][0] == sampled.token
