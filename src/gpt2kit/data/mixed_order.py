"""The order of training blocks of several texts: a fixed interleave, in which each text has its own epochs.

    b blocks of a text with weight w; c = w * b of an epoch's positions, scaled so that all c are about all b together
    a text with a fraction instead of a weight: c is this fraction of all positions, those of the weights included
    the text's positions are evenly spread: number j of them is at the fraction (j + 1/2) / c of the epoch
    position number k of a text, counted over all epochs, has block k % b of the text's own epoch k // b

So a token of a text with weight 2 comes twice as often as one of a text with weight 1, and a block comes again only
when all others of its text have come. Everything is a function of (seed, epoch, position), as in `order`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.order import ORDER_VERSION, BlockOrder, cut_blocks

# Stored in checkpoints. Raise it when the interleave changes.
MIX_VERSION = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class MixedOrder(BlockOrder):
    """The order of training blocks of several texts, whose tokens are numbered one text after another."""

    orders: tuple[BlockOrder, ...]  # of each text alone
    counts: NDArray[np.int64]  # an epoch's positions of each text
    firsts: NDArray[np.int64]  # the number of each text's first token

    __hash__, __eq__ = object.__hash__, object.__eq__  # by identity: arrays cannot be hashed

    def blocks_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first tokens of the blocks at these positions of an epoch."""
        slots = self._slots[positions]
        texts = np.searchsorted(self._edges, slots, side="right") - 1
        numbers = epoch * self.counts[texts] + slots - self._edges[texts]
        firsts = np.empty_like(slots)
        for text in np.unique(texts).tolist():
            own = texts == text
            firsts[own] = self.firsts[text] + _blocks_of(self.orders[text], numbers[own])
        return firsts

    @property
    def passes_per_epoch(self) -> list[float]:
        """How often each text is read in an epoch."""
        return [count / max(order.blocks, 1) for count, order in zip(self.counts.tolist(), self.orders, strict=True)]

    def passes(self, step: int) -> list[float]:
        """Return how often each text was read when this step begins, to the nearest block."""
        epoch, within = divmod(step, self.steps_per_epoch)
        epochs = epoch + within * self.global_batch / self.blocks
        return [epochs * passes for passes in self.passes_per_epoch]

    @functools.cached_property
    def _edges(self) -> NDArray[np.int64]:
        """The slot at which each text begins."""
        return np.cumsum([0, *self.counts])[:-1]

    @functools.cached_property
    def _slots(self) -> NDArray[np.int64]:
        """The slot of each position: slots are numbered by text, positions by their place in the epoch."""
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts.tolist()])
        return np.argsort(places, kind="stable")


def _blocks_of(order: BlockOrder, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a text's blocks by their numbers, which continue over its epochs."""
    epochs, positions = np.divmod(numbers, order.blocks)
    firsts = np.empty_like(numbers)
    for epoch in np.unique(epochs).tolist():
        firsts[epochs == epoch] = order.blocks_at(epoch, positions[epochs == epoch])
    return firsts


def mixed_order(
    tokens: Sequence[int],
    weights: Sequence[float],
    fractions: Sequence[float | None],
    block_size: int,
    stride: int,
    global_batch: int,
    seed: int,
    shuffle: bool,
    version: int = ORDER_VERSION,
    stage: int = 1,
) -> MixedOrder:
    """Return the order of blocks of texts with these numbers of tokens, each at least a block.

    A text with a fraction has no weight. At least one text has none. Each stage of a run reads in another order.
    """
    counts, offsets = cut_blocks(tokens, block_size, stride, global_batch, shuffle and version > 1)
    has_weight = np.array([fraction is None for fraction in fractions])
    parts = np.array(weights) * counts * has_weight
    positions = np.maximum(np.round(parts * (counts[has_weight].sum() / parts.sum())), has_weight)
    of_all = np.array([fraction or 0.0 for fraction in fractions])
    epoch = positions.sum() / (1 - of_all.sum())
    positions = np.where(has_weight, positions, np.round(of_all * epoch)).astype(np.int64)
    key = [seed, 0, 0, 2] if stage == 1 else [seed, 0, stage, 2]
    seeds = [int(np.random.SeedSequence([*key, i]).generate_state(1)[0]) for i in range(len(tokens))]
    own = zip(counts.tolist(), seeds, offsets.tolist(), strict=True)
    return MixedOrder(
        int(positions.sum()),
        global_batch,
        seed,
        shuffle,
        stride,
        orders=tuple(
            BlockOrder(count, global_batch, own_seed, shuffle, stride, offset) for count, own_seed, offset in own
        ),
        counts=positions,
        firsts=np.cumsum([0, *tokens])[:-1],
    )
