"""The web demo as an ASGI application, which serves one page and makes no external requests."""

from __future__ import annotations

import os
import socket
from typing import Any

from gpt2kit.errors import MachineError
from gpt2kit.serving import page
from gpt2kit.serving.models import Service

# Maximum number of bytes in a request body.
_MAX_BODY = 1 << 18
# Paths on which Gradio takes uploads, serves files and forwards to other servers. The page does not need them.
_CLOSED = ("/gradio_api/upload", "/gradio_api/file", "/gradio_api/proxy", "/upload", "/file", "/proxy")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'none'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors "
)


def check_port(host: str, port: int) -> None:
    """Raise if the port is not available, and suggest the next one that is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def try_port(candidate: int) -> OSError | None:
        with socket.socket(family, socket.SOCK_STREAM) as server:
            if os.name == "posix":  # on Windows this would bind a port that another program uses
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind((host, candidate))
            except OSError as error:
                return error
        return None

    failure = try_port(port)
    if failure is None:
        return
    others = range(port + 1, min(port + 1000, 65536))
    free = next((other for other in others if try_port(other) is None), None)
    advice = f"Use --port {free}" if free else "Check --host"
    raise MachineError(f"--host {host} --port {port}: not available ({failure.strerror}). {advice}")


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from this machine only."""
    return host in ("localhost", "::1") or host.startswith("127.")


def app(
    service: Service, host: str, auth: tuple[str, str] | None, max_concurrency: int, allow_frame: bool = False
) -> Any:
    """Build the application.

    Args:
        service: the models.
        host: the address that it listens on.
        auth: the name and the password that users must enter.
        max_concurrency: requests that are computed at the same time.
        allow_frame: whether pages of other sites may show the page in a frame.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # The documentation pages of FastAPI load scripts from other servers.
    fastapi = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    fastapi.add_middleware(Guard, allow_frame=allow_frame)
    if is_loopback(host):  # prevents DNS rebinding
        fastapi.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "[::1]", host])
    fonts = ["system-ui", "sans-serif"]
    return gradio.mount_gradio_app(
        fastapi,
        page.build(service, max_concurrency),
        path="",
        auth=auth,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=0,
        theme=gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=page.STYLE,
    )


class Guard:
    """Middleware that refuses large bodies and closed paths, and adds security headers."""

    def __init__(self, app: Any, allow_frame: bool) -> None:
        self._app = app
        headers = {
            # The browser refuses resources from other servers.
            "content-security-policy": _POLICY + ("*" if allow_frame else "'self'"),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"" if scope["method"] == "POST" else b"0")
        is_too_large = not length.isdigit() or int(length) > _MAX_BODY  # a chunked body has no length
        if is_too_large or scope["path"].startswith(_CLOSED):
            status, body = (413, b"too large\n") if is_too_large else (404, b"not found\n")
            await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": body})
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers]}
            await send(message)

        await self._app(scope, receive, with_headers)
