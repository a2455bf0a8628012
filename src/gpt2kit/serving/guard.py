"""What the web demo accepts: middleware in front of Gradio, which opens only the routes that the page needs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from gpt2kit.errors import first_line
from gpt2kit.files import parse_json
from gpt2kit.serving.download import ROUTE as DOWNLOAD
from gpt2kit.serving.requests import Clients

logger = logging.getLogger(__name__)

# Maximum number of bytes in a request body, and of seconds until it has arrived.
_MAX_BODY = 1 << 18
BODY_TIMEOUT = 10.0
# Wrong passwords per client and number of seconds; then it must wait.
_MAX_ATTEMPTS = 10
_ATTEMPTS_INTERVAL = 60.0
# The routes of Gradio that the page needs. All others are closed: uploads, files, other servers, its API.
_JOIN, _STREAM, _LOGIN = "/gradio_api/queue/join", "/gradio_api/queue/data", "/login"
_PUBLIC = re.compile(r"/|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static)/.*", re.DOTALL)
# The fields of the requests that send an event or end another request, with their types.
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    _JOIN: {"data": (list,), "fn_index": (int,), "trigger_id": (int, type(None)), "session_hash": (str,)},
    "/gradio_api/cancel": {"session_hash": (str,), "fn_index": (int,), "event_id": (str,)},
    "/gradio_api/reset": {"event_id": (str,)},
}
_ROUTES = {"GET": (_STREAM, "/logout"), "POST": (_LOGIN, *_FIELDS)}
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of a session or an event
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'none'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors "
)


@dataclass
class Guard:
    """Middleware that refuses what the page does not send, and adds security headers."""

    app: Any
    clients: Clients
    inputs: Mapping[int, int]
    """The number of values that each event of the page sends."""
    has_password: bool
    allow_frame: bool
    allow_download: bool
    _attempts: dict[str, list[float]] = field(default_factory=dict)
    """The times of each client's wrong passwords."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            response = _Response(send, self.allow_frame)
            try:
                await self._answer(scope, receive, response)
            except Exception as error:
                # One line, because any client could fill the log with tracebacks.
                logger.warning(f"{scope['method']} {scope['path'][:80]!r}: {type(error).__name__}: {first_line(error)}")
                await response.finish()

    async def _answer(self, scope: Any, receive: Any, response: _Response) -> None:
        headers, method, path = dict(scope["headers"]), scope["method"], scope["path"]
        is_public = method in ("GET", "HEAD") and _PUBLIC.fullmatch(path)
        length = headers.get(b"content-length", b"" if method == "POST" else b"0")  # a chunked body has no length
        is_download = self.allow_download and method == "GET" and path == DOWNLOAD
        if not is_public and not is_download and path not in _ROUTES.get(method, ()):
            await response.refuse(404, "not found")
        elif path != "/" and is_cross_site(headers):
            await response.refuse(403, "refused: sent by a page of another site")
        elif len(length) > 9 or not length.isdigit() or int(length) > (_MAX_BODY if method == "POST" else 0):
            await response.refuse(413, "too large, or without a length")
        elif self.has_password and not is_public and path != _LOGIN and not await self._is_logged_in(scope):
            await response.refuse(401, "log in first")
        else:
            await self._forward(scope, receive, response)

    async def _forward(self, scope: Any, receive: Any, response: _Response) -> None:
        path = scope["path"]
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[-1]
        if path == _STREAM:
            if not self.clients.is_known(session):  # there is nothing to stream
                await response.refuse(404, "no request of this session")
                return
            with self.clients.stream(session):
                await self.app(scope, receive, response.send)
            return
        try:
            body = await asyncio.wait_for(read_body(receive), BODY_TIMEOUT)
        except TimeoutError:
            await response.refuse(408, "the body did not arrive in time")
            return
        if body is None:  # the client has left
            return
        if path in _FIELDS:
            fields = parse_fields(body, _FIELDS[path])
            if fields is None or (path == _JOIN and not self._is_event(fields)):
                await response.refuse(400, "not an event of this page")
                return
            if path == _JOIN:
                self.clients.request(fields["session_hash"])
            body = json.dumps(fields).encode()
            others = [header for header in scope["headers"] if header[0] not in (b"content-length", b"content-type")]
            new = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
            scope = {**scope, "headers": [*others, *new]}
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Any:
            return messages.pop() if messages else await receive()

        if path == _LOGIN:
            await self._log_in(scope, receive_again, response)
        else:
            await self.app(scope, receive_again, response.send)

    def _is_event(self, fields: Mapping[str, Any]) -> bool:
        """Return whether the page has this event, with this number of plain values."""
        is_plain = all(value is None or isinstance(value, str | int | float) for value in fields["data"])
        return is_plain and len(fields["data"]) == self.inputs.get(fields["fn_index"])

    async def _is_logged_in(self, scope: Any) -> bool:
        """Ask Gradio whether a request has the cookie of a user."""
        status = 0

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        path = "/gradio_api/login_check"
        headers = [header for header in scope["headers"] if header[0] in (b"cookie", b"host")]
        check = {**scope, "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
        await self.app({**check, "headers": headers}, receive, send)
        return status == 200

    async def _log_in(self, scope: Any, receive: Any, response: _Response) -> None:
        """Forward a login, unless there were too many wrong passwords. Each client has a limit of its own."""
        client, now = (scope["client"] or ("",))[0], time.monotonic()
        self._attempts = {
            name: recent
            for name, times in self._attempts.items()
            if (recent := [time for time in times if now - time < _ATTEMPTS_INTERVAL])
        }
        attempts = self._attempts.setdefault(client, [])
        if len(attempts) >= _MAX_ATTEMPTS:
            await response.refuse(429, "too many wrong passwords. Wait a minute", (b"retry-after", b"60"))
            return
        attempts.append(now)  # before the answer, because requests may run at the same time
        await self.app(scope, receive, response.send)
        if response.status < 400:
            attempts.remove(now)


class _Response:
    """Sends a response with security headers."""

    def __init__(self, send: Any, allow_frame: bool) -> None:
        self.status = 0
        self._send = send
        self._is_complete = False
        headers = {
            # The browser refuses resources from other servers.
            "content-security-policy": _POLICY + ("*" if allow_frame else "'self'"),
            "referrer-policy": "same-origin",  # without one, forms would be sent with `Origin: null`
            "x-content-type-options": "nosniff",
        }
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], *self._headers]}
        elif message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
        """Answer without Gradio, and close the connection."""
        body = json.dumps({"detail": reason}).encode()
        fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        start = {"status": status, "headers": [*fixed, (b"connection", b"close"), *headers]}
        await self.send({"type": "http.response.start", **start})
        await self.send({"type": "http.response.body", "body": body})

    async def finish(self) -> None:
        """Complete the response after an error."""
        if not self.status:
            await self.refuse(500, "internal error")
        elif not self._is_complete:
            await self.send({"type": "http.response.body", "body": b""})


def is_cross_site(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a page of another site caused a request. Only browsers send these headers."""
    site = headers.get(b"sec-fetch-site")  # of https and localhost only; a page cannot change it
    if site is not None:
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()


async def read_body(receive: Any) -> bytes | None:
    """Return the body of a request; None if its client has left."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += bytes(message.get("body", b""))
        if not message.get("more_body", False):
            return body
    return None


def parse_fields(body: bytes, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any] | None:
    """Return the fields of a JSON object that Gradio needs; None if one of them is invalid."""
    try:
        content = parse_json(body)
        fields = {name: content.get(name) for name in types}
    except (ValueError, AttributeError):
        return None
    ids = [value for value in fields.values() if isinstance(value, str)]
    is_valid = all(type(fields[name]) in kinds for name, kinds in types.items()) and all(map(_ID.fullmatch, ids))
    return fields if is_valid else None
