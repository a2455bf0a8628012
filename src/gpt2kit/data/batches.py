"""Batches from a token store: `[batch_size, block_size + 1]` integers, for training and for evaluation.

Does not import Lightning, so that worker processes start quickly.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gpt2kit.data import order
from gpt2kit.data.order import IGNORE
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import MachineError

# The signals after which a run saves and stops. SIGHUP: the terminal was closed. Windows has neither it nor SIGUSR1.
STOP_SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, n)]


@dataclass(frozen=True)
class BlockDataset(Dataset[Tensor]):
    """The blocks of a store. Indexing it with the first tokens of N blocks returns a tensor `[N, block_size + 1]`.

    Positions beyond the end of the text are IGNORE, and with a loss mask a token may be CONTEXT - id.
    """

    store: TokenStore
    block_size: int

    def __getitem__(self, firsts: NDArray[np.int64]) -> Tensor:
        rows = np.full((len(firsts), self.block_size + 1), IGNORE, np.int64)
        for row, first in zip(rows, firsts.tolist(), strict=True):
            tokens = self.store.marked(slice(first, first + self.block_size + 1))
            if len(tokens) > 1:
                row[: len(tokens)] = tokens
        return torch.from_numpy(rows)


class TrainBatches:
    """Endless training batches. They have no length, so that Lightning sees one endless epoch."""

    def __init__(self, blocks: BlockDataset, micro_batches: Iterable[NDArray[np.int64]], num_workers: int = 0) -> None:
        self._blocks, self._micro_batches, self._num_workers = blocks, micro_batches, num_workers

    def __iter__(self) -> Iterator[Tensor]:
        if not self._num_workers:
            yield from (self._blocks[numbers] for numbers in self._micro_batches)
            return
        loader = DataLoader(
            self._blocks,
            batch_size=None,  # an item is already a batch
            sampler=self._micro_batches,
            num_workers=self._num_workers,
            worker_init_fn=_ignore_stop_signals,
            multiprocessing_context=_start_method(),
        )
        try:
            yield from loader
        except (RuntimeError, OSError, EOFError) as error:  # the class depends on what the worker was doing
            raise MachineError(
                f"data.num_workers {self._num_workers}: a worker died or failed ({error}). If memory ran out, use "
                "data.num_workers 0"
            ) from None


class EvalBatches:
    """Batches that predict every token after the first exactly once, over all ranks.

    Each rank yields the same number of batches, so that no rank waits forever. Rows after the text's end are IGNORE.
    """

    def __init__(self, store: TokenStore, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._blocks, self._batch_size = BlockDataset(store, block_size), batch_size
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        count = order.count_eval(self._blocks.store.tokens, self._blocks.block_size)
        return -(-count // (self._batch_size * self._world_size))

    def __iter__(self) -> Iterator[Tensor]:
        for batch in range(len(self)):
            first = (batch * self._world_size + self._rank) * self._batch_size
            yield self._blocks[np.arange(first, first + self._batch_size) * self._blocks.block_size]


def _start_method() -> str:
    """Return how to start workers. Not by fork, which would copy locks that the tokenizer's threads may hold."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _ignore_stop_signals(worker: int) -> None:
    """Ignore signals that reach all processes. The trainer handles them, and needs another batch to do so."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
