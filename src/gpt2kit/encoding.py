"""Batches of text become ids: always those that the tokenizer itself gives, in order, as fast as the machine can.

There are three ways: `gigatoken`, if it is installed and right; the library's own threads; and, with many cores,
processes. Each encodes in the background while the caller reads on and uses what is done, and none reads far ahead, so
the memory does not depend on the corpus.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from gpt2kit.encoding_gigatoken import gigatoken_if_right
from gpt2kit.encoding_processes import Ids, Joined, Processes, joined

_THREADS = 8
_PROCESSES = 32
"""Processes at most: by then the one that reads is what all wait for."""
_FEW = 8
"""Batches that are encoded before processes would have started."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class _Way:
    """How batches are encoded: `work` in so many threads, `finish` in the caller's; `close` stops it at once."""

    work: Callable[[list[str]], Any]
    finish: Callable[[Any], Joined] = lambda found: found
    workers: int = 1
    close: Callable[[], None] = lambda: None


def encoded(
    batches: Iterable[list[str]],
    tokenizer: Tokenizer,
    dtype: np.dtype[np.unsignedinteger],
    cores: int | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[list[str], list[Ids]]]:
    """Each batch with the ids of each of its texts, in the order given; nothing is put around a text.

    Use it up or close it: then no thread or process of it is left.

    Args:
        batches: lists of texts, about a million characters each. Read ahead: 8, or two for each process.
        tokenizer: as `tokenizer.from_json` gives it.
        dtype: holds every id.
        cores: decides between threads and processes, and how many of these; None: those that this process may use. The
            library's threads are always as many as RAYON_NUM_THREADS says, or as there are cores.
        note: told once why gigatoken is installed but not used.
    """
    source = iter(batches)
    head = list(itertools.islice(source, _FEW))
    cores = cores or usable_cores()
    if fast := gigatoken_if_right(tokenizer, dtype, head, note):
        way = _Way(fast.encode)
    elif cores > _THREADS and len(head) == _FEW:
        processes = Processes(tokenizer, dtype, cores := min(cores, _PROCESSES))
        way = _Way(processes.encode, workers=cores, close=processes.close)
    else:
        way = _Way(
            lambda texts: tokenizer.encode_batch_fast(texts, add_special_tokens=False),
            lambda encodings: joined(encodings, dtype),
        )
    batches = itertools.chain(head, source)
    del head
    yield from _pipelined(batches, way)


def usable_cores() -> int:
    """What RAYON_NUM_THREADS says; or the cores that this process may use, and its container may pay for."""
    told = os.environ.get("RAYON_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return cores


def _pipelined(batches: Iterable[list[str]], way: _Way) -> Iterator[tuple[list[str], list[Ids]]]:
    ahead: deque[tuple[list[str], Future[Any]]] = deque()
    pool = ThreadPoolExecutor(way.workers, "encoding")
    try:
        for texts in batches:
            ahead.append((texts, pool.submit(way.work, texts)))
            if len(ahead) >= 2 * way.workers:
                yield _oldest(ahead, way)
        while ahead:
            yield _oldest(ahead, way)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        way.close()
        pool.shutdown()


def _oldest(ahead: deque[tuple[list[str], Future[Any]]], way: _Way) -> tuple[list[str], list[Ids]]:
    """A function of its own, so that the library's large results are gone while the caller works."""
    texts, future = ahead.popleft()
    ids, lengths = way.finish(future.result())
    ends = itertools.accumulate(lengths, initial=0)
    return texts, [ids[begin:end] for begin, end in itertools.pairwise(ends)]
