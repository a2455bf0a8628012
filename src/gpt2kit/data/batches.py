"""Batches from a token store: `[rows, block_size + 1]` integers, for training and for evaluation.

Lightning is not imported here, so that processes which read ahead start quickly.
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

STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
"""The signals that ask a run to save and leave; Windows has no SIGUSR1."""


@dataclass(frozen=True)
class Rows(Dataset[Tensor]):
    """Blocks of a store by their numbers, `[numbers, block_size + 1]`; what lies beyond the text is IGNORE."""

    store: TokenStore
    block_size: int
    stride: int

    def __getitem__(self, numbers: NDArray[np.int64]) -> Tensor:
        rows = np.full((len(numbers), self.block_size + 1), IGNORE, np.int64)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            tokens = self.store[number * self.stride : number * self.stride + self.block_size + 1]
            if len(tokens) > 1:
                row[: len(tokens)] = tokens
        return torch.from_numpy(rows)


class TrainBatches:
    """Endless training batches, `[batch_size, block_size + 1]`. It has no length: to Lightning, one endless epoch."""

    def __init__(self, rows: Rows, micro_batches: Iterable[NDArray[np.int64]], num_workers: int = 0) -> None:
        self._rows, self._micro_batches, self._num_workers = rows, micro_batches, num_workers

    def __iter__(self) -> Iterator[Tensor]:
        if not self._num_workers:
            yield from (self._rows[numbers] for numbers in self._micro_batches)
            return
        loader = DataLoader(
            self._rows,
            batch_size=None,  # an item is a whole batch already
            sampler=self._micro_batches,
            num_workers=self._num_workers,
            worker_init_fn=_leave_signals,
            multiprocessing_context=_way_to_start(),
        )
        try:
            yield from loader
        except (RuntimeError, OSError, EOFError) as error:  # which one depends on what it was about
            raise MachineError(
                f"data.num_workers {self._num_workers}: one of these processes died or failed ({error}). "
                "If memory ran out, use data.num_workers 0"
            ) from None


def _way_to_start() -> str:
    """Not a fork, which would copy locks that the tokenizer's threads may hold. Windows starts each process anew."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _leave_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach all processes; the trainer alone answers, and needs its next batch."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


class EvalBatches:
    """Every token after the first exactly once, over all ranks; the last short block is filled up with IGNORE.

    Each rank gives the same number of batches (rows of IGNORE where the text has run out), so that none waits forever.
    """

    def __init__(self, store: TokenStore, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._store, self._block_size, self._batch_size = store, block_size, batch_size
        self._rows = Rows(store, block_size, block_size)
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        rows = order.count_eval(self._store.tokens, self._block_size)
        return -(-rows // (self._batch_size * self._world_size))

    def __iter__(self) -> Iterator[Tensor]:
        for batch in range(len(self)):
            first = (batch * self._world_size + self._rank) * self._batch_size
            yield self._rows[np.arange(first, first + self._batch_size)]
