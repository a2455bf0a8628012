"""Which block of text comes when: pure functions of (seed, epoch, position). No state, no memory, no torch loader.

    N blocks of `block_size` tokens; G = sequences per optimizer step, over all ranks and accumulation
    step s  ->  epoch = s // (N // G);  its positions are p .. p + G - 1 with p = (s % (N // G)) * G
    block(p) = perm(seed, epoch, N, p), each block at most once an epoch; the tail shorter than a step is left out,
    and is another one in each epoch

Ranks and micro-batches only cut the G positions of a step into shares, so the samples of a step are the same on any
number of devices.

Where only some of a store's files are on the local disk (`WindowOrder`), the files are permuted by (seed, epoch), and
each `window` of them in a row is a window. No block spans two files. Positions go through the windows one after
another, and through the blocks of each in an order of (seed, epoch, window): each block at most once an epoch. A block
is known by the number of its first token, so that it is read as every span of the store is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE = -100
"""Fills a batch's short rows; never an input to the model, never a target."""

Want = Callable[[Sequence[int]], None]
"""Told which files are needed now and soon, the most urgent first; all others may be forgotten."""

_ROUNDS = 6
_AHEAD = 4096
"""Positions permuted by one call; vectorised, the permutation costs some 50 ns a position."""


def count_train(tokens: int, block_size: int, stride: int | None = None) -> int:
    """Whole blocks in a text, one each `stride` tokens (default: `block_size`). Each predicts `block_size` tokens."""
    return max(tokens - 1 - block_size, -1) // (stride or block_size) + 1 if tokens > block_size else 0


def count_eval(tokens: int, block_size: int) -> int:
    """Blocks that cover every token, the last short one included."""
    return -(-max(tokens - 1, 0) // block_size)


@dataclass(frozen=True)
class Order:
    """The order of training blocks.

    Args:
        blocks: N, the blocks in the text.
        global_batch: G, the sequences in one optimizer step.
        seed: another seed, another order.
        shuffle: False reads the text from its beginning to its end.
    """

    blocks: int
    global_batch: int
    seed: int
    shuffle: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which each block comes at most once."""
        return self.blocks // self.global_batch

    def step(self, step: int) -> NDArray[np.int64]:
        """The G block numbers of one optimizer step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        positions = np.arange(within * self.global_batch, (within + 1) * self.global_batch)
        return self._at(epoch, positions)

    def micro_batches(
        self, first_step: int, batch_size: int, rank: int, world_size: int
    ) -> Iterator[NDArray[np.int64]]:
        """This rank's block numbers, endlessly: `batch_size` of them for each forward pass, from `first_step` on."""
        if self.global_batch % (batch_size * world_size):
            raise ValueError(f"{self.global_batch} sequences a step cannot be shared by {world_size} x {batch_size}")
        rounds = self.global_batch // (batch_size * world_size)  # forward passes a step
        own = (np.arange(rounds)[:, None] * world_size + rank) * batch_size + np.arange(batch_size)
        step = first_step
        while True:
            epoch, within = divmod(step, self.steps_per_epoch)
            ahead = min(max(_AHEAD // own.size, 1), self.steps_per_epoch - within)
            starts = (within + np.arange(ahead)) * self.global_batch
            yield from self._at(epoch, (starts[:, None, None] + own).ravel()).reshape(-1, batch_size)
            step += ahead

    def _at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return permute(positions, self.blocks, self.seed, epoch) if self.shuffle else positions


def permute(positions: NDArray[np.int64], n: int, seed: int, epoch: int, *more: int) -> NDArray[np.int64]:
    """Where a permutation of 0 .. n-1, keyed by (seed, epoch) and maybe more, sends `positions`.

    A Feistel network permutes 0 .. 2^b - 1 with 2^b the next power of two; a value that lands outside n walks on
    until it is inside (fewer than two turns on average). Halves are mixed as 32-bit words, so n < 2^64.
    """
    bits = max(n - 1, 1).bit_length()
    low_bits = bits // 2
    high_bits = bits - low_bits
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    shift = np.uint64(low_bits)
    keys = np.random.SeedSequence([seed, epoch, *more]).generate_state(_ROUNDS)

    def turn(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high, low = x >> shift, x & low_mask
        for number, key in enumerate(keys):
            if number % 2:
                low = low ^ (_mix(high, key) & low_mask)
            else:
                high = high ^ (_mix(low, key) & high_mask)
        return (high << shift) | low

    found = turn(positions.astype(np.uint64))
    while (outside := found >= n).any():
        found[outside] = turn(found[outside])
    return found.astype(np.int64)


def _mix(value: NDArray[np.uint64], key: np.uint32) -> NDArray[np.uint64]:
    """Murmur3's 32-bit finaliser, which spreads each bit over all others."""
    x = value.astype(np.uint32) ^ key
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x.astype(np.uint64)


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
