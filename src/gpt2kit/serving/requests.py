"""Requests of the web demo in progress: whose client is connected, whose turn it is, and work in threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import TypeVar

from gpt2kit.errors import UserError, first_line

Item = TypeVar("Item")

# Seconds from a request to the connection on which its client reads the result. After them the request is dropped.
_CONNECT_TIMEOUT = 10.0
# Seconds after which no result of a request is left.
_FORGET_TIMEOUT = 120.0
# Seconds without a new token after which a request ends with an error.
_STALL_TIMEOUT = 120.0
_POLL_INTERVAL = 0.1


class Clients:
    """The sessions whose client is connected. Gradio's page sends a request, then it opens a stream of the results."""

    def __init__(self, connect_timeout: float = _CONNECT_TIMEOUT) -> None:
        self._connect_timeout = connect_timeout
        self._streams: Counter[str] = Counter()
        self._requests: dict[str, float] = {}  # the time of the last request of each session, the oldest first

    def request(self, session: str) -> None:
        """Record a request, whose stream may not be open yet."""
        now = time.monotonic()
        self._requests.pop(session, None)
        self._requests[session] = now
        while now - self._requests[oldest := next(iter(self._requests))] > _FORGET_TIMEOUT:
            del self._requests[oldest]

    @contextlib.contextmanager
    def stream(self, session: str) -> Iterator[None]:
        """Count an open stream."""
        opened = time.monotonic()
        self._streams[session] += 1
        try:
            yield
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                del self._streams[session]
            if self._requests.get(session, opened) <= opened:  # a later request may open the next stream
                self._requests.pop(session, None)

    def is_present(self, session: str) -> bool:
        """Return whether the client of a session is connected, or may still connect."""
        age = time.monotonic() - self._requests.get(session, -self._connect_timeout)
        return session in self._streams or age < self._connect_timeout

    def is_known(self, session: str) -> bool:
        """Return whether a session has sent a request whose result it may still read."""
        return session in self._streams or session in self._requests


class Turns:
    """Lets `count` requests run at a time, in the order in which they came."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._queue: list[object] = []  # the first `count` of them run

    async def wait(self, request: object, is_wanted: Callable[[], bool]) -> AsyncIterator[int]:
        """Wait until a request may run, or is no longer wanted; yield the number of requests before it."""
        while (before := self._queue.index(request) - self._count + 1) > 0 and is_wanted():
            yield before
            await asyncio.sleep(_POLL_INTERVAL)

    @contextlib.contextmanager
    def queued(self) -> Iterator[object]:
        """Add a request to the queue; it leaves the queue at the end of the block."""
        request = object()
        self._queue.append(request)
        try:
            yield request
        finally:
            self._queue.remove(request)


async def in_thread(
    items: Iterator[Item],
    is_wanted: Callable[[], bool],
    stalled: list[threading.Thread],
    stall_timeout: float = _STALL_TIMEOUT,
) -> AsyncGenerator[Item]:
    """Iterate in a thread, until the items end or are no longer wanted. No item may be None.

    If no item comes for `stall_timeout` seconds, the thread is added to `stalled`, because it cannot be stopped.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Item | BaseException | None] = asyncio.Queue()
    is_closed = threading.Event()

    def put(value: Item | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the server has stopped
            loop.call_soon_threadsafe(queue.put_nowait, value)

    def run() -> None:
        try:
            for item in items:
                if is_closed.is_set() or not is_wanted():
                    break
                put(item)
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    last = time.monotonic()
    try:
        while is_wanted():
            try:
                value = await asyncio.wait_for(queue.get(), 1)
            except TimeoutError:
                if time.monotonic() - last < stall_timeout:
                    continue
                stalled.append(thread)
                raise UserError(f"the model did not respond for {stall_timeout:.0f} s. Select another one") from None
            last = time.monotonic()
            if value is None:
                return
            if isinstance(value, Exception):
                raise value
            if isinstance(value, BaseException):  # pyo3's PanicException, which would end the server's task
                raise RuntimeError(f"{type(value).__name__}: {first_line(value)}")
            yield value
    finally:
        is_closed.set()
