"""Read a token store from a URL that fsspec supports, or from a slow disk, through a bounded window on the local disk.

The remote store is a copy of a folder that was built locally (`build`). Only a few of its shards are on the local disk
at a time, in the folder `streamed` of the scratch folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
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
from gpt2kit.data.index import INDEX, PIECE, Damaged, Index, Shard
from gpt2kit.data.store import TokenFile, TokenStore, open_tokens
from gpt2kit.errors import DataError
from gpt2kit.text import sources

# The local folder for the shards in the window.
SCRATCH = Path(".cache/gpt2kit")
# Seconds between the attempts to reach a server.
RETRY_PAUSES = [0.5, 1.0, 2.0, 4.0]

_MAX_INDEX = 1 << 26  # bytes: that of 200,000 shards
# Files that are fetched at the same time: enough to hide a server's latency.
_CONCURRENCY = 4

_T = TypeVar("_T")


class StreamedStore(TokenStore):
    """A complete store at a URL, read-only.

    The local disk holds the shards of the last `prefetch` or, if the store is read in order, the current shard and
    those before and after it. Each is compared with its checksum. Processes on one machine share them. A shard that is
    deleted while it is open stays readable (on Windows it stays on the disk).

    Args:
        location: the URL or folder of the store. Raises FileNotFoundError if it has no index.
        scratch: a local folder.
    """

    def __init__(self, location: str, scratch: Path = SCRATCH) -> None:
        self.location, self._scratch = location, scratch
        with sources.translate_errors(location):
            self._filesystem, self._root = sources.filesystem_of(location)
        raw = retry(f"{location}/{INDEX}", lambda: bytes(self._filesystem.cat_file(self._locate(INDEX, _MAX_INDEX))))
        self._use(Index.from_json(raw.decode(errors="replace"), f"{location}/{INDEX}"))
        self.folder, release = claim_folder(scratch / "streamed", self.files_digest[:24])
        weakref.finalize(self, release)
        self._slots = threading.Semaphore(_CONCURRENCY)
        self._lock = threading.Lock()
        self._fetches: dict[int, Future[NDArray[np.unsignedinteger] | TokenFile]] = {}
        self._window: list[int] = []  # the shards of the last `prefetch`
        self._doc_fetches: dict[int, Future[bytes]] = {}

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Fetch these shards in the background, the most urgent one first, and delete all others."""
        if self._window != numbers:
            self._window = list(numbers)
            self._keep(self._window)

    def shard(self, number: int) -> NDArray[np.unsignedinteger] | TokenFile:
        """Return the tokens of one shard; wait until it is fetched."""
        fetch = self._fetches.get(number)
        is_missing = fetch is None or has_failed(fetch)
        if number in self._window:
            if is_missing:
                self._keep(self._window)
        elif is_missing or number + 1 not in self._fetches:
            # Reading in order. A span may cross the end of a shard, so the previous shard may be needed again.
            self._window = []
            self._keep([n for n in (number, number + 1) if n < len(self.shards)], spare=number - 1)
        return self._fetches[number].result()

    def _keep(self, numbers: list[int], spare: int = -1) -> None:
        """Start to fetch those of these shards that are missing; delete all others except `spare`."""
        with self._lock:
            for number in self._fetches.keys() - {*numbers, spare}:
                self._fetches.pop(number).cancel()
                self._delete(number)
            for number in numbers:
                if number not in self._fetches or has_failed(self._fetches[number]):
                    self._fetches[number] = self._start(functools.partial(self._fetch_shard, number))

    def _start(self, act: Callable[[], _T]) -> Future[_T]:
        """Run `act` in a thread as soon as a slot is free.

        The threads are daemons. A thread pool would finish all queued fetches before the program could end.
        """
        future: Future[_T] = Future()

        def run() -> None:
            with self._slots:
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(act())
                    except BaseException as error:
                        future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def _path(self, number: int) -> Path:
        return self.folder / self.shards[number].name

    def _delete(self, number: int) -> None:
        for path in (self._path(number), self._path(number).with_suffix(".lock")):
            with contextlib.suppress(OSError):
                path.unlink()

    def _fetch_shard(self, number: int) -> NDArray[np.unsignedinteger] | TokenFile:
        """Fetch one shard, unless another process has fetched it, and open it."""
        path = self._path(number)
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    self._download(self.shards[number], path)
                with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                    tokens = open_tokens(self.folder, self.shards[number], self.dtype)
                    break
        with self._lock:
            if number not in self._fetches:  # the shard is no longer needed
                self._delete(number)
        return tokens

    def _download(self, shard: Shard, path: Path) -> None:
        """Download a token file to a temporary name, compare its checksum, and rename it."""
        # Two threads may fetch a shard at once if it is deleted and needed again.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")

        def fetch(url: str) -> Path:
            self._filesystem.get_file(url, str(temporary))
            return temporary

        try:
            size = shard.tokens * self.dtype.itemsize
            self._fetch_verified(shard.name, size, shard.sha256, fetch, durable.digest)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def read_doc(self, shard: Shard) -> bytes:
        """Return the content of a shard's .doc file; fetch those of the next shards in the background."""
        number = int(Path(shard.name).stem)
        for ahead in range(number, min(number + _CONCURRENCY, len(self.shards))):
            if ahead not in self._doc_fetches:
                self._doc_fetches[ahead] = self._start(functools.partial(self._fetch_doc, self.shards[ahead]))
        return self._doc_fetches.pop(number).result()

    def _fetch_doc(self, shard: Shard) -> bytes:
        def fetch(url: str) -> bytes:
            return bytes(self._filesystem.cat_file(url))

        def digest(raw: bytes) -> str:
            return hashlib.sha256(raw).hexdigest()

        return self._fetch_verified(shard.doc_name, shard.pieces * PIECE.itemsize, shard.doc_sha256, fetch, digest)

    def _locate(self, name: str, max_bytes: int) -> str:
        """Return the address of a file; raise Damaged if the server says that it is larger than it may be."""
        address = f"{self._root}/{name}"
        size = self._filesystem.info(address).get("size")
        if isinstance(size, int) and size > max_bytes:
            raise Damaged(f"{self.location}/{name}: {size:,} bytes, more than the {max_bytes:,} that it may have")
        return address

    def _fetch_verified(
        self, name: str, size: int, sha256: str, fetch: Callable[[str], _T], digest: Callable[[_T], str]
    ) -> _T:
        """Fetch a file of the store; fetch it a second time if its content does not match its checksum."""
        where = f"{self.location}/{name}"
        try:
            for _ in range(2):
                content = retry(where, lambda: fetch(self._locate(name, size)))
                if digest(content) == sha256:
                    return content
        except FileNotFoundError:
            raise DataError(f"{where}: is missing, but {INDEX} names it. Copy the store's folder there again") from None
        raise Damaged(
            f"{where}: its content, fetched twice, does not match its checksum, so the remote file is damaged. Copy it "
            "there again"
        )


