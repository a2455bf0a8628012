"""A web server for tests that does what servers do: breaks off, forgets how to go on, changes its files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """What a test tells the server to do, and what it was asked."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers breaks off."""
    codes: list[int] = field(default_factory=list)
    """Status codes of the next answers, instead of what was asked for."""
    ranges: bool = True
    tag: str | None = '"one"'
    length: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append((self.path, asked))
            body = state.files.get(self.path)
            code = state.codes.pop(0) if state.codes else 404 if body is None else 200
            if code != 200 or body is None:
                self.send_error(code)
                return
            begin = 0
            if asked and state.ranges and self.headers.get("If-Range") in (None, state.tag):
                begin = int(asked.removeprefix("bytes=").removesuffix("-"))
                if begin >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if state.tag is not None:
                self.send_header("ETag", state.tag)
            if state.length:
                self.send_header("Content-Length", str(len(body) - begin))
            self.end_headers()
            self.wfile.write(body[begin : begin + state.breaks.pop(0) if state.breaks else len(body)])

        def log_message(self, *_: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{served.server_address[1]}")
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield state
    finally:
        served.shutdown()
        served.server_close()
