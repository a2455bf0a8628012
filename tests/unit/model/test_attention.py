"""Attention as matrix products against torch's own, and attention within documents."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2kit.model.attention import plain_attention, separate_documents, split_queries
from gpt2kit.model.backends import Attention
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training.module import GPT2Module

START = 7


@pytest.mark.parametrize("length", [1, 7, 255, 256, 300, 700])
@pytest.mark.parametrize("cached", [0, 5])
def test_values_and_gradients_equal_those_of_torch(length: int, cached: int) -> None:
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (length, *[length + cached] * 2))
    mask = torch.ones(length, length + cached, dtype=torch.bool).tril(cached)
    plain = plain_attention(nn.Module(), query, key, value, None)[0]
    fused = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
    torch.testing.assert_close(plain, fused)
    grad = torch.randn_like(plain)
    plain_grads, fused_grads = (torch.autograd.grad(x, (query, key, value), grad) for x in (plain, fused))
    torch.testing.assert_close(plain_grads, fused_grads)


def test_bands_contain_each_query_once() -> None:
    for length in (1, 255, 256, 257, 512, 513, 2047):
        assert [n for start, end in split_queries(length) for n in range(start, end)] == list(range(length))


def test_a_query_without_visible_keys_gives_no_nan() -> None:
    query = torch.randn(1, 1, 3, 4)
    mask = torch.tensor([[False, False, False], [False, True, False], [False, True, True]])[None, None]
    attended = plain_attention(nn.Module(), query, query, query, mask)[0]
    assert attended.isfinite().all()
    torch.testing.assert_close(attended[0, 1, 0], query[0, 0, 1])


def test_dropout_applies_in_training_only() -> None:
    module = nn.Module()
    query = torch.randn(1, 1, 30, 4)
    evaluated = plain_attention(module.eval(), query, query, query, None, dropout=0.5)[0]
    assert torch.equal(evaluated, plain_attention(module, query, query, query, None)[0])
    assert not torch.equal(evaluated, plain_attention(module.train(), query, query, query, None, dropout=0.5)[0])


def build(attention: Attention, start: int | None = START) -> GPT2:
    torch.manual_seed(0)
    gpt2 = GPT2Module(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=24, document_start=start).model.eval()
    gpt2.use_attention(attention)
    return gpt2


def logits(gpt2: GPT2, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        mask, positions = separate_documents(inputs, START) if gpt2.document_start is not None else (None, None)
        output: Tensor = gpt2(inputs, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return output


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_documents_in_one_block_have_the_same_logits_as_alone(attention: Attention) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(8, 50, (3, 24), generator=generator)
    inputs[0, [0, 5, 6, 15]] = START  # the second document is empty
    inputs[1, [11]] = START  # the block begins within a document
    masked, unmasked = logits(build(attention), inputs), logits(build(attention, None), inputs)
    for row, bounds in enumerate([[0, 5, 6, 15, 24], [0, 11, 24], [0, 24]]):
        for begin, end in itertools.pairwise(bounds):
            single = logits(build(attention, None), inputs[row : row + 1, begin:end])
            torch.testing.assert_close(masked[row, begin:end], single[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(masked[0, 7:], unmasked[0, 7:])
    torch.testing.assert_close(masked[2], unmasked[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", [None, START])
@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_hidden_states_equal_those_of_transformers(attention: Attention, start: int | None) -> None:
    gpt2 = build(attention, start).train()
    batch = torch.randint(5, 50, (3, 25), generator=torch.Generator().manual_seed(1))
    hidden: list[Tensor] = []
    gpt2.transformer.ln_f.register_forward_hook(lambda module, args, output: hidden.append(output))
    torch.manual_seed(1)  # of dropout
    gpt2.nll(batch)
    mask, positions = separate_documents(batch[:, :-1], START) if start is not None else (None, None)
    torch.manual_seed(1)
    gpt2(batch[:, :-1], attention_mask=mask, position_ids=positions, use_cache=False)
    assert torch.equal(*hidden)


class ValueReads(TorchDispatchMode):
    """Counts operations that return a tensor's value to Python, for which a GPU must finish its work."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("start", [None, START])
@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_a_loss_reads_no_value_of_a_tensor(attention: Attention, start: int | None) -> None:
    gpt2, batch = build(attention, start), torch.randint(5, 50, (3, 25))
    with ValueReads() as reads:
        gpt2.nll(batch)
    assert reads.count == 0


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_masked_documents_have_finite_gradients_in_bfloat16(attention: Attention) -> None:
    batch = torch.randint(8, 50, (4, 25), generator=torch.Generator().manual_seed(1))
    batch[:, ::6] = START
    gpt2 = build(attention)
    exact, _ = gpt2.nll(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = gpt2.nll(batch)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)
    rounded.backward()
    assert all(torch.isfinite(p.grad).all() for p in gpt2.parameters() if p.grad is not None)