def open_store(cache_dir: str, corpus: Corpus, what: str, scratch: Path = SCRATCH) -> StreamedStore:
    """Open the store of a corpus that was copied to a URL.

    Args:
        cache_dir: the URL or folder that holds stores.
        corpus: the text, and how it is tokenized.
        what: names the text in messages, such as `train text`.
        scratch: a local folder for the shards in the window, and for the hashes of the text's files.
    """
    key = corpus.key(corpus.digests(scratch))
    location = f"{cache_dir.rstrip('/')}/{key}"
    try:
        return StreamedStore(location, scratch)
    except FileNotFoundError:
        raise DataError(
            f"{location}: there is no complete token store of the {what} with these options. Build it on a local disk "
            "with the same command and --data.streaming false --data.cache_dir FOLDER --part 1/1. Then copy the folder "
            f"FOLDER/{key} to {location}"
        ) from None
    except Damaged as error:
        raise DataError(f"{error}. Copy the store's folder there again") from None


def retry(url: str, act: Callable[[], _T]) -> _T:
    """Call `act`; call it again after a pause if a server or the network fails.

    The last failure is raised as a DataError. FileNotFoundError and errors of the local disk are raised unchanged.
    """
    for pause in [*RETRY_PAUSES, None]:
        try:
            return act()
        except (FileNotFoundError, NotImplementedError, MemoryError, DataError):
            raise
        except PermissionError as error:
            raise DataError(
                f"{url}: no permission to read it ({error.strerror or error}). Check your credentials"
            ) from None
        except Exception as error:  # each kind of server has its own errors
            if getattr(error, "errno", None) in sources.LOCAL_ERRORS:
                raise
            if pause is None:
                reason = f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")
                raise DataError(
                    f"{url}: cannot be read after {len(RETRY_PAUSES) + 1} attempts ({reason}). Check the URL, the "
                    "network and your credentials, and run the same command again"
                ) from None
            time.sleep(pause)
    raise AssertionError


def has_failed(future: Future[Any]) -> bool:
    """Return whether a future has ended without a result."""
    return future.done() and (future.cancelled() or future.exception() is not None)


def claim_folder(root: Path, name: str) -> tuple[Path, Callable[[], None]]:
    """Return a folder that several processes may use, and a function that releases it."""
    root = root.absolute()  # it may be released in another working directory
    root.mkdir(parents=True, exist_ok=True)
    folder = root / name
    with FileLock(root / ".lock"):
        _delete_unused(root)
        folder.mkdir(exist_ok=True)
        unlock = _lock_folder(folder, shared=True)

    def release() -> None:
        if unlock:
            unlock()
        with contextlib.suppress(Timeout, OSError), FileLock(root / ".lock", timeout=5):
            _delete_unused(root)

    return folder, release


def _delete_unused(root: Path) -> None:
    """Delete the folders that no process uses, including those of killed processes."""
    for folder in root.glob("*/"):
        if unlock := _lock_folder(folder, shared=False):
            shutil.rmtree(folder, ignore_errors=True)
            unlock()


def _lock_folder(folder: Path, shared: bool) -> Callable[[], None] | None:
    """Lock a folder and return the function that unlocks it, or None if another process holds a lock on it.

    The system drops the lock of a process that dies.
    """
    try:
        import fcntl
    except ImportError:  # on Windows the files of a killed process are kept
        return None
    descriptor = os.open(folder / ".used", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return functools.partial(os.close, descriptor)
