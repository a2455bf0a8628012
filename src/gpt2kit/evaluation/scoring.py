"""Score a model on a token store: nats per document, or per token of some documents.

A text is scored in `Windows`, so that every token after the first is predicted exactly once. `Ranks` are the processes
that torchrun starts to score a text together. `predict_texts` does the same for short texts in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from tqdm import tqdm

from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DivergedError, UserError
from gpt2kit.evaluation.options import Precision
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization.tokenizer import token_bytes

DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32, "64": torch.float64}


@dataclass(frozen=True)
class Ranks:
    """The position of this process among those that score a text together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def select(self, batches: Iterable[range]) -> Iterator[range]:
        """Yield every `world_size`-th batch. The batches themselves do not depend on the number of ranks."""
        return itertools.islice(batches, self.rank, None, self.world_size)

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums over all ranks, on each of them."""
        if self.world_size == 1:
            return values
        tensor = torch.from_numpy(values.copy())
        torch.distributed.all_reduce(tensor)
        return tensor.numpy()

    def device(self) -> str:
        """Return the GPU of this rank, or the CPU if there is no GPU."""
        return f"cuda:{self.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the ranks that torchrun has started, with the gloo backend. Only rank 0 prints."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    torch.distributed.init_process_group("gloo")
    ranks = Ranks(int(os.environ["RANK"]), world_size, int(os.environ.get("LOCAL_RANK", "0")))
    try:
        if ranks.rank == 0:
            yield ranks
        else:
            with (
                open(os.devnull, "w", encoding="utf-8") as null,
                contextlib.redirect_stdout(null),
                contextlib.redirect_stderr(null),
            ):
                yield ranks
    except UserError as error:
        if not ranks.rank:
            raise
        time.sleep(5)  # torchrun stops all ranks when one exits; rank 0 needs time to report the error
        sys.exit(error.exit_code)
    finally:
        torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Windows:
    """The windows in which a text is scored."""

    tokens: int  # in the text, with the end-of-document token before it
    context: int  # maximum number of tokens that the model sees
    stride: int  # from the start of a window to that of the next; equal to the context if windows do not overlap

    @property
    def least_context(self) -> int:
        """Minimum number of tokens before each predicted one, except at the beginning of the text."""
        return self.context - self.stride + 1

    def __len__(self) -> int:
        if self.tokens < 2:
            return 0
        return 1 + -(-max(self.tokens - 1 - self.context, 0) // self.stride)

    def span(self, number: int) -> tuple[int, int]:
        """Return the start and end of a window's tokens, inputs and targets."""
        start = number * self.stride
        return start, min(start + self.context + 1, self.tokens)

    def known(self, number: int) -> int:
        """Return how many targets at the start of a window are predicted by an earlier one."""
        return self.context - self.stride if number else 0

    def first_target(self, number: int) -> int:
        """Return the first token whose prediction by this window counts."""
        return number * self.stride + 1 + self.known(number)

    def batches(self, batch_size: int) -> Iterator[range]:
        """Yield the windows in order. All of a batch have the same length and known targets, so none is padded."""
        count = len(self)
        # The first window has no known targets, and the last one may be short.
        edges = sorted({0, min(1, count), max(count - 1, 0), count})
        for first, last in itertools.pairwise(edges):
            for number in range(first, last, batch_size):
                yield range(number, min(number + batch_size, last))

    def predicting(self, first: int, last: int) -> range:
        """Return the windows that predict the tokens `first` to `last - 1`."""
        # A token is predicted by the first window that contains it as a target.
        start, end = (-(-max(token - self.context, 0) // self.stride) for token in (first, last - 1))
        return range(start, end + 1)


class Scorer:
    """Predicts the tokens of a store in windows, with a model from `prepare`.

    Batches are computed in the given precision; sums are in double precision.
    """

    def __init__(self, gpt2: GPT2, store: TokenStore, windows: Windows, precision: Precision = "32-true") -> None:
        self.gpt2 = gpt2
        self.store = store
        self.windows = windows
        self.boundaries = boundaries(store)
        self._precision = precision

    def score(
        self, batch_size: int = 16, ranks: Ranks = Ranks(), boundaries: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Return the nats of each document of the store, `[documents]`; each rank computes some of the batches.

        With `boundaries` (the first token of each part, and the end), return those of each part instead.
        """
        boundaries = self.boundaries if boundaries is None else boundaries
        nll = np.zeros(len(boundaries) - 1)
        total = max(self.windows.tokens - 1, 0)
        disable = True if ranks.rank else None  # None: only show the bar on a terminal
        with tqdm(
            desc="testing", total=total, unit="token", unit_scale=True, leave=False, delay=1, disable=disable
        ) as bar:
            for numbers in ranks.select(self.windows.batches(batch_size)):
                nats = self.predict(numbers)
                self._add_to_parts(nll, boundaries, numbers, nats)
                bar.update(nats.size * ranks.world_size)
        return self._sum_over_ranks(nll, ranks, boundaries)

    def sizes(self, tokenizer: Tokenizer) -> NDArray[np.int64]:
        """Return the predicted tokens of each document, their bytes and characters, `[documents, 3]`.

        The end of a document counts as one of each.
        """
        counted = self.store.counted()
        return counted[:, :3] + counted[:, 3:]

    def _sum_over_ranks(
        self, nll: NDArray[np.float64], ranks: Ranks, boundaries: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        nll = ranks.sum(nll)
        for number in np.flatnonzero(~np.isfinite(nll))[:1]:
            advice = "The weights are unusable" if self._precision == "32-true" else "Use --precision 32-true"
            document = np.searchsorted(self.boundaries, boundaries[number], side="right") - 1
            raise DivergedError(
                f"document {document}: its loss is NaN or Inf with --precision {self._precision}. {advice}"
            )
        return nll

    def predict(self, numbers: range, statistics: bool = False) -> NDArray[np.float64]:
        """Return the nats of the tokens that a batch of windows predicts, without known ones, `[windows, T]`.

        A token that the loss does not count has 0 nats. With `statistics`, return the nats, ranks and entropies of all
        tokens, `[3, windows, T]`.
        """
        read = self.store.__getitem__ if statistics else self.store.marked
        rows = np.stack([read(slice(*self.windows.span(number))) for number in numbers])
        return predict(self.gpt2, rows, self.windows.known(numbers.start), self._precision, statistics)

    def statistics(self, batch_size: int = 16) -> Iterator[NDArray[np.float64]]:
        """Yield the nats, ranks and entropies of all predicted tokens in their order, `[3, N]` at a time."""
        for numbers in self.windows.batches(batch_size):
            yield self.predict(numbers, statistics=True).reshape(3, -1)

    def token_nats(self, first: int, last: int) -> NDArray[np.float64]:
        """Return the nats of the tokens `first` to `last - 1` of the store, as `score` counts them."""
        numbers = self.windows.predicting(first, last)
        nats = np.concatenate([self.predict(range(number, number + 1))[0] for number in numbers])
        start = self.windows.first_target(numbers.start)
        return nats[first - start : last - start]

    def _add_to_parts(
        self, nll: NDArray[np.float64], boundaries: NDArray[np.int64], numbers: range, nats: NDArray[np.float64]
    ) -> None:
        first = self.windows.first_target(numbers.start)  # the targets of consecutive windows are consecutive
        parts = np.searchsorted(boundaries, np.arange(first, first + nats.size), side="right") - 1
        sums = np.bincount(parts - parts[0], weights=nats.ravel())
        nll[parts[0] : parts[0] + len(sums)] += sums


class DocumentScorer(Scorer):
    """Predicts each document by itself, from its second token on: no end-of-text token precedes the first one."""

    def score(
        self, batch_size: int = 16, ranks: Ranks = Ranks(), boundaries: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Return the nats of each document of the store, `[documents]`; each rank computes some of them.

        `boundaries` can only be those of documents.
        """
        boundaries = self.boundaries if boundaries is None else boundaries
        nll = np.zeros(len(boundaries) - 1)
        count = int(np.searchsorted(self.boundaries, self.windows.tokens))
        batches = (range(first, min(first + batch_size, count)) for first in range(0, count, batch_size))
        for numbers in ranks.select(batches):
            nll[numbers.start : numbers.stop] = [nats.sum() for nats in self._predict_documents(numbers, batch_size)]
        return self._sum_over_ranks(nll, ranks, boundaries)

    def sizes(self, tokenizer: Tokenizer) -> NDArray[np.int64]:
        """Return the predicted tokens of each document, their bytes and characters, `[documents, 3]`."""
        count = sizes_after_first(tokenizer)
        return np.stack([count(self._ids(number), whole) for number, whole in enumerate(self.store.lengths())])

    def statistics(self, batch_size: int = 16) -> Iterator[NDArray[np.float64]]:
        """Yield the nats, ranks and entropies of a document's tokens, `[3, N]`; NaN for the first one."""
        for number in range(len(self.boundaries) - 1):
            [values] = self._predict_documents(range(number, number + 1), batch_size, statistics=True)
            yield np.concatenate([np.full((3, min(1, len(self._ids(number)))), np.nan), values], 1)

    def token_nats(self, first: int, last: int) -> NDArray[np.float64]:
        """Return the nats of the tokens `first` to `last - 1` of the store, a document's beginning; NaN for `first`."""
        ids = self.store[first:last]
        [nats] = predict_texts(self.gpt2, [ids], self.windows.stride, 1, self._precision)
        return np.concatenate([[np.nan], nats[0]])

    def _ids(self, number: int) -> NDArray[np.int64]:
        start, end = self.boundaries[number : number + 2]
        return self.store[start:end].astype(np.int64)

    def _predict_documents(
        self, numbers: range, batch_size: int, statistics: bool = False
    ) -> list[NDArray[np.float64]]:
        texts = [self._ids(number) for number in numbers]
        return predict_texts(self.gpt2, texts, self.windows.stride, batch_size, self._precision, statistics)


def sizes_after_first(
    tokenizer: Tokenizer,
) -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]:
    """Return a function from a text's ids, and its tokens, bytes and characters, to those after the first token."""
    # The bytes of a character after its first one begin with the bits 10.
    rows = [(1, len(raw), sum(byte & 0xC0 != 0x80 for byte in raw)) for raw in token_bytes(tokenizer)]
    table = np.array(rows, np.int64)  # (vocab_size, 3)
    if isinstance(tokenizer.model, models.WordPiece):  # its tokens lack the spaces between words
        return lambda ids, whole: whole - table[ids[:1]].sum(0)
    return lambda ids, whole: table[ids[1:]].sum(0)  # without characters that the vocabulary lacks


@torch.inference_mode()
def predict(
    gpt2: GPT2, rows: NDArray[np.integer], known: int, precision: Precision, statistics: bool = False
) -> NDArray[np.float64]:
    """Return the nats of the targets of windows, without the `known` ones; see `Scorer.predict`."""
    batch, method = torch.from_numpy(rows.astype(np.int64)), gpt2.token_statistics if statistics else gpt2.token_nll
    dtype = DTYPES[precision.split("-")[0]]
    with torch.autocast(gpt2.device.type, dtype, enabled=precision.endswith("mixed")):
        values = method(batch.to(gpt2.device), known)
    return values.double().cpu().numpy()


def predict_texts(
    gpt2: GPT2,
    texts: Sequence[NDArray[np.integer]],
    stride: int | None,
    batch_size: int,
    precision: Precision,
    statistics: bool = False,
) -> list[NDArray[np.float64]]:
    """Return the nats of each text's tokens after its first one, `[1, tokens - 1]`; see `Scorer.predict`.

    Texts do not share windows. Windows of the same size are computed together, so none is padded.
    """
    context = int(gpt2.shape["n_positions"])
    windows = [Windows(len(text), context, stride or context) for text in texts]
    results = [np.zeros((3 if statistics else 1, max(len(text) - 1, 0))) for text in texts]
    groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # size -> numbers of texts and windows
    for i in range(len(texts)):
        for number in range(len(windows[i])):
            start, end = windows[i].span(number)
            groups[end - start, windows[i].known(number)].append((i, number))
    for (_, known), members in groups.items():
        for first in range(0, len(members), batch_size):
            batch = members[first : first + batch_size]
            rows = np.stack([texts[i][slice(*windows[i].span(number))] for i, number in batch])
            values = predict(gpt2, rows, known, precision, statistics).reshape(-1, *rows[:, 1 + known :].shape)
            for row, (i, number) in enumerate(batch):
                start = windows[i].first_target(number) - 1
                results[i][:, start : start + values.shape[2]] = values[:, row]
    return results


def prepare(gpt2: GPT2, device: str, precision: Precision) -> GPT2:
    """Move a model to its device and dtype, ready for inference."""
    if precision.startswith("16") and device == "cpu":
        raise UserError(f"--precision {precision}: very slow on a CPU. Use bf16-mixed or 32-true")
    gpt2.to(device)
    if not precision.endswith("mixed"):
        gpt2.to(DTYPES[precision.split("-")[0]])
    gpt2.use_attention()
    gpt2.eval()
    return gpt2


def boundaries(store: TokenStore) -> NDArray[np.int64]:
    """Return the index of each document's first token in the store, and the end of the store."""
    lengths = store.lengths()[:, 0] + (1 if store.ends else 0)
    return 1 + np.concatenate([[0], np.cumsum(lengths)])
