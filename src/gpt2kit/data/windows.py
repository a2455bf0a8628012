"""The order of blocks where only some of a store's files are on the local disk: pure functions, as in `blocks`.

    the store's S files, permuted by (seed, epoch); each `window` of them in a row is a window
    N blocks, none spans two files; G = sequences per optimizer step
    step s  ->  epoch = s // (N // G);  its positions are p .. p + G - 1 with p = (s % (N // G)) * G
    positions go through the windows one after another, and through the blocks of each in an order of (seed, epoch,
    window): each block at most once an epoch

A block is known by the number of its first token, so that it is read as every span of the store is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.order import Order, count_train, permute

Want = Callable[[Sequence[int]], None]
"""Told which files are needed now and soon, the most urgent first; all others may be forgotten."""


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowOrder(Order):
    """The order of training blocks, each given by its first token.

    Args:
        blocks: N, the blocks in all files.
        global_batch: G, the sequences in one optimizer step.
        seed: another seed, another order.
        shuffle: False reads the text from its beginning to its end.
        firsts: of each file the number of its first token.
        counts: of each file how many blocks are in it.
        stride: tokens from a block's beginning to that of the next one.
        window: files whose blocks are mixed.
    """

    firsts: NDArray[np.int64]
    counts: NDArray[np.int64]
    stride: int
    window: int

    __hash__, __eq__ = object.__hash__, object.__eq__  # arrays have none; plans are remembered by the order itself

    def files_at(self, step: int) -> list[int]:
        """The files that this optimizer step and the next one read; if these are of one window, those of another, too.

        So at most two windows are named, unless a step is larger than a window.
        """
        windows = dict.fromkeys([*self._windows(step), *self._windows(step + 1)])
        if len(windows) == 1:
            windows[self._after(*next(iter(windows)))] = None
        named = [_plan(self, epoch).files(number) for epoch, number in windows]
        return list(dict.fromkeys(itertools.chain(*named)))

    def _at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        plan = _plan(self, epoch)
        mixed = positions.astype(np.int64)
        if self.shuffle:
            of = plan.windows(positions)
            for number in np.unique(of).tolist():
                begin, end = plan.borders[number : number + 2].tolist()
                inside = of == number
                # + 1: numpy's seeds (s, e) and (s, e, 0) are the same.
                mixed[inside] = begin + permute(positions[inside] - begin, end - begin, self.seed, epoch, number + 1)
        slots = np.searchsorted(plan.edges, mixed, side="right") - 1
        return self.firsts[plan.order[slots]] + (mixed - plan.edges[slots]) * self.stride

    def _windows(self, step: int) -> list[tuple[int, int]]:
        """(epoch, number) of the windows that a step reads."""
        epoch, within = divmod(step, self.steps_per_epoch)
        low, high = within * self.global_batch, (within + 1) * self.global_batch - 1
        first, last = _plan(self, epoch).windows(np.array([low, high])).tolist()
        return [(epoch, number) for number in range(first, last + 1)]

    def _after(self, epoch: int, number: int) -> tuple[int, int]:
        """The window that is read after this one."""
        plan = _plan(self, epoch)
        end = plan.borders[number + 1]
        if end >= self.steps_per_epoch * self.global_batch:
            return self._windows((epoch + 1) * self.steps_per_epoch)[0]
        return epoch, int(plan.windows(end))


def window_order(
    tokens: Sequence[int], block_size: int, stride: int, window: int, global_batch: int, seed: int, shuffle: bool
) -> WindowOrder:
    """The order for files of so many tokens."""
    counts = np.array([count_train(count, block_size, stride) for count in tokens])
    return WindowOrder(
        int(counts.sum()),
        global_batch,
        seed,
        shuffle,
        firsts=np.cumsum([0, *tokens])[:-1],
        counts=counts,
        stride=stride,
        window=window,
    )


def foretold(
    order: WindowOrder,
    want: Want,
    first_step: int,
    batch_size: int,
    rank: int,
    world_size: int,
) -> Iterator[NDArray[np.int64]]:
    """The order's micro-batches; before those of each step, `want` is told the files that they need, and the next."""
    micro_batches = order.micro_batches(first_step, batch_size, rank, world_size)
    for step in itertools.count(first_step):
        want(order.files_at(step))
        yield from itertools.islice(micro_batches, order.global_batch // (batch_size * world_size))


@dataclass(frozen=True)
class _Plan:
    """One epoch's order of files.

    Args:
        order: the files in it.
        edges: the position at which each begins, and the end.
        window: files in a window.
    """

    order: NDArray[np.int64]
    edges: NDArray[np.int64]
    window: int

    @functools.cached_property
    def borders(self) -> NDArray[np.int64]:
        """The position at which each window begins, and the end."""
        return np.append(self.edges[: -1 : self.window], self.edges[-1])

    def windows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the windows of positions; none is without a block."""
        return np.searchsorted(self.borders, positions, side="right") - 1

    def files(self, number: int) -> list[int]:
        """The files of a window, those too short for a block excepted."""
        slots = slice(number * self.window, (number + 1) * self.window)
        some = np.diff(self.edges)[slots] > 0
        found: list[int] = self.order[slots][some].tolist()
        return found


@functools.lru_cache(maxsize=4)
def _plan(order: WindowOrder, epoch: int) -> _Plan:
    files = np.arange(len(order.counts))
    if order.shuffle:
        files = permute(files, len(files), order.seed, epoch)
    return _Plan(files, np.concatenate([[0], np.cumsum(order.counts[files])]), order.window)
