"""Read a token store from a URL that fsspec knows, or from a slow disk, through a bounded window on the local disk.

The store there is a copy of a folder that was built locally (`build`). While it is read, only some of its token files
are on the local disk, under `streamed` of the scratch folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import queue
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gpt2kit import files as durable
from gpt2kit.data.build import Corpus
from gpt2kit.data.store import INDEX, Damaged, Index, Shard, TokenStore, mapped
from gpt2kit.errors import DataError
from gpt2kit.text import sources

SCRATCH = Path(".cache/gpt2kit")
"""What streaming keeps on the local disk lies here."""

_AT_ONCE = 4
"""Files fetched at the same time: enough to hide a server's latency."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)
"""Errors of the local machine, which no waiting mends."""

_PAUSES = [0.5, 1.0, 2.0, 4.0]
"""Seconds between the attempts to reach a server."""

_T = TypeVar("_T")


class StreamedStore(TokenStore):
    """A complete store that lies elsewhere, read only.

    Of its token files those are on the local disk that are wanted now or soon (`want`), or, when it is read in order,
    the one that is read, that before and that behind it. Each is compared with its checksum. Processes on one machine
    share them. A file that is deleted while it is mapped stays readable (on Windows it stays on the disk).

    Args:
        place: the URL or folder of the store. FileNotFoundError if none is there.
        scratch: a local folder.
    """

    def __init__(self, place: str, scratch: Path = SCRATCH) -> None:
        self.place, self._scratch = place, scratch
        with sources.reading(place):
            self._filesystem, self._root = sources.filesystem_of(place)
        raw = patiently(f"{place}/{INDEX}", lambda: bytes(self._filesystem.cat_file(f"{self._root}/{INDEX}")))
        self._use(Index.from_json(raw.decode(errors="replace"), f"{place}/{INDEX}"))
        self.folder, release = claimed(scratch / "streamed", self.files_digest[:24])
        weakref.finalize(self, release)
        self._threads = Threads(_AT_ONCE)
        weakref.finalize(self, self._threads.end)
        self._lock = threading.Lock()
        self._held: dict[int, Future[NDArray[np.unsignedinteger]]] = {}
        self._wanted: list[int] = []
        self._documents_ahead: dict[int, Future[bytes]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.place, self._scratch)

    def want(self, numbers: Sequence[int]) -> None:
        """These files are needed now or soon, the most urgent first: fetch them meanwhile, forget all others."""
        if self._wanted != numbers:
            self._wanted = list(numbers)
            self._hold(self._wanted)

    def shard(self, number: int) -> NDArray[np.unsignedinteger]:
        """The tokens of one file; waits for it if it is not here."""
        held = self._held.get(number)
        if held is None or failed(held):
            if number in self._wanted:
                self._hold(self._wanted)
            else:
                self._read_on(number)
        elif number not in self._wanted and number + 1 not in self._held:
            self._read_on(number)
        return self._held[number].result()

    def _read_on(self, number: int) -> None:
        """Hold what reading in order needs: spans cross a file's end, so one may go back."""
        self._wanted = []
        self._hold([n for n in (number, number + 1) if n < len(self.shards)], [number - 1])

    def _hold(self, wanted: list[int], also: Sequence[int] = ()) -> None:
        """Begin to fetch what is wanted and not here; forget all but that, and what may stay also."""
        with self._lock:
            for number in self._held.keys() - {*wanted, *also}:
                self._held.pop(number).cancel()
                self._forget(number)
            for number in wanted:
                if number not in self._held or failed(self._held[number]):
                    self._held[number] = self._threads.begin(functools.partial(self._fetched, number))

    def _forget(self, number: int) -> None:
        for path in (self._path(number), self._path(number).with_suffix(".lock")):
            with contextlib.suppress(OSError):
                path.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / self.shards[number].name

    def _fetched(self, number: int) -> NDArray[np.unsignedinteger]:
        """One token file, fetched unless another process has done so, and mapped."""
        path = self._path(number)
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    self._fetch(number, path)
                with contextlib.suppress(FileNotFoundError):  # another process has just forgotten it
                    found = mapped(path, self.dtype)
                    break
        with self._lock:
            if number not in self._held:  # no longer wanted when it came
                self._forget(number)
        return found

    def _fetch(self, number: int, path: Path) -> None:
        """Fetch a token file and compare it with its checksum; only then it gets its name."""
        shard = self.shards[number]
        # A file that is forgotten and wanted again may be fetched by two threads at once.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            for _ in range(2):
                self._ask(shard.name, lambda source: self._filesystem.get_file(source, str(temporary)))
                sized = temporary.stat().st_size == shard.tokens * self.dtype.itemsize
                if sized and durable.digest(temporary) == shard.sha256:
                    os.replace(temporary, path)
                    return
        finally:
            temporary.unlink(missing_ok=True)
        raise self._damaged(shard.name)

    def read_doc(self, shard: Shard) -> bytes:
        """The file beside a token file, from a thread that is some files ahead."""
        number = int(Path(shard.name).stem)
        for ahead in range(number, min(number + _AT_ONCE, len(self.shards))):
            if ahead not in self._documents_ahead:
                fetch = functools.partial(self._fetched_documents, self.shards[ahead])
                self._documents_ahead[ahead] = self._threads.begin(fetch)
        return self._documents_ahead.pop(number).result()

    def _fetched_documents(self, shard: Shard) -> bytes:
        for _ in range(2):
            raw = self._ask(shard.doc_name, lambda source: bytes(self._filesystem.cat_file(source)))
            if hashlib.sha256(raw).hexdigest() == shard.doc_sha256:
                return raw
        raise self._damaged(shard.doc_name)

    def _ask(self, name: str, get: Callable[[str], _T]) -> _T:
        """What `get` makes of the store's file of this name."""
        try:
            return patiently(f"{self.place}/{name}", lambda: get(f"{self._root}/{name}"))
        except FileNotFoundError:
            raise DataError(
                f"{self.place}/{name}: is missing, but {INDEX} names it. Copy the store's folder there again"
            ) from None

    def _damaged(self, name: str) -> DataError:
        return Damaged(
            f"{self.place}/{name}: its content, fetched twice, does not match its checksum, so the file there is "
            "damaged. Copy it there again"
        )


