"""`data.mask_documents`: a document is seen as if it stood alone, whatever stands before it in the block."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Outcome
from torch import Tensor

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import train
from gpt2kit.model.attention import separate_documents
from gpt2kit.model.backends import Attention
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training.module import GPT2Module

START = 7


def small(attention: Attention, start: int | None = START) -> GPT2:
    torch.manual_seed(0)
    gpt2 = GPT2Module(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=24, document_start=start).model.eval()
    gpt2.use_attention(attention)
    return gpt2


def logits(gpt2: GPT2, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        apart = separate_documents(inputs, START) if gpt2.document_start is not None else {}
        found: Tensor = gpt2(input_ids=inputs, use_cache=False, **apart).logits
    return found


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_logits_are_those_of_each_document_alone(attention: Attention) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(8, 50, (3, 24), generator=generator)
    inputs[0, [0, 5, 6, 15]] = START  # a document without a token is among them
    inputs[1, [11]] = START  # the block begins within a document
    packed, alone = logits(small(attention), inputs), logits(small(attention, None), inputs)
    for row, bounds in enumerate([[0, 5, 6, 15, 24], [0, 11, 24], [0, 24]]):
        for begin, end in itertools.pairwise(bounds):
            single = logits(small(attention, None), inputs[row : row + 1, begin:end])
            torch.testing.assert_close(packed[row, begin:end], single[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(packed[0, 7:], alone[0, 7:])
    torch.testing.assert_close(packed[2], alone[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_the_loss_under_bfloat16_is_that_of_float32_within_rounding(attention: Attention) -> None:
    batch = torch.randint(8, 50, (4, 25), generator=torch.Generator().manual_seed(1))
    batch[:, ::6] = START
    gpt2 = small(attention)
    exact, _ = gpt2.nll(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = gpt2.nll(batch)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)
    rounded.backward()
    assert all(torch.isfinite(p.grad).all() for p in gpt2.parameters() if p.grad is not None)


def test_it_trains_is_kept_in_the_checkpoint_and_is_part_of_a_runs_identity(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    words = [*options, "--data.mask_documents=true", f"--trainer.default_root_dir={inside}"]
    assert call(train.main, *words, "--trainer.max_steps=6")[0] == 0
    opened = checkpoint.open(inside / "lightning_logs/version_0")
    assert opened.model.document_start == opened.metadata["document_start"] == 0
    code, _, err = call(
        train.main,
        "--ckpt_path=lightning_logs/version_0",
        *words,
        "--trainer.max_steps=8",
        "--data.mask_documents=false",
    )
    assert code == 4 and "mask_documents was True, now False" in err
    code, _, err = call(train.main, *words, "--data.append_eos=false")
    assert code == 2 and "data.mask_documents: needs data.append_eos" in err
