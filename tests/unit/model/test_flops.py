"""FLOPs per token by formula, compared with those that torch counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt2kit.model.config import flops_per_token
from gpt2kit.model.lora import add_lora
from gpt2kit.training.module import GPT2Module


def counted_flops(gpt2: GPT2Module) -> float:
    """Return the FLOPs per token of a forward and backward pass over full blocks, with plain attention."""
    gpt2.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        logits = gpt2.model(input_ids=torch.zeros(2, 24, dtype=torch.long), use_cache=False).logits
        torch.autograd.backward(logits.sum())
    return counter.get_total_flops() / (2 * 24)


def test_flops_of_gpt2_small_match_the_formula() -> None:
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
def test_flops_equal_those_that_torch_counts(options: dict[str, Any]) -> None:
    """Gradients that frozen weights do not need are not computed, so they do not count."""
    if "lora_r" in options:
        pytest.importorskip("peft", reason="optional: pip install 'peft>=0.18'")
    gpt2 = GPT2Module(n_layer=3, n_head=2, n_embd=32, n_inner=100, vocab_size=192, n_positions=24, **options)
    add_lora(gpt2.model, gpt2.lora_r, gpt2.lora_alpha, train_embedding=gpt2.replace_tokenizer)
    assert counted_flops(gpt2) == flops_per_token(gpt2.shape, gpt2.model)
    if not options:
        assert flops_per_token(gpt2.shape) == flops_per_token(gpt2.shape, gpt2.model)
