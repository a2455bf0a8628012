"""The web demo as an ASGI application, which serves one page and makes no external requests."""

from __future__ import annotations

import os
import socket
from typing import Any

from gpt2kit.errors import MachineError
from gpt2kit.serving import download, page
from gpt2kit.serving.download import Downloads
from gpt2kit.serving.guard import Guard
from gpt2kit.serving.models import Service
from gpt2kit.serving.requests import Clients


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
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # would store prompts and texts in the browser
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["RUST_BACKTRACE"] = "0"  # a failure of a tokenizer would fill the log
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # The documentation pages of FastAPI load scripts from other servers.
    fastapi = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    clients, downloads = Clients(), None
    if service.allow_download:
        downloads = Downloads(service)
        fastapi.router.lifespan_context = downloads.lifespan
        fastapi.add_api_route(download.ROUTE, downloads.respond, response_model=None)
    blocks = page.build(service, max_concurrency, clients, downloads)
    fastapi.add_middleware(
        Guard,
        clients=clients,
        inputs={index: len(event.inputs) for index, event in blocks.fns.items() if event.fn},
        has_password=auth is not None,
        allow_frame=allow_frame,
        allow_download=service.allow_download,
    )
    if is_loopback(host):  # prevents DNS rebinding
        fastapi.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "[::1]", host])
    fonts = ["system-ui", "sans-serif"]
    return gradio.mount_gradio_app(
        fastapi,
        blocks,
        path="",
        auth=auth,
        auth_message="After ten wrong passwords, wait a minute." if auth else None,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=0,
        theme=gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=page.STYLE,
    )
