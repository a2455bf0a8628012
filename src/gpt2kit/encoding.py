"""Batches of text become ids: always those that the tokenizer itself gives, in order, as fast as the machine can.

There are three ways: `gigatoken`, if it is installed and right; the library's own threads; and, with many cores,
processes. Each encodes in the background while the caller reads on and uses what is done, and none reads far ahead, so
the memory does not depend on the corpus.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit import tokenizer as tokenizers
from gpt2kit.encoding_gigatoken import gigatoken_if_right
from gpt2kit.errors import MachineError

Ids = NDArray[np.unsignedinteger]
Joined = tuple[Ids, list[int]]
"""The ids of all texts of a batch in one array, and how many each text has."""

_THREADS = 8
_PROCESSES = 32
"""Processes at most: by then the one that reads is what all wait for."""
_FEW = 8
"""Batches that are encoded before processes would have started."""
_SLICE = 1 << 16
"""Characters that a process encodes at once; each takes 100 to 250 bytes meanwhile."""
_CHILD = "import sys; sys.path[:] = sys.argv[1:]; from gpt2kit import encoding; encoding.serve()"
_MEND = "Free some memory, or set RAYON_NUM_THREADS to fewer processes, and run the same command again"


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
        way = _by_processes(tokenizer, dtype, min(cores, _PROCESSES))
    else:
        way = _by_threads(tokenizer, dtype)
    batches = itertools.chain(head, source)
    del head
    yield from _pipelined(batches, way)


def usable_cores() -> int:
    """What RAYON_NUM_THREADS says, or the cores that this process may use."""
    told = os.environ.get("RAYON_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _by_threads(tokenizer: Tokenizer, dtype: np.dtype[np.unsignedinteger]) -> _Way:
    return _Way(
        lambda texts: tokenizer.encode_batch_fast(texts, add_special_tokens=False),
        lambda encodings: _joined(encodings, dtype),
    )


def _joined(encodings: list[Any], dtype: np.dtype[np.unsignedinteger]) -> Joined:
    """The library's results as an array, in the cheapest of the ways that were measured."""
    lengths = [len(encoding) for encoding in encodings]
    ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
    return np.fromiter(ids, dtype, sum(lengths)), lengths


def _by_processes(tokenizer: Tokenizer, dtype: np.dtype[np.unsignedinteger], count: int) -> _Way:
    """One thread for each process: it hands a batch to a process that is free, and waits for the ids."""
    setup = (tokenizers.to_json(tokenizer), dtype.str)
    children: list[_Child] = []
    free: queue.SimpleQueue[_Child] = queue.SimpleQueue()

    def close() -> None:
        for child in children:
            child.process.kill()
        for child in children:
            child.end()

    def work(texts: list[str]) -> Joined:
        child = free.get()
        try:
            return child.encode(texts)
        finally:
            free.put(child)

    try:
        for _ in range(count):
            children.append(_Child(setup))
            free.put(children[-1])
    except BaseException:
        close()
        raise
    return _Way(work, workers=count, close=close)


class _Child:
    """A process that encodes. It ends when its input does, so it outlives no parent, however that one ends.

    Not one of `multiprocessing`: those import the program's main script again, and with it torch; they need a guard
    in that script; and they stay behind when the program is killed.
    """

    def __init__(self, setup: tuple[str, str]) -> None:
        single = dict.fromkeys(["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1")
        self._setup: tuple[str, str] | None = setup
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **single, "TOKENIZERS_PARALLELISM": "false"},
                start_new_session=True,  # Ctrl-C is for the parent, which ends this process
            )
        except OSError as error:
            raise MachineError(f"encoding: cannot start a process ({error}). {_MEND}") from None

    def encode(self, texts: list[str]) -> Joined:
        """Hand the texts over and wait for their ids."""
        assert self.process.stdin and self.process.stdout
        try:
            pickle.dump((self._setup, [str(text) for text in texts]), self.process.stdin, 5)
            self.process.stdin.flush()
            found: Joined | Exception = pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            code = self.process.wait()
            why = f"killed by signal {-code}, most likely for want of memory" if code < 0 else f"exit code {code}"
            raise MachineError(f"encoding: one of its processes has ended ({why}). {_MEND}") from None
        self._setup = None
        if isinstance(found, Exception):
            raise found
        return found

    def end(self) -> None:
        """Leave nothing of a killed process behind."""
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was still to be sent
                pipe.close()  # type: ignore[union-attr]


def serve() -> None:
    """The body of an encoding process: batches from the standard input, their ids to the standard output."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not stand between the ids
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            setup, texts = pickle.load(sys.stdin.buffer)
            if setup:
                tokenizer, dtype = tokenizers.from_json(setup[0], "encoding"), np.dtype(setup[1])
            try:
                found: object = _in_slices(tokenizer, texts, dtype)
            except Exception as error:  # whatever it is, the parent raises it
                found = error
            pickle.dump(found, replies, 5)
            replies.flush()


def _in_slices(tokenizer: Tokenizer, texts: list[str], dtype: np.dtype[np.unsignedinteger]) -> Joined:
    each = max(1, len(texts) * _SLICE // max(1, sum(map(len, texts))))
    slices = [texts[at : at + each] for at in range(0, len(texts), each)]
    found = [_joined(tokenizer.encode_batch_fast(some, add_special_tokens=False), dtype) for some in slices]
    ids = [np.empty(0, dtype), *(ids for ids, _ in found)]
    return np.concatenate(ids), [length for _, lengths in found for length in lengths]
