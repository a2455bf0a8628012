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

import numpy as np
from tokenizers import Tokenizer

from gpt2kit.data.encoding_gigatoken import gigatoken_if_right
from gpt2kit.data.encoding_processes import Ids, Joined, Processes, in_slices

_THREADS = 8
"""Cores up to which threads encode; above, processes.

Any core can encode, but one thread at a time reads and hashes text, and makes arrays of the library's lists. Measured,
in milliseconds a MB: English in byte pairs 180 and 10 (with processes, which make their arrays themselves, 187 and 4),
Chinese poems in byte pairs 130 and 23 (145 and 8), English characters 78 and 28 (103 and 5). Both go on at once, so
Amdahl's law predicts for 4, 8, 16 and 32 cores, in MB/s:

    English, byte pairs    threads 21 42 84 100    processes 21 42 84 168
    poems, byte pairs      threads 26 43 43 43     processes 26 52 105 125
    English, characters    threads 36 36 36 36     processes 37 74 148 200

at best, as the library's threads share locks and memory, too. Up to 8 cores threads do enough, and take neither
processes' start, a fifth of a second, nor their memory, 80 MB each. Predicted only: two cores were there to measure.
"""
_PROCESSES = 32
"""Processes at most: by then the one that reads is what all wait for."""
_FEW = 8
"""Batches that are encoded before processes would have started."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class _Way:
    """How batches are encoded: `work`, called by so many threads; `close` stops what they wait for."""

    work: Callable[[list[str]], Joined]
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
        batches: lists of texts, about a million characters each. Read ahead: 8, or two for each core.
        tokenizer: as `tokenizer.from_json` gives it.
        dtype: holds every id.
        cores: decides between threads and processes, and how many; None: those that this process may use. The library
            itself is not told: its own threads are as many as RAYON_NUM_THREADS says, or as there are cores.
        note: told once why gigatoken is installed but not used.
    """
    source = iter(batches)
    head = list(itertools.islice(source, _FEW))
    cores = cores or usable_cores()
    if fast := gigatoken_if_right(tokenizer, dtype, head, note):
        way = _Way(fast.encode)
    elif cores > _THREADS and len(head) == _FEW:
        processes = Processes(tokenizer, dtype, cores := min(cores, _PROCESSES))
        way = _Way(processes.encode, cores, processes.close)
    else:
        way = _Way(lambda texts: in_slices(tokenizer, texts, dtype), min(cores, _THREADS))
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
    ahead: deque[tuple[list[str], Future[Joined]]] = deque()
    pool = ThreadPoolExecutor(way.workers, "encoding")
    try:
        for texts in batches:
            ahead.append((texts, pool.submit(way.work, texts)))
            if len(ahead) >= 2 * way.workers:
                yield _cut(*ahead.popleft())
        while ahead:
            yield _cut(*ahead.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        way.close()
        pool.shutdown()


def _cut(texts: list[str], joined: Future[Joined]) -> tuple[list[str], list[Ids]]:
    ids, lengths = joined.result()
    ends = itertools.accumulate(lengths, initial=0)
    return texts, [ids[begin:end] for begin, end in itertools.pairwise(ends)]
