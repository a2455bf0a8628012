"""Processes that encode: for many cores, of which the library's threads cannot keep all busy."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.errors import MachineError
from gpt2kit.tokenization import tokenizer as tokenizers

Ids = NDArray[np.unsignedinteger]
Joined = tuple[Ids, list[int]]
"""The ids of all texts of a batch in one array, and how many each text has."""


_SLICE = 1 << 16
"""Characters encoded by one call: each takes 100 to 250 bytes meanwhile, and much memory is slow memory."""
_CHILD = "import sys; sys.path[:] = sys.argv[1:]; from gpt2kit.data import encoding_processes; "
_CHILD += "encoding_processes.serve()"

_MEND = "Free some memory, or set RAYON_NUM_THREADS to fewer processes, and run the same command again"


def _joined(encodings: list[Any], dtype: np.dtype[np.unsignedinteger]) -> Joined:
    """The library's results as an array, in the cheapest of the ways that were measured."""
    lengths = [len(encoding) for encoding in encodings]
    ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
    return np.fromiter(ids, dtype, sum(lengths)), lengths


def in_slices(tokenizer: Tokenizer, texts: list[str], dtype: np.dtype[np.unsignedinteger]) -> Joined:
    """Encode a batch a little at a time: the library's results take a hundred times the memory of the ids."""
    each = max(1, len(texts) * _SLICE // max(1, sum(map(len, texts))))
    slices = [texts[at : at + each] for at in range(0, len(texts), each)]
    found = [_joined(tokenizer.encode_batch_fast(some, add_special_tokens=False), dtype) for some in slices]
    ids = [np.empty(0, dtype), *(ids for ids, _ in found)]
    return np.concatenate(ids), [length for _, lengths in found for length in lengths]


class Processes:
    """So many of them, started at once. As many threads may call `encode` at a time; `close` ends all at any time."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[np.unsignedinteger], count: int) -> None:
        setup = (tokenizers.to_json(tokenizer), dtype.str)
        self._children: list[_Child] = []
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        try:
            for _ in range(count):
                self._children.append(_Child(setup))
                self._free.put(self._children[-1])
        except BaseException:
            self.close()
            raise

    def encode(self, texts: list[str]) -> Joined:
        """Hand the texts to a process that is free, and wait for their ids."""
        child = self._free.get()
        try:
            return child.encode(texts)
        finally:
            self._free.put(child)

    def close(self) -> None:
        """Leave nothing of them behind."""
        for child in self._children:
            child.process.kill()
        for child in self._children:
            child.end()


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
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was still to be sent
                pipe.close()  # type: ignore[union-attr]


def serve() -> None:
    """The body of an encoding process: batches from the standard input, their ids to the standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not stand between the ids
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            setup, texts = pickle.load(sys.stdin.buffer)
            if setup:
                tokenizer, dtype = tokenizers.from_json(setup[0], "encoding"), np.dtype(setup[1])
            try:
                found: object = in_slices(tokenizer, texts, dtype)
            except Exception as error:  # whatever it is, the parent raises it
                found = error
            pickle.dump(found, replies, 5)
            replies.flush()
