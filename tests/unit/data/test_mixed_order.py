"""The order of blocks of several texts: exact shares, each block of a text equally often, the same on any ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpt2kit.data.mixed_order import MixedOrder, mixed_order

BLOCK, BATCH = 8, 4
TOKENS = (8 * 61 + 1, 8 * 25 + 1, 8 * 13 + 1)
FIRSTS = np.cumsum([0, *TOKENS])


def make(
    weights: tuple[float, ...] = (1, 2, 1),
    shuffle: bool = True,
    seed: int = 1,
    fractions: tuple[float | None, ...] = (None, None, None),
) -> MixedOrder:
    return mixed_order(TOKENS, weights, fractions, BLOCK, BLOCK, BATCH, seed, shuffle)


def texts_of(firsts: np.ndarray) -> np.ndarray:
    return np.searchsorted(FIRSTS, firsts, side="right") - 1


def read(order: MixedOrder, steps: int, first: int = 0) -> np.ndarray:
    return np.concatenate([order.step(step) for step in range(first, first + steps)])


def test_no_block_reaches_into_the_next_text() -> None:
    firsts = read(make(), 200)
    assert ((firsts >= FIRSTS[texts_of(firsts)]) & (firsts + BLOCK < FIRSTS[texts_of(firsts) + 1])).all()


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 1), (0.7, 0.2, 0.1), (1, 30, 0.01)])
def test_weights_are_rates_per_token(weights: tuple[float, ...]) -> None:
    order = make(weights)
    steps = 40 * order.steps_per_epoch
    counts = np.bincount(texts_of(read(order, steps)), minlength=3)
    expected = np.array(weights, float) * [part.blocks for part in order.orders]
    expected *= steps * BATCH / expected.sum()
    assert np.abs(counts - expected).max() <= 0.02 * counts.sum()
    passes = counts / [part.blocks for part in order.orders]
    assert order.passes(steps) == pytest.approx(passes, rel=0.05, abs=0.1)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
def test_a_fraction_is_of_all_blocks_and_weights_divide_the_others(fraction: float) -> None:
    order = make((1, 1, 2), fractions=(fraction, None, None))
    counts = np.bincount(texts_of(read(order, order.steps_per_epoch)), minlength=3) / (order.steps_per_epoch * BATCH)
    rest = np.array([25, 2 * 13]) / (25 + 2 * 13) * (1 - fraction)
    assert counts == pytest.approx([fraction, *rest], abs=0.05)
    assert order.passes_per_epoch[0] == pytest.approx(fraction * order.blocks / order.orders[0].blocks, abs=0.02)
    if not fraction:
        assert order.counts[0] == 0, "not one block"


def test_a_text_without_blocks_may_be_short() -> None:
    order = mixed_order((5, *TOKENS[1:]), (1, 1, 1), (0.0, None, None), BLOCK, BLOCK, BATCH, 1, True)
    assert (read(order, 50) >= 5).all() and order.passes_per_epoch[0] == 0


def test_only_ratios_of_weights_matter() -> None:
    assert np.array_equal(read(make((1, 2, 1)), 50), read(make((0.5, 1, 0.5)), 50))


def test_a_block_comes_again_only_after_all_others_of_its_text() -> None:
    order = make((1, 2, 1))
    assert order.blocks % BATCH == 0, "no position of an epoch is left out"
    firsts = read(order, 5 * order.steps_per_epoch + 3)
    for text, part in enumerate(order.orders):
        numbers = (firsts[texts_of(firsts) == text] - FIRSTS[text]) // BLOCK
        complete = len(numbers) // part.blocks * part.blocks
        assert complete > 2 * part.blocks
        for epoch in numbers[:complete].reshape(-1, part.blocks):
            assert len(set(epoch.tolist())) == part.blocks


def test_every_part_of_an_epoch_has_the_same_shares() -> None:
    order = make((1, 2, 1))
    firsts = read(order, order.steps_per_epoch)
    for part in np.array_split(texts_of(firsts), 5):
        share = np.bincount(part, minlength=3) / len(part)
        assert share == pytest.approx(order.counts / order.blocks, abs=1.5 / len(part))


def test_steps_do_not_depend_on_ranks_or_on_where_the_run_began() -> None:
    order = make()
    expected = [set(order.step(step).tolist()) for step in range(30, 40)]
    for batch_size, ranks in ((4, 1), (2, 2), (1, 4), (1, 2)):
        passes = BATCH // batch_size // ranks
        streams = [order.micro_batches(30, batch_size, rank, ranks) for rank in range(ranks)]
        for blocks in expected:
            batches = [next(stream) for _ in range(passes) for stream in streams]
            assert set(itertools.chain(*(batch.tolist() for batch in batches))) == blocks


def test_seed_and_epoch_change_the_order_and_not_the_interleave() -> None:
    one, other = make(seed=1), make(seed=2)
    assert not np.array_equal(read(one, 20), read(other, 20))
    assert np.array_equal(texts_of(read(one, 20)), texts_of(read(other, 20)))
    assert not np.array_equal(read(one, 20), read(one, 20, one.steps_per_epoch))


def test_without_shuffling_each_text_is_read_from_its_beginning() -> None:
    firsts = read(make(shuffle=False), 8)
    for text in range(3):
        own = firsts[texts_of(firsts) == text]
        assert np.array_equal(own, FIRSTS[text] + BLOCK * np.arange(len(own)))


def test_the_order_of_this_version_stays() -> None:
    """Checkpoints rely on it: raise MIX_VERSION when it changes."""
    assert read(make(), 3).tolist() == [425, 651, 377, 643, 774, 441, 523, 73, 571, 217, 89, 635]
