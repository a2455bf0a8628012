"""Which block of text comes when: pure functions of (seed, epoch, position). No state, no memory, no torch loader.

    N blocks of `block_size` tokens; G = sequences per optimizer step, over all ranks and accumulation
    step s  ->  epoch = s // (N // G);  its positions are p .. p + G - 1 with p = (s % (N // G)) * G
    block(p) = perm(seed, epoch, N, p), each block at most once an epoch; the tail shorter than a step is left out,
    and is another one in each epoch

Ranks and micro-batches only cut the G positions of a step into shares, so the samples of a step are the same on any
number of devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE = -100
"""Fills a batch's short rows; never an input to the model, never a target."""

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
