"""The order of training blocks if only a few of a store's shards are on the local disk.

The shards are permuted by (seed, epoch), and `window` consecutive shards are a window. No block spans two shards.
Positions run through one window after another, and through the blocks of each window in an order of (seed, epoch,
window). Each block comes at most once per epoch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.order import ORDER_VERSION, BlockOrder, cut_blocks, cut_offset, permute


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowOrder(BlockOrder):
    """The order of training blocks in windows of shards."""

    firsts: NDArray[np.int64]  # the number of each shard's first token
    counts: NDArray[np.int64]  # blocks in each shard
    shard_offsets: NDArray[np.int64]  # like `offsets`, for each shard
    window: int  # shards whose blocks are shuffled together

    __hash__, __eq__ = object.__hash__, object.__eq__  # by identity, for `_plan`: arrays cannot be hashed

    def shards_at(self, step: int) -> list[int]:
        """Return the shards that this step and the next one read; if both read one window, also those of the next.

        These are the shards of at most two windows, unless a step is larger than a window.
        """
        windows = dict.fromkeys([*self._windows(step), *self._windows(step + 1)])
        if len(windows) == 1:
            windows[self._after(*next(iter(windows)))] = None
        shards = [_plan(self, epoch).shards(number) for epoch, number in windows]
        return list(dict.fromkeys(itertools.chain(*shards)))

    def blocks_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first tokens of the blocks at these positions of an epoch."""
        plan = _plan(self, epoch)
        permuted = positions.astype(np.int64)
        if self.shuffle:
            windows = plan.windows(positions)
            for number in np.unique(windows).tolist():
                begin, end = plan.borders[number : number + 2].tolist()
                inside = windows == number
                # + 1, because numpy's seeds (s, e) and (s, e, 0) are the same.
                permuted[inside] = begin + permute(positions[inside] - begin, end - begin, self.seed, epoch, number + 1)
        slots = np.searchsorted(plan.edges, permuted, side="right") - 1
        shards = plan.order[slots]
        offsets = np.minimum(cut_offset(self.seed, epoch, self.offsets), self.shard_offsets[shards] - 1)
        return self.firsts[shards] + (permuted - plan.edges[slots]) * self.stride + offsets

    def _windows(self, step: int) -> list[tuple[int, int]]:
        """Return (epoch, number) of the windows that a step reads."""
        epoch, within = divmod(step, self.steps_per_epoch)
        low, high = within * self.global_batch, (within + 1) * self.global_batch - 1
        first, last = _plan(self, epoch).windows(np.array([low, high])).tolist()
        return [(epoch, number) for number in range(first, last + 1)]

    def _after(self, epoch: int, number: int) -> tuple[int, int]:
        """Return the window that is read after this one."""
        plan = _plan(self, epoch)
        end = plan.borders[number + 1]
        if end >= self.steps_per_epoch * self.global_batch:
            return self._windows((epoch + 1) * self.steps_per_epoch)[0]
        return epoch, int(plan.windows(end))


def window_order(
    tokens: Sequence[int],
    block_size: int,
    stride: int,
    window: int,
    global_batch: int,
    seed: int,
    shuffle: bool,
    version: int = ORDER_VERSION,
) -> WindowOrder:
    """Return the order of blocks in shards with these numbers of tokens."""
    counts, offsets = cut_blocks(tokens, block_size, stride, global_batch, shuffle and version > 1)
    return WindowOrder(
        int(counts.sum()),
        global_batch,
        seed,
        shuffle,
        stride,
        int(offsets.max()),
        firsts=np.cumsum([0, *tokens])[:-1],
        counts=counts,
        shard_offsets=offsets,
        window=window,
    )


def prefetching_batches(
    order: WindowOrder,
    prefetch: Callable[[Sequence[int]], None],
    first_step: int,
    batch_size: int,
    rank: int,
    world_size: int,
) -> Iterator[NDArray[np.int64]]:
    """Yield the order's micro-batches; before each step, call `prefetch` with the shards that are needed soon."""
    micro_batches = order.micro_batches(first_step, batch_size, rank, world_size)
    for step in itertools.count(first_step):
        prefetch(order.shards_at(step))
        yield from itertools.islice(micro_batches, order.global_batch // (batch_size * world_size))


@dataclass(frozen=True)
class _Plan:
    """The order of shards in one epoch."""

    order: NDArray[np.int64]
    edges: NDArray[np.int64]  # the position at which each shard begins, and the end
    window: int  # shards in a window

    @functools.cached_property
    def borders(self) -> NDArray[np.int64]:
        """The position at which each window begins, and the end."""
        return np.append(self.edges[: -1 : self.window], self.edges[-1])

    def windows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the window of each position; a window without blocks has no position."""
        return np.searchsorted(self.borders, positions, side="right") - 1

    def shards(self, number: int) -> list[int]:
        """Return the shards of a window, except those too short for a block."""
        slots = slice(number * self.window, (number + 1) * self.window)
        shards: list[int] = self.order[slots][np.diff(self.edges)[slots] > 0].tolist()
        return shards


@functools.lru_cache(maxsize=4)
def _plan(order: WindowOrder, epoch: int) -> _Plan:
    shards = np.arange(len(order.counts))
    if order.shuffle:
        shards = permute(shards, len(shards), order.seed, epoch)
    return _Plan(shards, np.concatenate([[0], np.cumsum(order.counts[shards])]), order.window)
