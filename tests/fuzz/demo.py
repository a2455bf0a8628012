"""The web demo as one process, and a client that sends it the requests of a case."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from cases import Case
from fixture import RUN
from sandbox import end_with_parent

from gpt2kit import __main__


class Server:
    """A process that serves the run of a fixture; it starts with the first request."""

    def __init__(self, fixture: Path, log: Path) -> None:
        self._fixture, self._log, self._pid = fixture, log, 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def start(self) -> None:
        """Start the server, unless it runs."""
        with contextlib.suppress(ChildProcessError):
            if self._pid and os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                return
        self._pid = os.fork()
        if self._pid == 0:
            os.setsid()
            end_with_parent()
            os.chdir(self._fixture)
            tempfile.tempdir = str(self._log.parent)  # the server is killed, and leaves its files
            for number in (1, 2):
                os.dup2(os.open(self._log, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
            sys.argv = ["gpt2kit", "demo"]
            with contextlib.suppress(BaseException):
                __main__.main(["demo", RUN, "--port", str(self._port), "--allow_download"])
            os._exit(1)
        end = time.monotonic() + 300
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            time.sleep(0.2)
        raise SystemExit(f"the demo does not start: {self._log.read_text()}")

    def stop(self) -> None:
        """End the server."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)

    def talk(self, case: Case) -> None:
        """Send the requests of a case. Print what the server logs; exit with 1 if an answer is wrong."""
        begin = self._log.stat().st_size
        for _, _, request in case.changes:
            answer = self._exchange(request.encode("latin-1"), 3)  # it may wait for the rest of a request
            if re.match(rb"HTTP/1.1 5", answer):
                self._fail(f"the answer is {answer[:40]!r}")
        answer = self._exchange(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 60)
        if not answer.startswith(b"HTTP/1.1 200"):
            self._fail(f"the page does not answer any more: {answer[:40]!r}")
        with open(self._log, encoding="utf-8", errors="replace") as log:
            log.seek(begin)
            sys.stderr.write(log.read())

    def _exchange(self, request: bytes, seconds: float) -> bytes:
        """Return the start of the answer to a request; empty if nothing arrives within this time."""
        address = ("127.0.0.1", self._port)
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=seconds) as client:
            client.sendall(request)
            return client.recv(1 << 16)
        return b""

    @staticmethod
    def _fail(problem: str) -> None:
        sys.stderr.write(problem)
        sys.exit(1)
