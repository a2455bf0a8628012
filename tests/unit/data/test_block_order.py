from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.data.order import BlockOrder, count_eval, count_train, permute


def test_the_permutation_reaches_each_position_once() -> None:
    around_powers = [2**k + d for k in (10, 12, 16) for d in (-1, 0, 1)]
    for n in [*range(1, 5001), *around_powers]:
        found = permute(np.arange(n), n, seed=3, epoch=1)
        assert np.array_equal(np.sort(found), np.arange(n)), n


def test_seed_and_epoch_change_the_order() -> None:
    orders = {permute(np.arange(100), 100, seed, epoch).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_positions_are_permuted_alike_alone_and_together() -> None:
    together = permute(np.arange(1000), 1000, 1, 0)
    assert together[137] == permute(np.array([137]), 1000, 1, 0)[0]


def test_an_epoch_visits_each_block_at_most_once_and_the_tail_changes() -> None:
    order = BlockOrder(blocks=103, global_batch=8, seed=1)
    assert order.steps_per_epoch == 12
    epochs = [np.concatenate([order.step(s) for s in range(e * 12, e * 12 + 12)]) for e in range(3)]
    assert all(len(set(seen.tolist())) == 96 for seen in epochs)
    tails = [frozenset(range(103)) - set(seen.tolist()) for seen in epochs]
    assert len(set(tails)) == 3


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 1), (4, 2), (2, 4), (1, 2), (4, 1)])
@pytest.mark.parametrize("first_step", [0, 5, 13])
def test_ranks_and_micro_batches_share_the_same_step(batch_size: int, world_size: int, first_step: int) -> None:
    order = BlockOrder(blocks=50, global_batch=8, seed=2)
    streams = [order.micro_batches(first_step, batch_size, rank, world_size) for rank in range(world_size)]
    for step in range(first_step, first_step + 9):
        rounds = 8 // (batch_size * world_size)
        seen = [next(stream).tolist() for _ in range(rounds) for stream in streams]
        assert list(itertools.chain(*seen)) == order.step(step).tolist()


def test_without_shuffling_the_text_is_read_in_order() -> None:
    order = BlockOrder(blocks=10, global_batch=3, seed=1, shuffle=False)
    assert [order.step(s).tolist() for s in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]


def test_an_uneven_share_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        next(BlockOrder(blocks=50, global_batch=8, seed=2).micro_batches(0, 3, 0, 1))


def test_counts() -> None:
    assert [count_train(tokens, 4) for tokens in (0, 1, 4, 5, 8, 9)] == [0, 0, 0, 1, 1, 2]
    assert [count_eval(tokens, 4) for tokens in (0, 1, 2, 5, 6, 9)] == [0, 0, 1, 1, 2, 2]


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 20))
def test_strided_blocks_are_whole_and_no_more_would_fit(tokens: int, block_size: int, stride: int) -> None:
    count = count_train(tokens, block_size, stride)
    assert count == len([s for s in range(0, tokens, stride) if s + block_size + 1 <= tokens])
    assert count_train(tokens, block_size) == max(tokens - 1, 0) // block_size


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.sampled_from([4, 8, 12, 24]),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from([1, 2, 4])), min_size=1, max_size=4),
    st.booleans(),
)
def test_whatever_is_killed_and_on_however_many_ranks_it_goes_on_the_order_is_one(
    blocks_: int, global_batch: int, seed: int, kills: list[tuple[int, int]], shuffle: bool
) -> None:
    """Go on at each kill on another number of ranks; every step has the samples of a straight run."""
    if blocks_ < global_batch:
        return
    order = BlockOrder(blocks_, global_batch, seed, shuffle)
    at = 0
    for steps, world_size in kills:
        per_device = global_batch // world_size // 2 or 1
        if global_batch % (per_device * world_size):
            continue
        micro = global_batch // (per_device * world_size)
        ranks = [order.micro_batches(at, per_device, rank, world_size) for rank in range(world_size)]
        for step in range(at, at + steps):
            seen = [next(rank).tolist() for _ in range(micro) for rank in ranks]
            assert [*itertools.chain(*seen)] == order.step(step).tolist()
        at += steps
    epoch = [n for step in range(order.steps_per_epoch) for n in order.step(step).tolist()]
    assert len(set(epoch)) == len(epoch) == (blocks_ // global_batch) * global_batch


def test_an_order_is_had_at_once_at_any_step() -> None:
    order = BlockOrder(blocks=10**12, global_batch=512, seed=3)
    late = order.micro_batches(10**10, 64, 3, 8)
    assert next(late).tolist() == order.step(10**10)[3 * 64 : 4 * 64].tolist()


def test_places_are_uniform_by_chi_square() -> None:
    """Where each of 50 blocks stands, over 4,000 epochs: a mean of 80 in each of 2,500 cells."""
    counts = np.zeros((50, 50))
    for epoch in range(4000):
        counts[np.arange(50), permute(np.arange(50), 50, 7, epoch)] += 1
    chi_square = ((counts - 80) ** 2 / 80).sum()
    freedom = 49 * 49
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5
