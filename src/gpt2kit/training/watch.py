"""Which rank has died: each one holds a connection to rank 0, and a process that ends, however it ends, loses it.

The system closes the connection of a killed process at once, and that of a machine that is off or out of reach within
half a minute (keepalive, by the kernel: a busy process is not taken for a dead one). Rank 0 tells all others who it
was; of rank 0 each sees it by itself. A rank that waits for the dead one in an exchange that never returns (NCCL's) is
ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 10.0
"""Seconds that a rank gets to notice by itself that another is gone, and to leave in its own way."""
_DEAD = 20
"""Seconds without an answer after which the kernel gives up a connection."""


class Watch:
    """One rank's part in it.

    Args:
        rank: this rank.
        address: host and port where rank 0 listens; of rank 0, what `listening` gave.
        word: a secret that all ranks know, so that nobody else joins.
        last_words: called before the process is ended.
        server: of rank 0, the socket that listens.
    """

    def __init__(
        self,
        rank: int,
        address: tuple[str, int],
        word: str,
        last_words: Callable[[str], None] = lambda why: None,
        server: socket.socket | None = None,
    ) -> None:
        self._word, self._last_words, self._server = word, last_words, server
        self._gone = ""
        self._heard = threading.Event()
        self._left, self._reason = threading.Event(), ""
        self._connection: socket.socket | None = None
        if server is None:
            self._connection = _kept_alive(socket.create_connection(address, timeout=60))
            self._connection.settimeout(None)
            _send(self._connection, {"word": word, "rank": rank, "host": socket.gethostname()})
        self._thread = threading.Thread(target=self._listen if server is None else self._serve, daemon=True)
        self._thread.start()

    def gone(self, seconds: float) -> str:
        """Who has gone, waiting so long for the news; empty if nobody has."""
        self._heard.wait(seconds)
        return self._gone

    def close(self, reason: str = "") -> None:
        """Leave: the others are not told that this rank is gone, unless there is a reason, which they are told."""
        self._reason = reason
        self._left.set()
        with contextlib.suppress(OSError):
            if self._connection is not None:
                _send(self._connection, {"bye": not reason, "reason": reason})
                self._connection.shutdown(socket.SHUT_RDWR)
            elif self._server is not None:
                socket.create_connection(("127.0.0.1", self._server.getsockname()[1]), timeout=1).close()  # wakes it
        if threading.current_thread() is not self._thread:
            self._thread.join(2)

    def _listen(self) -> None:
        """Of other ranks: wait for what rank 0 says, or its end."""
        assert self._connection is not None
        file = self._connection.makefile("rb")
        told: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            while line := file.readline():
                told = json.loads(line)
                if "gone" in told:
                    return self._end(str(told["gone"]))
        if not told.get("bye"):
            self._end("rank 0" + (f" has stopped: {told['reason']}" if told.get("reason") else " has gone"))

    def _serve(self) -> None:
        """Of rank 0: take the others' connections and tell all of the first that ends."""
        assert self._server is not None
        _allow_many_files()
        selector = selectors.DefaultSelector()
        selector.register(self._server, selectors.EVENT_READ)
        others: dict[socket.socket, tuple[str, bytes]] = {}  # who it is, and what it has said since
        news = ""
        while not self._left.is_set() and not news:
            for key, _ in selector.select(timeout=5):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is self._server:
                    with contextlib.suppress(OSError):
                        new = _kept_alive(self._server.accept()[0])
                        selector.register(new, selectors.EVENT_READ)
                        others[new] = ("", b"")
                    continue
                who, said = others[connection]
                try:
                    received = connection.recv(1 << 16)
                except OSError:
                    received = b""
                who, said, leaving = self._understood(who, said + received)
                others[connection] = (who, said)
                if leaving is None and received:
                    continue
                selector.unregister(connection)
                connection.close()
                del others[connection]
                if who and leaving != "":
                    news = f"{who} has stopped: {leaving}" if leaving else f"{who} has gone"
        goodbye: dict[str, object] = {"gone": news} if news else {"bye": not self._reason, "reason": self._reason}
        for connection in others:
            with contextlib.suppress(OSError):
                _send(connection, goodbye)
                connection.close()
        self._server.close()
        if news:
            self._end(news)

    def _understood(self, who: str, said: bytes) -> tuple[str, bytes, str | None]:
        """Who speaks, what is still unread, and why it leaves: empty if in peace, None if it has not said."""
        leaving = None
        *lines, rest = said.split(b"\n")
        with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
            for line in lines:
                told = json.loads(line)
                if told.get("word") == self._word:
                    who = f"rank {int(told['rank'])} on {str(told['host'])[:100]}"
                elif who and "bye" in told:
                    leaving = str(told["reason"])[:500]
        return who, rest[-4096:], leaving

    def _end(self, who: str) -> None:
        """Somebody is gone: the main thread has a moment to notice, then the process is ended."""
        if self._left.is_set():
            return
        self._gone = who
        self._heard.set()
        if not self._left.wait(PATIENCE):
            with contextlib.suppress(Exception):
                self._last_words(who)
            print(f"error: {message(who)}", file=sys.stderr, flush=True)
            os._exit(5)


def message(who: str) -> str:
    """The line that a rank ends with when another is gone."""
    return f"{who}, so this run cannot go on. See that rank's own words, then go on with --ckpt_path last"


def listening() -> socket.socket:
    """The socket of rank 0."""
    return socket.create_server(("", 0), backlog=4096)


def _send(connection: socket.socket, told: dict[str, object]) -> None:
    connection.sendall(json.dumps(told).encode() + b"\n")


def _kept_alive(connection: socket.socket) -> socket.socket:
    """Have the kernel find out when the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": _DEAD * 1000}
    for name, value in wanted.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _allow_many_files() -> None:
    """A connection is a file to the system, and 1,024 of them are its usual limit."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
