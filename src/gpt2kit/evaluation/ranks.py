"""The processes that torchrun starts for one test: which batches each of them scores, and the sums over all of them."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gpt2kit.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that score one text together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def select(self, batches: Iterable[range]) -> Iterator[range]:
        """Yield every `world_size`-th batch: a batch is the same one whatever the number of ranks."""
        return (batch for number, batch in enumerate(batches) if number % self.world_size == self.rank)

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums over all ranks, on each of them."""
        if self.world_size == 1:
            return values
        tensor = torch.from_numpy(values.copy())
        torch.distributed.all_reduce(tensor)
        return tensor.numpy()

    def device(self) -> str:
        """Return this rank's own GPU if there is one, else the CPU."""
        return f"cuda:{self.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the ranks that torchrun has started, under gloo. Rank 0 alone prints."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    torch.distributed.init_process_group("gloo")
    ranks = Ranks(int(os.environ["RANK"]), world_size, int(os.environ.get("LOCAL_RANK", "0")))
    try:
        with contextlib.ExitStack() as stack:
            if ranks.rank:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield ranks
    except UserError as error:
        if not ranks.rank:
            raise
        time.sleep(5)  # torchrun ends all ranks when one ends; rank 0 needs time to report the error
        sys.exit(error.exit_code)
    finally:
        torch.distributed.destroy_process_group()
