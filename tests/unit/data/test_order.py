"""The order of training blocks: each block at most once per epoch, the same on any number of ranks, from any step."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.data.order import BlockOrder, block_order, count_eval, count_train, cut_offset, permute
from gpt2kit.data.window_order import WindowOrder, prefetching_batches, window_order

BLOCK = 8


def test_blocks_are_counted() -> None:
    assert [count_train(tokens, 4, 4) for tokens in (0, 1, 4, 5, 8, 9)] == [0, 0, 0, 1, 1, 2]
    assert [count_eval(tokens, 4) for tokens in (0, 1, 2, 5, 6, 9)] == [0, 0, 1, 1, 2, 2]


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 20))
def test_strided_blocks_are_complete_and_no_more_would_fit(tokens: int, block_size: int, stride: int) -> None:
    count = count_train(tokens, block_size, stride)
    assert count == len([start for start in range(0, tokens, stride) if start + block_size + 1 <= tokens])
    assert count_train(tokens, block_size, block_size) == max(tokens - 1, 0) // block_size


def test_the_permutation_reaches_each_position_once() -> None:
    around_powers = [2**k + d for k in (10, 12, 16) for d in (-1, 0, 1)]
    for n in [*range(1, 500), *around_powers]:
        assert np.array_equal(np.sort(permute(np.arange(n), n, seed=3, epoch=1)), np.arange(n)), n


def test_seed_and_epoch_change_the_permutation() -> None:
    orders = {permute(np.arange(100), 100, seed, epoch).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_permutation_is_uniform_by_chi_square() -> None:
    """Count the positions of 50 blocks over 1,000 epochs: a mean of 20 in each of 2,500 cells."""
    counts = np.zeros((50, 50))
    for epoch in range(1000):
        counts[np.arange(50), permute(np.arange(50), 50, 7, epoch)] += 1
    chi_square = ((counts - 20) ** 2 / 20).sum()
    freedom = 49 * 49
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_an_epoch_visits_each_block_at_most_once_and_its_tail_changes() -> None:
    order = BlockOrder(blocks=103, global_batch=8, seed=1)
    assert order.steps_per_epoch == 12
    epochs = [np.concatenate([order.step(s) for s in range(e * 12, e * 12 + 12)]) for e in range(3)]
    assert all(len(set(blocks.tolist())) == 96 for blocks in epochs)
    tails = [frozenset(range(103)) - set(blocks.tolist()) for blocks in epochs]
    assert len(set(tails)) == 3


@given(st.integers(2, 300), st.integers(1, 20), st.integers(1, 20), st.integers(1, 12), st.integers(0, 3))
def test_every_epoch_has_its_own_cuts_within_the_text(
    tokens: int, block_size: int, stride: int, global_batch: int, seed: int
) -> None:
    complete = count_train(tokens, block_size, stride)
    order = block_order(tokens, block_size, stride, global_batch, seed, shuffle=True)
    assert max(complete - 1, min(complete, 1)) <= order.blocks <= complete
    assert order.blocks >= min(global_batch, complete), "no text is refused for its offsets"
    if not order.blocks:
        return
    for epoch in range(5):
        firsts = np.sort(order.blocks_at(epoch, np.arange(order.blocks)))
        assert firsts[0] == cut_offset(seed, epoch, order.offsets) and (np.diff(firsts) == stride).all()
        assert firsts[-1] + block_size < tokens
    if order.blocks < complete:
        assert order.offsets == stride


def test_offsets_of_successive_epochs_are_far_apart() -> None:
    for seed in range(5):
        offsets = [cut_offset(seed, epoch, 256) for epoch in range(8)]
        assert min(abs(a - b) for a, b in itertools.combinations(offsets, 2)) > 256 / 8 / 2
    assert len({cut_offset(seed, 0, 256) for seed in range(20)}) > 10


def test_the_first_version_of_the_order_has_no_offsets() -> None:
    order = block_order(103 * 16 + 1, 16, 16, 8, seed=1, shuffle=True, version=1)
    assert (order.blocks, order.offsets) == (103, 1)
    assert np.array_equal(order.step(20), permute(np.arange(64, 72), 103, 1, 1) * 16)


def test_without_shuffling_the_text_is_read_in_order() -> None:
    order = block_order(tokens=11, block_size=1, stride=1, global_batch=3, seed=1, shuffle=False)
    assert [order.step(s).tolist() for s in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]


def test_a_batch_that_ranks_cannot_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        next(BlockOrder(blocks=50, global_batch=8, seed=2).micro_batches(0, 3, 0, 1))


def test_a_late_step_needs_no_replay() -> None:
    order = BlockOrder(blocks=10**12, global_batch=512, seed=3)
    late = order.micro_batches(10**10, 64, 3, 8)
    assert next(late).tolist() == order.step(10**10)[3 * 64 : 4 * 64].tolist()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 400),
    st.sampled_from([4, 8, 12, 24]),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from([1, 2, 4])), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_run_that_resumes_on_other_numbers_of_ranks_keeps_the_order(
    block_count: int, global_batch: int, seed: int, parts: list[tuple[int, int]], shuffle: bool
) -> None:
    """Each part of the run has a number of steps and of ranks."""
    if block_count < global_batch:
        return
    order = BlockOrder(block_count, global_batch, seed, shuffle)
    first = 0
    for steps, world_size in parts:
        batch_size = global_batch // world_size // 2 or 1
        if global_batch % (batch_size * world_size):
            continue
        passes = global_batch // (batch_size * world_size)
        ranks = [order.micro_batches(first, batch_size, rank, world_size) for rank in range(world_size)]
        for step in range(first, first + steps):
            blocks = [next(rank).tolist() for _ in range(passes) for rank in ranks]
            assert [*itertools.chain(*blocks)] == order.step(step).tolist()
        first += steps
    epoch = [block for step in range(order.steps_per_epoch) for block in order.step(step).tolist()]
    assert len(set(epoch)) == len(epoch) == (block_count // global_batch) * global_batch


def large_orders() -> list[BlockOrder]:
    """Orders of 10 billion tokens in blocks of 1,024 for 1,024 ranks, in one permutation and in windows of shards."""
    count = 10_000_000_000 // 1024
    return [
        BlockOrder(count, 1024 * 8, seed=3),
        window_order([1 << 26] * 149, 1024, 1024, 4, 1024 * 8, seed=3, shuffle=True),
    ]


@pytest.mark.parametrize("order", large_orders(), ids=["permuted", "windows"])
def test_1024_ranks_divide_a_step(order: BlockOrder) -> None:
    """Micro-batch j of a step is the same blocks, whichever rank computes it, so its dropout is the same, too."""
    step = order.steps_per_epoch - 1
    blocks = order.step(step)
    assert len(np.unique(blocks)) == order.global_batch
    for ranks in (1, 64, 1024):
        streams = [order.micro_batches(step, 8, rank, ranks) for rank in range(ranks)]
        micro_batches = [next(streams[number % ranks]) for number in range(1024)]
        assert np.array_equal(np.concatenate(micro_batches), blocks)


def test_memory_of_a_rank_does_not_grow_with_the_ranks() -> None:
    def peak(ranks: int) -> int:
        order = BlockOrder(10_000_000_000 // 1024, 8 * ranks, seed=3)
        tracemalloc.start()
        batches = list(itertools.islice(order.micro_batches(1000, 8, ranks - 1, ranks), 1000))
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(batches) == 1000
        return memory

    assert peak(1024) < 1.5 * peak(1) and peak(1) < 4e6


@st.composite
def window_orders(draw: st.DrawFn) -> WindowOrder:
    tokens = draw(st.lists(st.integers(0, 100), min_size=1, max_size=12))
    stride = draw(st.sampled_from([BLOCK, 3]))
    window, seed, shuffle = draw(st.integers(1, 13)), draw(st.integers(0, 3)), draw(st.booleans())
    blocks = window_order(tokens, BLOCK, stride, window, 1, seed, shuffle).blocks
    tokens = tokens if blocks else [*tokens, 50]
    batch = draw(st.integers(1, max(blocks, 1))) if blocks else 1
    return window_order(tokens, BLOCK, stride, window, batch, seed, shuffle)


def all_blocks(order: WindowOrder, epoch: int) -> list[int]:
    offset = cut_offset(order.seed, epoch, order.offsets)
    shards = zip(order.firsts.tolist(), order.counts.tolist(), order.shard_offsets.tolist(), strict=True)
    return [
        first + min(offset, offsets - 1) + number * order.stride
        for first, count, offsets in shards
        for number in range(count)
    ]


@given(window_orders())
@settings(deadline=None)
def test_windows_visit_each_block_at_most_once_an_epoch(order: WindowOrder) -> None:
    for epoch in range(2):
        assert sorted(order.blocks_at(epoch, np.arange(order.blocks)).tolist()) == all_blocks(order, epoch)
    steps = [order.step(step).tolist() for step in range(order.steps_per_epoch)]
    blocks = list(itertools.chain(*steps))
    assert len(set(blocks)) == len(blocks) == order.steps_per_epoch * order.global_batch
    if not order.shuffle:
        assert blocks == all_blocks(order, 0)[: len(blocks)]


@given(window_orders(), st.integers(0, 60))
@settings(deadline=None)
def test_the_shards_of_a_step_are_known_before_it(order: WindowOrder, step: int) -> None:
    named = order.shards_at(step)
    assert len(set(named)) == len(named) and all(order.counts[named] > 0)
    for reading in (step, step + 1):
        # Shards without a block share their first token with the next one; searchsorted names the last of them.
        read = np.searchsorted(order.firsts, order.step(reading), side="right") - 1
        assert set(order.firsts[read].tolist()) <= set(order.firsts[named].tolist())
    if order.global_batch == 1 and order.counts.min():
        assert len(named) <= 2 * order.window


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 1), (4, 2), (2, 4), (1, 2), (2, 1)])
@pytest.mark.parametrize("first_step", [0, 5, 13])
def test_every_rank_prefetches_the_shards_of_a_step_before_it(
    batch_size: int, world_size: int, first_step: int
) -> None:
    order = window_order([90, 200, 30, 7, 150, 110], BLOCK, BLOCK, 2, 8, seed=2, shuffle=True)
    prefetched: list[list[object]] = [[] for _ in range(world_size)]
    streams = [
        prefetching_batches(order, prefetched[rank].append, first_step, batch_size, rank, world_size)
        for rank in range(world_size)
    ]
    for step in range(first_step, first_step + 20):
        passes = 8 // (batch_size * world_size)
        blocks = [next(stream).tolist() for _ in range(passes) for stream in streams]
        assert list(itertools.chain(*blocks)) == order.step(step).tolist()
        assert all(shards[-1] == order.shards_at(step) for shards in prefetched)
        assert all(len(shards) == step - first_step + 1 for shards in prefetched), "once per step"


def test_windows_are_shuffled_inside_and_change_with_the_epoch() -> None:
    order = window_order([1010] * 12, 10, 10, 3, 100, seed=1, shuffle=True)
    epochs = [[order.step(epoch * 12 + step) // 1010 for step in range(12)] for epoch in range(2)]
    windows = [[frozenset(np.concatenate(steps[n : n + 3]).tolist()) for n in range(0, 12, 3)] for steps in epochs]
    assert all(len(window) == 3 for window in itertools.chain(*windows))
    assert windows[0] != windows[1]
    assert len(set(epochs[0][0].tolist())) == 3, "a step reads from all shards of the window"
    assert len({order.step(step).tobytes() for step in range(24)}) == 24
    assert len({np.argsort(order.step(step)).tobytes() for step in range(3)}) == 3
