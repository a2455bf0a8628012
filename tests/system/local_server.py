"""A web server whose responses are set by the test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """The responses of the server, and the requests that it received."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    """Content by path, without the query."""
    breaks: list[int] = field(default_factory=list)
    """Number of bytes after which each of the next responses breaks off."""
    commit: str = "0" * 40
    """The commit that a hub names with each file."""
    requests: list[str] = field(default_factory=list)
    """Path of each GET."""


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect early."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path.partition("?")[0])
            body = self.send_head()
            self.wfile.write(body[: state.breaks.pop(0) if state.breaks else len(body)])

        def do_HEAD(self) -> None:
            self.send_head()

        def send_head(self) -> bytes:
            body = state.files.get(self.path.partition("?")[0])
            if body is None:
                self.send_error(404)
                return b""
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"one"')
            self.send_header("X-Repo-Commit", state.commit)
            self.end_headers()
            return body

        def log_message(self, *_: object) -> None:
            pass

    served = _Quiet(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{served.server_address[1]}")
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield state
    finally:
        served.shutdown()
        served.server_close()
