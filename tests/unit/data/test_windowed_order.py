"""The order of blocks in windows of files: each block at most once, the same on any number of ranks, from any step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.data.order import WindowOrder, prefetching_batches, window_order

BLOCK = 8


@st.composite
def orders(draw: st.DrawFn) -> WindowOrder:
    tokens = draw(st.lists(st.integers(0, 100), min_size=1, max_size=12))
    stride = draw(st.sampled_from([BLOCK, 3]))
    window, seed, shuffle = draw(st.integers(1, 13)), draw(st.integers(0, 3)), draw(st.booleans())
    blocks = window_order(tokens, BLOCK, stride, window, 1, seed, shuffle).blocks
    tokens = tokens if blocks else [*tokens, 50]
    batch = draw(st.integers(1, max(blocks, 1))) if blocks else 1
    return window_order(tokens, BLOCK, stride, window, batch, seed, shuffle)


def all_blocks(order: WindowOrder) -> list[int]:
    return [
        int(first) + k * order.stride
        for first, count in zip(order.firsts, order.counts, strict=True)
        for k in range(count)
    ]


@given(orders())
@settings(deadline=None)
def test_each_block_comes_at_most_once_an_epoch(order: WindowOrder) -> None:
    for epoch in range(2):
        found = order._at(epoch, np.arange(order.blocks))
        assert sorted(found.tolist()) == all_blocks(order), "a bijection of positions to blocks"
    steps = [order.step(step).tolist() for step in range(order.steps_per_epoch)]
    seen = list(itertools.chain(*steps))
    assert len(set(seen)) == len(seen) == order.steps_per_epoch * order.global_batch
    if not order.shuffle:
        assert seen == all_blocks(order)[: len(seen)]


@given(orders(), st.integers(0, 60))
@settings(deadline=None)
def test_the_files_of_a_step_are_foretold(order: WindowOrder, step: int) -> None:
    read = np.unique(np.searchsorted(order.firsts, order.step(step), side="right") - 1)
    named = order.files_at(step)
    # Files without a block share their first token with the next one; searchsorted names the last of them.
    assert set(order.firsts[read].tolist()) <= set(order.firsts[named].tolist())
    assert len(set(named)) == len(named) and all(order.counts[named] > 0)
    following = order.step(step + 1)
    assert set(order.firsts[np.searchsorted(order.firsts, following, side="right") - 1]) <= set(order.firsts[named])
    if order.global_batch == 1 and order.counts.min():
        assert len(named) <= 2 * order.window


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 1), (4, 2), (2, 4), (1, 2), (2, 1)])
@pytest.mark.parametrize("first_step", [0, 5, 13])
def test_ranks_and_micro_batches_share_the_same_step_from_any_step(
    batch_size: int, world_size: int, first_step: int
) -> None:
    order = window_order([90, 200, 30, 7, 150, 110], BLOCK, BLOCK, 2, 8, seed=2, shuffle=True)
    wanted: list[list[int]] = [[] for _ in range(world_size)]
    streams = [
        prefetching_batches(
            order, lambda files, rank=rank: wanted[rank].append(files), first_step, batch_size, rank, world_size
        )
        for rank in range(world_size)
    ]
    for step in range(first_step, first_step + 20):
        rounds = 8 // (batch_size * world_size)
        seen = [next(stream).tolist() for _ in range(rounds) for stream in streams]
        assert list(itertools.chain(*seen)) == order.step(step).tolist()
        assert all(asked[-1] == order.files_at(step) for asked in wanted), "asked for before they are read"
        assert all(len(asked) == step - first_step + 1 for asked in wanted), "once a step"


def test_blocks_of_a_window_are_mixed_and_windows_change_with_the_epoch() -> None:
    order = window_order([1001] * 12, 10, 10, 3, 100, seed=1, shuffle=True)
    epochs = [[order.step(epoch * 12 + step) // 1001 for step in range(12)] for epoch in range(2)]
    windows = [[frozenset(np.concatenate(steps[n : n + 3]).tolist()) for n in range(0, 12, 3)] for steps in epochs]
    assert all(len(window) == 3 for window in itertools.chain(*windows))
    assert windows[0] != windows[1]
    assert len(set(epochs[0][0].tolist())) == 3, "one step reads from all files of the window"
    firsts = [order.step(step).tobytes() for step in range(24)]
    assert len(set(firsts)) == 24
    within = [np.argsort(order.step(step)).tobytes() for step in range(3)]
    assert len(set(within)) == 3


def test_no_more_than_two_windows_at_once_and_the_next_one_in_time() -> None:
    order = window_order([1001] * 12, 10, 10, 3, 7, seed=1, shuffle=True)
    before: set[int] = set()
    for step in range(3 * order.steps_per_epoch):
        read = set((order.step(step) // 1001).tolist())
        named = set(order.files_at(step))
        assert read <= named and len(named) <= 6
        assert step == 0 or read <= before, "asked for a step ahead, at least"
        before = named


def test_one_window_of_all_files() -> None:
    order = window_order([101] * 4, 10, 10, 99, 4, seed=1, shuffle=True)
    assert all(sorted(order.files_at(step)) == [0, 1, 2, 3] for step in range(25))
