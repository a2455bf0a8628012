"""The HTTP server of the web demo: uvicorn, without connections that wait forever."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds until the head of a request has arrived, and for which a client may stop reading its response.
HEAD_TIMEOUT = 10.0
READ_TIMEOUT = 60.0
_MAX_CONNECTIONS = 500


class Connection(H11Protocol):
    """A connection that is closed if it waits too long for its client. uvicorn has a limit between requests only."""

    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, transport.abort)
        if len(self.connections) > max_connections():
            waiting = [(other._head_timer.when(), id(other), other) for other in self.connections if other._head_timer]
            min(waiting)[2].transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_serving = self.cycle is not None and not self.cycle.response_complete
        if is_serving and self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None
        elif not is_serving and self._head_timer is None:  # a part of the next head
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_timer:
            self._read_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in filter(None, (self._head_timer, self._read_timer)):
            timer.cancel()
        super().connection_lost(exc)


def max_connections() -> int:
    """Return the number of connections for which there are files: half of this process's limit."""
    try:
        import resource
    except ImportError:  # Windows
        return _MAX_CONNECTIONS
    return int(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, _MAX_CONNECTIONS))


def make_server(application: Any, host: str, port: int) -> uvicorn.Server:
    """Return a server for an application."""
    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        http=Connection,
        ws="none",
        log_level="error",
        proxy_headers=False,  # a client could claim any address, and try passwords without a limit
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)
