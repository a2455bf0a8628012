"""Batches from a token store: `[batch_size, block_size + 1]` integers, for training and for evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gpt2kit.data import order
from gpt2kit.data.order import IGNORE
from gpt2kit.data.store import TokenStore

_AHEAD = 2  # batches that each thread reads ahead


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
    """Endless training batches. They have no length, so that Lightning sees one endless epoch.

    Threads read ahead, not the processes of a DataLoader: reading waits for the disk without the interpreter's lock, a
    batch need not be sent, and a process that is killed at the wrong moment would let the trainer wait forever.
    """

    def __init__(self, blocks: BlockDataset, micro_batches: Iterable[NDArray[np.int64]], num_workers: int = 0) -> None:
        self._blocks, self._micro_batches, self._num_workers = blocks, micro_batches, num_workers

    def __iter__(self) -> Iterator[Tensor]:
        if not self._num_workers:
            return (self._blocks[numbers] for numbers in self._micro_batches)
        return self._read_ahead()

    def _read_ahead(self) -> Iterator[Tensor]:
        batches: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(self._num_workers, "read-ahead") as threads:
            for numbers in self._micro_batches:
                batches.append(threads.submit(self._blocks.__getitem__, numbers))
                if len(batches) > _AHEAD * self._num_workers:
                    yield batches.popleft().result()
            yield from (batch.result() for batch in batches)


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
