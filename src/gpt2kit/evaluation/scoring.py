"""Scores of a model on a token store: nats per document, or per token of a few documents.

Text is scored in windows (`Windows`), so that every token is predicted exactly once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DivergedError, UserError
from gpt2kit.evaluation.options import Precision
from gpt2kit.model.gpt2 import GPT2

_TYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32, "64": torch.float64}


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that share a text."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def share(self, batches: Iterable[range]) -> Iterator[range]:
        """Every world_size-th batch: a batch is the same one whatever the number of ranks."""
        return (batch for number, batch in enumerate(batches) if number % self.world_size == self.rank)

    def added(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sums over all ranks, on each of them."""
        if self.world_size == 1:
            return values
        tensor = torch.from_numpy(values.copy())
        torch.distributed.all_reduce(tensor)
        return tensor.numpy()

    def device(self) -> str:
        """A GPU of this rank's own if there is one, else the CPU."""
        return f"cuda:{self.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks that torchrun has started, joined under gloo; one alone without it."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield Ranks(int(os.environ["RANK"]), world_size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        torch.distributed.destroy_process_group()


def prepare(gpt2: GPT2, device: str, precision: Precision) -> GPT2:
    """The model on its device, in the type that it computes in, ready to be asked."""
    if precision.startswith("16") and device == "cpu":
        raise UserError(f"--precision {precision}: a CPU computes it very slowly. Take bf16-mixed or 32-true")
    gpt2.to(device)
    if precision.endswith("true"):
        gpt2.to(_TYPES[precision.split("-")[0]])
    gpt2.use_attention()
    gpt2.eval()
    return gpt2


def boundaries(store: TokenStore) -> NDArray[np.int64]:
    """The place of each document's first token in the store, and of what is behind the last one."""
    lengths = store.lengths()[:, 0] + (1 if store.ends else 0)
    return 1 + np.concatenate([[0], np.cumsum(lengths)])


def score(
    gpt2: GPT2,
    store: TokenStore,
    windows: Windows,
    batch_size: int = 16,
    precision: Precision = "32-true",
    group: Ranks = Ranks(),
) -> NDArray[np.float64]:
    """Nats of each document, `[documents]`; each token of the windows is predicted once, over all ranks together.

    Batches are computed in the given precision, sums are taken in double precision.
    """
    starts = boundaries(store)
    nll = np.zeros(len(starts) - 1)
    total = max(windows.tokens - 1, 0)
    quiet = True if group.rank else None  # None: shown on a terminal only
    with tqdm(desc="testing", total=total, unit="token", unit_scale=True, leave=False, delay=1, disable=quiet) as bar:
        for numbers in group.share(windows.batches(batch_size)):
            found = nats(gpt2, store, windows, numbers, precision)
            first = windows.span(numbers.start)[0] + 1 + windows.known(numbers.start)
            _add(nll, starts, first, found.ravel())  # new targets of neighbouring windows follow one another
            bar.update(found.size * group.world_size)
    nll = group.added(nll)
    if not np.isfinite(nll).all():
        raise DivergedError(
            f"document {int(np.flatnonzero(~np.isfinite(nll))[0])}: its loss is NaN or Inf in --precision {precision}. "
            + ("The model is broken" if precision == "32-true" else "Take 32-true")
        )
    return nll


@torch.inference_mode()
def nats(gpt2: GPT2, store: TokenStore, windows: Windows, numbers: range, precision: Precision) -> NDArray[np.float64]:
    """Nats of the tokens that these windows, alike in size, are the ones to predict, `[windows, tokens]`."""
    rows = np.stack([store[slice(*windows.span(number))] for number in numbers]).astype(np.int64)
    mixed = precision.endswith("mixed")
    with torch.autocast(gpt2.device.type, _TYPES[precision.split("-")[0]], enabled=mixed):
        found: Tensor = gpt2.token_nll(torch.from_numpy(rows).to(gpt2.device), windows.known(numbers.start))
    return found.double().cpu().numpy()


def token_nats(
    gpt2: GPT2, store: TokenStore, windows: Windows, first: int, last: int, precision: Precision
) -> NDArray[np.float64]:
    """Nats of the tokens `first` to `last - 1` of the store, as `score` has counted them."""
    found = [nats(gpt2, store, windows, range(n, n + 1), precision)[0] for n in windows.predicting(first, last)]
    number = windows.predicting(first, last).start
    begin = windows.span(number)[0] + 1 + windows.known(number)
    return np.concatenate(found)[first - begin : last - begin]


def _add(nll: NDArray[np.float64], starts: NDArray[np.int64], first: int, found: NDArray[np.float64]) -> None:
    """Add the nats of the tokens from `first` on to the documents that they stand in."""
    documents = np.searchsorted(starts, np.arange(first, first + len(found)), side="right") - 1
    low = int(documents[0])
    sums = np.bincount(documents - low, weights=found)
    nll[low : low + len(sums)] += sums


@dataclass(frozen=True)
class Windows:
    """The windows of a text.

    Args:
        tokens: of the text, with the one that stands before it.
        context: tokens that the model sees at most.
        stride: tokens from one window's start to the next one's; the context for none to overlap.
    """

    tokens: int
    context: int
    stride: int

    @property
    def least_context(self) -> int:
        """Tokens that a prediction is made from, at least, once the text has so many."""
        return self.context - self.stride + 1

    def __len__(self) -> int:
        if self.tokens < 2:
            return 0
        return 1 + -(-max(self.tokens - 1 - self.context, 0) // self.stride)

    def span(self, number: int) -> tuple[int, int]:
        """The tokens of a window, inputs and targets: the first, and that behind the last."""
        start = number * self.stride
        return start, min(start + self.context + 1, self.tokens)

    def known(self, number: int) -> int:
        """Targets at the window's start that an earlier window has predicted."""
        return self.context - self.stride if number else 0

    def batches(self, batch_size: int) -> Iterator[range]:
        """Windows that have the same length and known targets, so that nothing is filled up, in order."""
        whole = len(self)
        if whole and self.span(whole - 1)[1] - self.span(whole - 1)[0] <= self.context:
            whole -= 1
        first = min(whole, 1 if self.known(1) else 0)
        if first:
            yield range(0, 1)
        for start in range(first, whole, batch_size):
            yield range(start, min(start + batch_size, whole))
        if whole < len(self):
            yield range(whole, whole + 1)

    def predicting(self, first: int, last: int) -> range:
        """The windows that predict the tokens `first` to `last - 1`."""
        return range(self._of(max(first, 1)), self._of(max(last - 1, 1)) + 1)

    def _of(self, token: int) -> int:
        return -(-max(token - self.context, 0) // self.stride)
