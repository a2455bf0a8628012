from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt2kit.evaluation import statistics
from gpt2kit.evaluation.statistics import DocumentScores, compare_documents
from gpt2kit.metrics import Score
from gpt2kit.model.config import flops_per_token
from gpt2kit.model.finetuning import add_lora
from gpt2kit.training.module import GPT2Module


def scores_of(documents: int, seed: int = 0, harder: float = 0.0) -> DocumentScores:
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 100, documents)
    nll = tokens * (2.0 + harder + random.normal(0, 0.3, documents))
    return DocumentScores(nll, tokens, tokens * 4, tokens * 3, tokens // 2)


def test_figures_are_ratios_of_sums() -> None:
    score = Score(nll=20.0, tokens=10, bytes=40, characters=20, words=5)
    assert score.loss == 2.0
    assert score.perplexity == math.exp(2.0)
    assert score.bits_per_byte == pytest.approx(20 / math.log(2) / 40)
    assert score.bits_per_character == pytest.approx(20 / math.log(2) / 20)
    assert score.perplexity_per_word == pytest.approx(math.exp(4.0))


def test_a_uniform_guess_costs_the_logarithm_of_its_choices() -> None:
    score = Score(nll=math.log(256) * 100, tokens=100, bytes=100)
    assert score.bits_per_byte == pytest.approx(8.0) and score.perplexity == pytest.approx(256)


def test_extremes() -> None:
    assert math.isnan(Score(0.0, 0, 0).loss) and math.isnan(Score(0.0, 0, 0).bits_per_byte)
    assert math.isnan(Score(1.0, 1, 1).bits_per_character) and math.isnan(Score(1.0, 1, 1).perplexity_per_word)
    assert Score(1e6, 1, 1).perplexity == math.inf


def test_the_weighted_mean_over_documents_is_the_texts_own_figure() -> None:
    scores = scores_of(50)
    spread, total = compare_documents(scores), scores.total()
    assert spread["loss"].mean == pytest.approx(total.loss)
    assert spread["bits_per_byte"].mean == pytest.approx(total.bits_per_byte)
    assert spread["perplexity"].mean > total.perplexity, "exp is convex"
    each = np.repeat(scores.nll / scores.tokens, scores.tokens)  # each token tells its document's loss
    assert spread["loss"].sd == pytest.approx(each.std())
    one = compare_documents(DocumentScores(*(np.array([v]) for v in (3.0, 2, 4, 4, 1))))
    assert one["loss"].sd == 0 and one["loss"].mean == 1.5


def test_a_document_of_no_tokens_weighs_nothing() -> None:
    scores = DocumentScores(np.array([2.0, 0.0]), *(np.array([2, 0]) for _ in range(4)))
    assert compare_documents(scores)["loss"].mean == 1.0 and compare_documents(scores)["loss"].sd == 0.0


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Texts drawn from one source: 95 % of the intervals hold the source's own figure."""
    truth = scores_of(200_000, seed=1).total().loss
    found = [statistics.bootstrap(scores_of(200, seed=seed), 0)["loss"] for seed in range(2, 202)]
    inside = sum(low <= truth <= high for low, high in found)
    assert 180 <= inside <= 198, inside


def test_intervals_depend_on_the_seed_alone() -> None:
    scores = scores_of(40)
    assert statistics.bootstrap(scores, 1) == statistics.bootstrap(scores, 1) != statistics.bootstrap(scores, 2)
    assert (
        statistics.bootstrap(scores_of(1), 1) == {}
        and statistics.bootstrap_difference(scores_of(1), scores_of(1), get, 1) is None
    )
    low, high = statistics.bootstrap(scores, 1)["bits_per_byte"]
    assert low < scores.total().bits_per_byte < high


def get(score: Score) -> float:
    return score.bits_per_byte


def test_paired_documents_tell_small_differences() -> None:
    """Two models that differ by 2 % on each document: their own intervals overlap, the paired one leaves out 0."""
    one = scores_of(100)
    other = replace(one, nll=one.nll * 1.02)
    mine, theirs = (statistics.bootstrap(scores, 1)["bits_per_byte"] for scores in (one, other))
    assert mine[1] > theirs[0]
    low, high = statistics.bootstrap_difference(other, one, get, 1) or (0, 0)
    assert 0 < low <= get(other.total()) - get(one.total()) <= high
    assert statistics.bootstrap_difference(one, one, get, 1) == (0.0, 0.0)


def test_many_documents_are_drawn_in_groups() -> None:
    table = scores_of(2000).table()
    alone, grouped = (statistics.resample(table, 1, max_groups=count) for count in (2000, 300))
    widths = [np.ptp(np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])) for sums in (alone, grouped)]  # of the loss
    assert widths[1] == pytest.approx(widths[0], rel=0.25)
    assert statistics.resample(np.ones((2000, 1)), 1, max_groups=300).mean() == pytest.approx(2000, rel=0.01)


def test_flops_per_token_are_those_that_torch_counts() -> None:
    """Forward and backward of a whole block with plain attention, to the last one; the vocabulary has no filling."""
    gpt2 = GPT2Module(n_layer=3, n_head=2, n_embd=32, n_inner=100, vocab_size=192, n_positions=24)
    gpt2.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        logits = gpt2.model(input_ids=torch.zeros(2, 24, dtype=torch.long), use_cache=False).logits
        torch.autograd.backward(logits.sum())
    assert counter.get_total_flops() == 2 * 24 * flops_per_token(gpt2.shape)
    small = {"n_layer": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
    assert flops_per_token(small) == pytest.approx(0.854e9, rel=0.001)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"freeze": "embeddings"},
        {"freeze": "body"},
        {"freeze": "layers"},
        {"freeze": [0]},
        {"freeze": ["embeddings", "0-1"]},
        {"freeze": ["embeddings", "h.0", "h.1.ln_1", "h.1.attn.c_attn"]},
        {"freeze": ["wte", "wpe", "layers"]},
        {"freeze": "0-1", "freeze_steps": 5},
        {"lora_r": 4},
        {"lora_r": 4, "replace_tokenizer": True},
    ],
    ids=str,
)
def test_what_is_frozen_does_not_count(options: dict[str, Any]) -> None:
    """As torch's counter has it, which sees what is computed: not what a frozen weight's gradient would need."""
    if "lora_r" in options:
        pytest.importorskip("peft", reason="optional: pip install 'peft>=0.18'")
    gpt2 = GPT2Module(n_layer=3, n_head=2, n_embd=32, n_inner=100, vocab_size=192, n_positions=24, **options)
    add_lora(gpt2.model, gpt2.lora_r, gpt2.lora_alpha, train_embedding=gpt2.replace_tokenizer)
    gpt2.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        logits = gpt2.model(input_ids=torch.zeros(2, 24, dtype=torch.long), use_cache=False).logits
        torch.autograd.backward(logits.sum())
    assert counter.get_total_flops() == 2 * 24 * flops_per_token(gpt2.shape, gpt2.model)
