"""Our attention against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpt2kit.model.attention import plain_attention, split_queries


@pytest.mark.parametrize("length", [1, 7, 255, 256, 300, 700])
@pytest.mark.parametrize("before", [0, 5])
def test_it_is_causal_attention(length: int, before: int) -> None:
    """With and without keys from before, forward and backward."""
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (length, *[length + before] * 2))
    mask = torch.ones(length, length + before, dtype=torch.bool).tril(before)
    ours = plain_attention(nn.Module(), query, key, value, None)[0]
    theirs = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn_like(ours)
    for one, other in zip(
        torch.autograd.grad(ours, (query, key, value), slope),
        torch.autograd.grad(theirs, (query, key, value), slope),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_bands_cover_all_queries_once() -> None:
    for length in (1, 255, 256, 257, 512, 513, 2047):
        cut = split_queries(length)
        assert [n for start, end in cut for n in range(start, end)] == list(range(length))


def test_a_query_that_sees_nothing_is_no_nan() -> None:
    query = torch.randn(1, 1, 3, 4)
    mask = torch.tensor([[False, False, False], [False, True, False], [False, True, True]])[None, None]
    found = plain_attention(nn.Module(), query, query, query, mask)[0]
    assert found.isfinite().all()
    torch.testing.assert_close(found[0, 1, 0], query[0, 0, 1])


def test_dropout_is_for_training_alone() -> None:
    module = nn.Module()
    query = torch.randn(1, 1, 30, 4)
    still = plain_attention(module.eval(), query, query, query, None, dropout=0.5)[0]
    assert torch.equal(still, plain_attention(module, query, query, query, None)[0])
    assert not torch.equal(still, plain_attention(module.train(), query, query, query, None, dropout=0.5)[0])
