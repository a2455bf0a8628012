"""Scores of a model on a token store: nats per document, or per token of some documents.

A text is scored in `Windows`, so that every token after the first is predicted exactly once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DivergedError, UserError
from gpt2kit.evaluation.options import Precision
from gpt2kit.evaluation.ranks import Ranks
from gpt2kit.model.gpt2 import GPT2

DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32, "64": torch.float64}


@dataclass(frozen=True)
class Windows:
    """The windows in which a text is scored."""

    tokens: int  # of the text, with the one before its first
    context: int  # the most tokens that the model sees
    stride: int  # from one window's start to the next one's; the context for windows that do not overlap

    @property
    def least_context(self) -> int:
        """Tokens before each predicted one at least, if the text has as many."""
        return self.context - self.stride + 1

    def __len__(self) -> int:
        if self.tokens < 2:
            return 0
        return 1 + -(-max(self.tokens - 1 - self.context, 0) // self.stride)

    def span(self, number: int) -> tuple[int, int]:
        """Return the range of a window's tokens, inputs and targets."""
        start = number * self.stride
        return start, min(start + self.context + 1, self.tokens)

    def known(self, number: int) -> int:
        """Return how many targets at the window's start an earlier window predicts."""
        return self.context - self.stride if number else 0

    def first_target(self, number: int) -> int:
        """Return the first token that this window is the one to predict."""
        return number * self.stride + 1 + self.known(number)

    def batches(self, batch_size: int) -> Iterator[range]:
        """Yield the windows in order; those of a batch have the same length and known targets, so none is padded."""
        count = len(self)
        # The first window has no known targets, and the last one may be short.
        edges = sorted({0, min(1, count), max(count - 1, 0), count})
        for first, last in itertools.pairwise(edges):
            for number in range(first, last, batch_size):
                yield range(number, min(number + batch_size, last))

    def predicting(self, first: int, last: int) -> range:
        """Return the windows that predict the tokens `first` to `last - 1`."""
        start, end = (-(-max(token - self.context, 0) // self.stride) for token in (max(first, 1), max(last - 1, 1)))
        return range(start, end + 1)


class Scorer:
    """A model, see `prepare`, that predicts the tokens of a store in windows.

    Batches are computed in the given precision, sums are taken in double precision.
    """

    def __init__(self, gpt2: GPT2, store: TokenStore, windows: Windows, precision: Precision = "32-true") -> None:
        self.gpt2 = gpt2
        self.store = store
        self.windows = windows
        self.boundaries = boundaries(store)
        self._precision = precision
        self._dtype = DTYPES[precision.split("-")[0]]

    def score(self, batch_size: int = 16, ranks: Ranks = Ranks()) -> NDArray[np.float64]:
        """Return the nats of each document of the store, `[documents]`, the batches split among the ranks."""
        nll = np.zeros(len(self.boundaries) - 1)
        total = max(self.windows.tokens - 1, 0)
        disable = True if ranks.rank else None  # None: shown on a terminal only
        with tqdm(
            desc="testing", total=total, unit="token", unit_scale=True, leave=False, delay=1, disable=disable
        ) as bar:
            for numbers in ranks.select(self.windows.batches(batch_size)):
                nats = self.predict(numbers)
                self._add_to_documents(nll, numbers, nats)
                bar.update(nats.size * ranks.world_size)
        nll = ranks.sum(nll)
        for number in np.flatnonzero(~np.isfinite(nll))[:1]:
            advice = "The model is broken" if self._precision == "32-true" else "Use 32-true"
            raise DivergedError(f"document {number}: its loss is NaN or Inf in --precision {self._precision}. {advice}")
        return nll

    @torch.inference_mode()
    def predict(self, numbers: range) -> NDArray[np.float64]:
        """Return the nats of the tokens that these windows, alike in size, are the ones to predict, `[windows, T]`."""
        spans = [self.windows.span(number) for number in numbers]
        rows = torch.from_numpy(np.stack([self.store[start:end] for start, end in spans]).astype(np.int64))
        device = self.gpt2.device
        with torch.autocast(device.type, self._dtype, enabled=self._precision.endswith("mixed")):
            nats = self.gpt2.token_nll(rows.to(device), self.windows.known(numbers.start))
        return nats.double().cpu().numpy()

    def token_nats(self, first: int, last: int) -> NDArray[np.float64]:
        """Return the nats of the tokens `first` to `last - 1` of the store, as `score` counts them."""
        numbers = self.windows.predicting(first, last)
        nats = np.concatenate([self.predict(range(number, number + 1))[0] for number in numbers])
        start = self.windows.first_target(numbers.start)
        return nats[first - start : last - start]

    def _add_to_documents(self, nll: NDArray[np.float64], numbers: range, nats: NDArray[np.float64]) -> None:
        first = self.windows.first_target(numbers.start)  # the targets of neighbouring windows follow one another
        documents = np.searchsorted(self.boundaries, np.arange(first, first + nats.size), side="right") - 1
        sums = np.bincount(documents - documents[0], weights=nats.ravel())
        nll[documents[0] : documents[0] + len(sums)] += sums


def prepare(gpt2: GPT2, device: str, precision: Precision) -> GPT2:
    """Move a model to its device and dtype, ready for inference."""
    if precision.startswith("16") and device == "cpu":
        raise UserError(f"--precision {precision}: a CPU computes it very slowly. Use bf16-mixed or 32-true")
    gpt2.to(device)
    if not precision.endswith("mixed"):
        gpt2.to(DTYPES[precision.split("-")[0]])
    gpt2.use_attention()
    gpt2.eval()
    return gpt2


def boundaries(store: TokenStore) -> NDArray[np.int64]:
    """Return the index of each document's first token in the store, and the one behind the last token."""
    lengths = store.lengths()[:, 0] + (1 if store.ends else 0)
    return 1 + np.concatenate([[0], np.cumsum(lengths)])
