from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpt2kit.blocks import Order, count_eval, count_train, permute


def test_the_permutation_reaches_each_position_once() -> None:
    around_powers = [2**k + d for k in (10, 12, 16) for d in (-1, 0, 1)]
    for n in [*range(1, 400), *around_powers]:
        found = permute(np.arange(n), n, seed=3, epoch=1)
        assert np.array_equal(np.sort(found), np.arange(n)), n


def test_seed_and_epoch_change_the_order() -> None:
    orders = {permute(np.arange(100), 100, seed, epoch).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_positions_are_permuted_alike_alone_and_together() -> None:
    together = permute(np.arange(1000), 1000, 1, 0)
    assert together[137] == permute(np.array([137]), 1000, 1, 0)[0]


def test_an_epoch_visits_each_block_at_most_once_and_the_tail_changes() -> None:
    order = Order(blocks=103, global_batch=8, seed=1)
    assert order.steps_per_epoch == 12
    epochs = [np.concatenate([order.step(s) for s in range(e * 12, e * 12 + 12)]) for e in range(3)]
    assert all(len(set(seen.tolist())) == 96 for seen in epochs)
    tails = [frozenset(range(103)) - set(seen.tolist()) for seen in epochs]
    assert len(set(tails)) == 3


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 1), (4, 2), (2, 4), (1, 2), (4, 1)])
@pytest.mark.parametrize("first_step", [0, 5, 13])
def test_ranks_and_micro_batches_share_the_same_step(batch_size: int, world_size: int, first_step: int) -> None:
    order = Order(blocks=50, global_batch=8, seed=2)
    streams = [order.micro_batches(first_step, batch_size, rank, world_size) for rank in range(world_size)]
    for step in range(first_step, first_step + 9):
        rounds = 8 // (batch_size * world_size)
        seen = [next(stream).tolist() for _ in range(rounds) for stream in streams]
        assert list(itertools.chain(*seen)) == order.step(step).tolist()


def test_without_shuffling_the_text_is_read_in_order() -> None:
    order = Order(blocks=10, global_batch=3, seed=1, shuffle=False)
    assert [order.step(s).tolist() for s in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]


def test_an_uneven_share_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        next(Order(blocks=50, global_batch=8, seed=2).micro_batches(0, 3, 0, 1))


def test_counts() -> None:
    assert [count_train(tokens, 4) for tokens in (0, 1, 4, 5, 8, 9)] == [0, 0, 0, 1, 1, 2]
    assert [count_eval(tokens, 4) for tokens in (0, 1, 2, 5, 6, 9)] == [0, 0, 1, 1, 2, 2]
