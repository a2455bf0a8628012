from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import SMALL_SHAPE

from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError
from gpt2kit.export import huggingface
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
