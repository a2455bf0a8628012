"""The web demo as an application: one page, served to this machine unless the user says otherwise."""

from __future__ import annotations

import os
import socket
from typing import Any

from gpt2kit.errors import MachineError
from gpt2kit.serving import page
from gpt2kit.serving.models import Service

# Bytes of a request's body, at most.
_LARGEST_BODY = 1 << 18
# Gradio's ways to files and other servers, which this page does not use.
_CLOSED = ("/gradio_api/upload", "/gradio_api/file", "/gradio_api/proxy", "/upload", "/file", "/proxy")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'none'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = {
    "content-security-policy": _POLICY,  # the browser itself refuses whatever lies elsewhere
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def check_port(host: str, port: int) -> None:
    """Raise if the port is taken, and name the next one that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def try_port(candidate: int) -> OSError | None:
        with socket.socket(family, socket.SOCK_STREAM) as server:
            if os.name == "posix":  # on Windows this would take a port that another program listens on
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind((host, candidate))
            except OSError as error:
                return error
        return None

    failure = try_port(port)
    if failure is None:
        return
    others = (other for other in range(port + 1, min(port + 1000, 65536)) if try_port(other) is None)
    other = next(others, None)
    advice = f"Use --port {other}" if other else "Check --host"
    raise MachineError(f"--host {host} --port {port}: not available ({failure.strerror}). {advice}")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host."""
    return host in ("localhost", "::1") or host.startswith("127.")


def app(service: Service, host: str, auth: tuple[str, str] | None, max_concurrency: int) -> Any:
    """Build the page's ASGI application; nothing in it leads to another machine."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # FastAPI's own documentation pages load scripts from elsewhere.
    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    made.add_middleware(Guard)
    if is_loopback(host):  # a page elsewhere cannot pass itself off as this one by its name
        made.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "[::1]", host])
    fonts = ["system-ui", "sans-serif"]
    return gradio.mount_gradio_app(
        made,
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
    """Middleware: refuses bodies that are too large and addresses that nobody needs; adds the headers."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        chunked = scope["method"] == "POST" and b"content-length" not in dict(scope["headers"])
        too_large = not length.isdigit() or int(length) > _LARGEST_BODY or chunked
        if too_large or scope["path"].startswith(_CLOSED):
            status, body = (413, b"too large\n") if too_large else (404, b"not found\n")
            await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": body})
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self._app(scope, receive, with_headers)
