"""What docs/distributed.md says of 1,024 ranks, tried without them: the order of blocks is a pure function."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT

from gpt2kit.data import order as blocks
from gpt2kit.data.order import BlockOrder
from gpt2kit.training.module import GPT2Module


def orders() -> list[BlockOrder]:
    """10 billion tokens in blocks of 1,024, in one permutation, and through windows of files."""
    count = 10_000_000_000 // 1024
    sizes = [1 << 26] * 149
    return [
        BlockOrder(count, 1024 * 8, seed=3),
        blocks.window_order(sizes, 1024, 1024, 4, 1024 * 8, 3, True),
    ]


@pytest.mark.parametrize("order", orders(), ids=["permuted", "windows"])
def test_1024_ranks_share_out_each_step(order: BlockOrder) -> None:
    """Their shares are disjoint, together the step's blocks, and equal; two micro-batches of four on each."""
    steps = [0, 1, order.steps_per_epoch - 1]  # the last one, too, and the first of the next epoch behind it
    for first in steps:
        shares = [
            np.array(list(itertools.islice(order.micro_batches(first, 4, rank, 1024), 4))) for rank in range(1024)
        ]
        for number in (0, 1):
            step = [share[2 * number : 2 * number + 2] for share in shares]
            assert all(part.shape == (2, 4) for part in step)
            together = np.concatenate([part.ravel() for part in step])
            assert len(np.unique(together)) == order.global_batch
            assert np.array_equal(np.sort(together), np.sort(order.step(first + number)))


@pytest.mark.parametrize("order", orders(), ids=["permuted", "windows"])
def test_the_same_step_on_any_number_of_ranks(order: BlockOrder) -> None:
    """Micro-batch j of a step is the same blocks, whichever rank computes it: so its dropout is, too."""
    alone = [next(batches) for batches in [order.micro_batches(7, 8, 0, 1)] for _ in range(1024)]
    for ranks in (2, 64, 1024):
        many = [order.micro_batches(7, 8, rank, ranks) for rank in range(ranks)]
        assert np.array_equal(alone, [next(many[number % ranks]) for number in range(1024)])


def test_memory_and_time_of_a_rank_do_not_grow_with_the_ranks() -> None:
    """Per sequence of its own, a rank of 1,024 needs what a rank of 1 needs, at the start and later."""

    def cost(ranks: int) -> tuple[float, int]:
        order = BlockOrder(10_000_000_000 // 1024, 8 * ranks, seed=3)
        best, peak = float("inf"), 0
        for _ in range(5):
            tracemalloc.start()
            begun = time.perf_counter()
            collected = list(itertools.islice(order.micro_batches(1000, 8, ranks - 1, ranks), 2000))
            best = min(best, time.perf_counter() - begun)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert len(collected) == 2000
        return best, peak

    seconds, bytes_ = cost(1)
    many_seconds, many_bytes = cost(1024)
    assert many_bytes < 1.5 * bytes_ and bytes_ < 4e6
    assert many_seconds < 3 * seconds and seconds < 2  # generous: another program may be running


def test_whole_epochs_of_many_ranks_are_complete() -> None:
    """Three epochs of a small text on 64 ranks: each block at most once an epoch, all but a step's worth seen."""
    order = BlockOrder(1000, 128, seed=1)
    every = [order.micro_batches(0, 2, rank, 64) for rank in range(64)]
    for _ in range(3):
        seen = np.concatenate([next(batches) for _ in range(order.steps_per_epoch) for batches in every])
        assert len(np.unique(seen)) == len(seen) == order.steps_per_epoch * 128
    assert blocks.count_train(1 << 40, 1024) < 1 << 40


def test_the_tables_are_those_of_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import scaling

    for size in scaling.SIZES:
        shape = yaml.safe_load((ROOT / f"configs/model/{size.name}.yaml").read_text())
        assert (shape["n_layer"], shape["n_embd"]) == (size.n_layer, size.n_embd)
    with torch.device("meta"):
        small = GPT2Module(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, n_positions=1024)
    assert sum(p.numel() for p in small.parameters()) == scaling.SIZES[0].parameters
    text = (ROOT / "docs/distributed.md").read_text(encoding="utf-8")
    for table in scaling.tables().split("\n\n"):
        assert table in text, "python bench/scaling.py prints other tables than docs/distributed.md has"
