from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import SMALL_SHAPE

from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError
from gpt2kit.export import huggingface
from gpt2kit.model.config import parameter_count
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer


@pytest.fixture
def untrained(corpus: Path) -> LoadedCheckpoint:
    shape = {**SMALL_SHAPE, "vocab_size": 320}
    state = GPT2(shape).state_dict()
    return LoadedCheckpoint(Path("/runs/one"), shape, tokenizer.load(corpus / "tokenizer"), {}, state=state)


def test_weights_too_large_for_half_precision_are_refused(untrained: LoadedCheckpoint) -> None:
    untrained.state["transformer.ln_f.weight"][0] = 1e5
    with pytest.raises(CheckpointError, match="too large for float16"):
        huggingface.round_weights(untrained, "float16")


def test_greedy_continuations_may_differ_at_a_near_tie_only() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0 + 1e-6], [0.0, 1.0, 3.0]])
    assert huggingface.count_agreeing([0, 2, 2], [0, 2, 2], logits, 1e-5, 1) == 2
    assert huggingface.count_agreeing([0, 2, 2], [0, 1, 0], logits, 1e-5, 1) == 0
    assert huggingface.count_agreeing([0, 2, 2], [0, 2, 1], logits, 1e-5, 1) == -1
    assert huggingface.count_agreeing([0, 2, 2], [0, 2], logits, 1e-5, 1) == -1


def test_the_model_card_has_the_figures_and_no_paths(untrained: LoadedCheckpoint) -> None:
    untrained.metadata.update(tokens_seen=5120, train_tokens=7000, val_bpb=1.23456, start={"from": "/home/me/a/b"})
    card = huggingface.model_card(untrained, "mine", "float32")
    assert card.startswith("---\n# license: ") and "\nlicense:" not in card
    assert "| tokens seen in training | 5,120 |" in card and "| training text | 7,000 tokens |" in card
    assert "| bits per byte of the validation text | 1.2346 |" in card
    assert "| shape | 2 layers, 2 heads, width 32 |" in card and "| context | 16 tokens |" in card
    assert f"| parameters | {parameter_count(untrained.shape):,}, as float32 |" in card
    assert "| initial weights | a/b |" in card and "base_model" not in card
    assert "/runs" not in card and "/home" not in card
    untrained.metadata.update(start={"from": "a\ud800"})  # half a surrogate pair, which no file can hold
    assert "| initial weights | a? |" in huggingface.model_card(untrained, "mine", "float32")


def test_the_model_card_names_a_base_model_of_the_hub(untrained: LoadedCheckpoint) -> None:
    untrained.metadata.update(start={"from": "hf://owner/name"}, document_start=0)
    card = huggingface.model_card(untrained, "mine", "float16")
    assert "base_model: owner/name\n" in card and "| initial weights | owner/name |" in card
    assert "| tokens see only their own document | yes |" in card


def test_the_model_card_leaves_out_unknown_and_invalid_figures(untrained: LoadedCheckpoint) -> None:
    untrained.metadata.update(tokens_seen="many", val_bpb=None)
    card = huggingface.model_card(untrained, "mine", "float32")
    assert "many" not in card and "bits per byte of the" not in card and "initial weights" not in card
