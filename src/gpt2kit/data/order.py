"""The order of training blocks: pure functions of (seed, epoch, position), without state and without torch.

    N blocks of `block_size` tokens; G sequences per optimizer step, over all ranks and accumulation
    step s: epoch = s // (N // G), positions p .. p + G - 1 with p = (s % (N // G)) * G
    number(p) = permute(seed, epoch, N, p), so each block comes at most once per epoch
    first token of block n = n * stride + offset(seed, epoch), so each epoch cuts the text at other places

The last N % G positions of an epoch are not used; which blocks are there differs between epochs. Ranks and
micro-batches only split the G positions of a step, so the samples of a step are the same on any number of devices.
Without shuffling the offset is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Fills a batch's short rows; it is never an input or a target of the model.
IGNORE = -100
# With `reader.loss_on`, a batch has CONTEXT - id for a token that is an input, but no target.
CONTEXT = IGNORE - 1

# Stored in checkpoints. Raise it when the order of blocks changes: a run with another version cannot be resumed, since
# it would repeat some blocks and skip others. In version 1 every offset is 0; a run that began with it keeps it.
ORDER_VERSION = 2
VERSIONS = (1, ORDER_VERSION)

_ROUNDS = 6
# The golden ratio's part of 2^32: its multiples, modulo 2^32, keep the largest distance from one another.
_GOLDEN = 2654435769
# Positions that one call permutes. Vectorized, a position takes about 50 ns.
_POSITIONS = 4096


def count_train(tokens: int, block_size: int, stride: int) -> int:
    """Count the complete blocks in a text, one every `stride` tokens."""
    # A block predicts `block_size` tokens, so it reads one more.
    return (tokens - 1 - block_size) // stride + 1 if tokens > block_size else 0


def count_eval(tokens: int, block_size: int) -> int:
    """Count the blocks that cover every token, the last short one included."""
    return -(-max(tokens - 1, 0) // block_size)


def cut_offset(seed: int, epoch: int, count: int) -> int:
    """Return the offset of an epoch's cuts, from 0 to `count` - 1, far from those of the epochs before it."""
    start = int(np.random.SeedSequence([seed, 0, 0, 1]).generate_state(1)[0])
    return (start + epoch * _GOLDEN) % (1 << 32) * count >> 32


@dataclass(frozen=True)
class BlockOrder:
    """The order of training blocks, each identified by its first token."""

    blocks: int  # N, in an epoch
    global_batch: int  # G, the sequences in one optimizer step
    seed: int
    shuffle: bool = True  # False reads the text from beginning to end
    stride: int = 1  # tokens between the starts of two blocks
    offsets: int = 1  # of the cuts; all blocks fit into the text at each of them

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch, in which each block comes at most once."""
        return self.blocks // self.global_batch

    def step(self, step: int) -> NDArray[np.int64]:
        """Return the first tokens of the G blocks of one optimizer step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        positions = np.arange(within * self.global_batch, (within + 1) * self.global_batch)
        return self.blocks_at(epoch, positions)

    def micro_batches(
        self, first_step: int, batch_size: int, rank: int, world_size: int
    ) -> Iterator[NDArray[np.int64]]:
        """Yield this rank's blocks endlessly, `batch_size` for each forward pass, from `first_step` on."""
        if self.global_batch % (batch_size * world_size):
            raise ValueError(
                f"{self.global_batch} sequences per step cannot be divided by {world_size} ranks x {batch_size}"
            )
        passes = self.global_batch // (batch_size * world_size)  # forward passes per step
        own = (np.arange(passes)[:, None] * world_size + rank) * batch_size + np.arange(batch_size)  # (passes, B)
        step = first_step
        while True:
            epoch, within = divmod(step, self.steps_per_epoch)
            steps = min(max(_POSITIONS // own.size, 1), self.steps_per_epoch - within)
            starts = (within + np.arange(steps)) * self.global_batch
            positions = starts[:, None, None] + own  # (steps, passes, B)
            yield from self.blocks_at(epoch, positions.ravel()).reshape(-1, batch_size)
            step += steps

    def blocks_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first tokens of the blocks at these positions of an epoch."""
        numbers = permute(positions, self.blocks, self.seed, epoch) if self.shuffle else positions
        return numbers * self.stride + cut_offset(self.seed, epoch, self.offsets)


def block_order(
    tokens: int, block_size: int, stride: int, global_batch: int, seed: int, shuffle: bool, version: int = ORDER_VERSION
) -> BlockOrder:
    """Return the order of blocks in a text of this length."""
    counts, offsets = cut_blocks([tokens], block_size, stride, global_batch, shuffle and version > 1)
    return BlockOrder(int(counts[0]), global_batch, seed, shuffle, stride, int(offsets[0]))


def cut_blocks(
    tokens: Sequence[int], block_size: int, stride: int, global_batch: int, is_shifted: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of blocks in each of these texts, and at how many offsets all of them fit into it.

    For `stride` offsets, a text may have one block fewer. It keeps the block if it has no other, or if there would be
    too few blocks for a step.
    """
    complete = np.array([count_train(count, block_size, stride) for count in tokens])
    if not is_shifted:
        return complete, np.ones_like(complete)
    movable = np.array([count_train(count - stride + 1, block_size, stride) for count in tokens])
    counts = np.maximum(movable, np.minimum(complete, 1))
    if counts.sum() < global_batch:
        counts = complete
    return counts, (np.array(tokens) - block_size - (counts - 1) * stride).clip(1, stride)


def permute(positions: NDArray[np.int64], n: int, seed: int, epoch: int, *more: int) -> NDArray[np.int64]:
    """Map positions through a permutation of 0 .. n-1 with the key (seed, epoch, *more).

    A Feistel network permutes 0 .. 2^b - 1, with 2^b the next power of two. A value of n or more goes through it again
    until it is below n, in fewer than two passes on average. Halves are mixed as 32-bit words, so n < 2^64.
    """
    bits = max(n - 1, 1).bit_length()
    low_bits = bits // 2
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << (bits - low_bits)) - 1)
    shift = np.uint64(low_bits)
    keys = np.random.SeedSequence([seed, epoch, *more]).generate_state(_ROUNDS)

    def feistel(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high, low = x >> shift, x & low_mask
        for number, key in enumerate(keys):
            if number % 2:
                low = low ^ (_mix(high, key) & low_mask)
            else:
                high = high ^ (_mix(low, key) & high_mask)
        return (high << shift) | low

    values = feistel(positions.astype(np.uint64))
    while (outside := values >= n).any():
        values[outside] = feistel(values[outside])
    return values.astype(np.int64)


def _mix(value: NDArray[np.uint64], key: np.uint32) -> NDArray[np.uint64]:
    """Apply Murmur3's 32-bit finalizer, which spreads each bit over all others."""
    x = value.astype(np.uint32) ^ key
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x.astype(np.uint64)