def open_store(cache_dir: str, corpus: Corpus, what: str, scratch: Path = SCRATCH) -> StreamedStore:
    """Open the store of a corpus that was copied to a URL.

    Args:
        cache_dir: the URL or folder that holds stores, each in a folder named by the content it was made from.
        corpus: the text, and how it becomes tokens.
        what: the text, for people: `train text`.
        scratch: a local folder for the files in the window, and for the hashes of texts.
    """
    key = corpus.key(scratch)
    place = f"{cache_dir.rstrip('/')}/{key}"
    try:
        return StreamedStore(place, scratch)
    except FileNotFoundError:
        raise DataError(
            f"{place}: there is no complete token store of the {what} with these options. Build it on a local disk: "
            "the same command with --data.streaming false --data.cache_dir FOLDER --part 1/1. Then copy the folder "
            f"FOLDER/{key} to {place}"
        ) from None
    except Damaged as error:
        raise DataError(f"{error}. Copy the store's folder there again") from None


def patiently(url: str, act: Callable[[], _T]) -> _T:
    """Do it, again after a pause if a server or the network has failed; then one line about it.

    FileNotFoundError goes through, as does what is wrong with the local disk.
    """
    for pause in [*_PAUSES, None]:
        try:
            return act()
        except (FileNotFoundError, NotImplementedError, MemoryError, DataError):
            raise
        except PermissionError as error:
            raise DataError(f"{url}: may not be read ({error.strerror or error}). Check your credentials") from None
        except Exception as error:  # each kind of server has errors of its own
            if getattr(error, "errno", None) in _FULL:
                raise
            if pause is None:
                why = f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")
                raise DataError(
                    f"{url}: cannot be read, in {len(_PAUSES) + 1} attempts ({why}). Check the URL, the network and "
                    "your credentials, and run the same command again"
                ) from None
            time.sleep(pause)
    raise AssertionError


class Threads:
    """A few threads that do what they are given, in order.

    Not the standard library's pool: the program's end would wait until it has done all that it was given.
    """

    def __init__(self, count: int) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._count = count
        for _ in range(count):
            threading.Thread(target=_work, args=(self._tasks,), daemon=True).start()

    def begin(self, act: Callable[[], _T]) -> Future[_T]:
        """Have it done when a thread is free."""
        future: Future[_T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(act())
                except BaseException as error:
                    future.set_exception(error)

        self._tasks.put(run)
        return future

    def end(self) -> None:
        """Let the threads go when they have done what they were given."""
        for _ in range(self._count):
            self._tasks.put(None)


def _work(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while task := tasks.get():
        task()
        del task  # it knows the store, which could not be forgotten while the next task is waited for


def failed(future: Future[Any]) -> bool:
    """Whether it has ended without a result."""
    return future.done() and (future.cancelled() or future.exception() is not None)


def claimed(root: Path, name: str) -> tuple[Path, Callable[[], None]]:
    """A folder that processes may share, and how to let go of it."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root / name
    with FileLock(root / ".lock"):
        _sweep(root)
        folder.mkdir(exist_ok=True)
        unlock = _locked(folder, shared=True)

    def release() -> None:
        if unlock:
            unlock()
        with contextlib.suppress(Timeout, OSError), FileLock(root / ".lock", timeout=5):
            _sweep(root)

    return folder, release


def _sweep(root: Path) -> None:
    """Delete the folders that no process uses: this one's own at its end, and those of killed ones."""
    for folder in root.glob("*/"):
        if unlock := _locked(folder, shared=False):
            shutil.rmtree(folder, ignore_errors=True)
            unlock()


def _locked(folder: Path, shared: bool) -> Callable[[], None] | None:
    """Lock a folder, and how to unlock it; the system does so when a process dies. None if others have it."""
    try:
        import fcntl
    except ImportError:  # Windows: what is left there stays
        return None
    descriptor = os.open(folder / ".used", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return functools.partial(os.close, descriptor)
