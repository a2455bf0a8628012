from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2kit import data, shards, tokenizer
from gpt2kit.blocks import IGNORE, Order
from gpt2kit.data import EvalBatches, TextDataModule, TrainBatches
from gpt2kit.errors import DataError
from gpt2kit.shards import Corpus
from gpt2kit.store import TokenStore
from gpt2kit.text import Reader


@pytest.fixture(scope="module")
def store(corpus: Path) -> TokenStore:
    trained = tokenizer.load(corpus / "tokenizer")
    return shards.open_or_build(Corpus([corpus / "valid.txt"], trained, Reader()), corpus / "cache")


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_evaluation_predicts_every_token_but_the_first_exactly_once(
    store: TokenStore, batch_size: int, world_size: int
) -> None:
    ranks = [EvalBatches(store, 16, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    rounds = zip(*ranks, strict=True)
    predicted = torch.cat([batch[:, 1:].flatten() for batches in rounds for batch in batches])
    assert predicted[predicted != IGNORE].tolist() == store[1 : len(store)].tolist()


def test_training_rows_are_the_ordered_blocks(store: TokenStore) -> None:
    order = Order(blocks=20, global_batch=4, seed=1)
    batches = iter(TrainBatches(store, 16, order.micro_batches(0, 4, 0, 1)))
    for step in range(12):
        rows = next(batches)
        assert rows.shape == (4, 17) and rows.dtype == torch.int64
        for row, block in zip(rows, order.step(step).tolist(), strict=True):
            assert np.array_equal(row.numpy(), store[block * 16 : block * 16 + 17])


def test_the_size_of_a_text_counts_each_documents_end(store: TokenStore) -> None:
    size = data.text_size(store)
    assert (size.tokens, size.bytes) == (len(store) - 1, store.bytes + 40)


def test_too_little_text_for_a_step_is_refused(corpus: Path) -> None:
    module = TextDataModule(
        train_files=str(corpus / "valid.txt"),
        tokenizer=str(corpus / "tokenizer"),
        cache_dir=str(corpus / "cache"),
        block_size=64,
    )
    with pytest.raises(DataError, match=r"fewer than the 1000 of one optimizer step"):
        module.order(1000)
