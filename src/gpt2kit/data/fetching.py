"""What fetching from elsewhere needs: patience with a network, a few threads, folders that processes share."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from gpt2kit.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)
"""Errors of the local machine, which no waiting mends."""

_PAUSES = [0.5, 1.0, 2.0, 4.0]
"""Seconds between the attempts to reach a server."""

_T = TypeVar("_T")


def patiently(url: str, act: Callable[[], _T], what: str = "read") -> _T:
    """Do it, again after a pause if a server or the network has failed; then one line about it.

    FileNotFoundError goes through, as does what is wrong with the local disk.
    """
    for pause in [*_PAUSES, None]:
        try:
            return act()
        except (FileNotFoundError, NotImplementedError, MemoryError, DataError):
            raise
        except PermissionError as error:
            raise DataError(f"{url}: may not be {what} ({error.strerror or error}). Check your credentials") from None
        except Exception as error:  # each kind of server has errors of its own
            if getattr(error, "errno", None) in FULL:
                raise
            if pause is None:
                why = f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")
                raise DataError(
                    f"{url}: cannot be {what}, in {len(_PAUSES) + 1} attempts ({why}). Check the URL, the network and "
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
