"""The web demo on a free port of this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from gpt2kit.serving import app
from gpt2kit.serving.models import Service


@contextlib.contextmanager
def serve(service: Service, auth: tuple[str, str] | None = None) -> Iterator[str]:
    """Serve the demo, and yield its address."""
    from gpt2kit.serving.server import make_server  # here, because uvicorn comes with the demo's extra

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = make_server(app.app(service, "127.0.0.1", auth, 2), "127.0.0.1", port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
