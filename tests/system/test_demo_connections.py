"""The web demo and clients that leave, or never finish what they send."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from helpers import GRADIO_WARNINGS, Run
from system.demo_server import serve

from gpt2kit.generation.decoder import Decoder
from gpt2kit.serving import guard
from gpt2kit.serving.models import Service, find_models

pytest.importorskip("gradio", reason="the demo's extra is not installed")
pytestmark = GRADIO_WARNINGS


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[tuple[str, int]]:
    service = Service(find_models([str(run.folder)]))
    service.load().join()
    with serve(service) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])
    gc.collect()


def join(address: tuple[str, int], session: str, tokens: int) -> int:
    """Ask for four texts; return the status."""
    data = ["version_0", "the", tokens, 0.8, 0, 0.95, 1, 4, 1]
    connection = HTTPConnection(*address, timeout=60)
    event = json.dumps({"data": data, "fn_index": 0, "session_hash": session})
    connection.request("POST", "/gradio_api/queue/join", event, {"Content-Type": "text/plain"})
    return connection.getresponse().status


def open_stream(address: tuple[str, int], session: str) -> socket.socket:
    """Open the stream of a session's results, and wait until it begins."""
    stream = socket.create_connection(address, timeout=60)
    head = f"GET /gradio_api/queue/data?session_hash={session} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    stream.sendall(head.encode())
    assert stream.recv(1)
    return stream


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_requests_of_clients_that_left_are_not_computed(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self: [time.sleep(0.1), step(self)][1])
    for number in range(6):  # 500 tokens take 50 s, and two requests run at a time
        assert join(address, f"left{number}", 500) == 200
        open_stream(address, f"left{number}").close()
    start = time.monotonic()
    assert join(address, "here", 3) == 200
    content = read_all(open_stream(address, "here"))
    assert b"tokens/s" in content and b"process_completed" in content
    assert time.monotonic() - start < 40
    assert capfd.readouterr() == ("", "")


def test_requests_that_do_not_end_are_closed(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from gpt2kit.serving import server

    monkeypatch.setattr(server, "HEAD_TIMEOUT", 0.5)
    monkeypatch.setattr(guard, "BODY_TIMEOUT", 0.5)
    heads = [socket.create_connection(address, timeout=60) for _ in range(5)]
    for number, connection in enumerate(heads):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127."[: 6 * number])
    body = socket.create_connection(address, timeout=60)
    body.sendall(b"POST /gradio_api/reset HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
    left = socket.create_connection(address, timeout=60)
    left.sendall(b"POST /gradio_api/reset HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
    left.close()
    assert read_all(body).startswith(b"HTTP/1.1 408 ")
    for connection in heads:
        with contextlib.suppress(ConnectionResetError):
            assert not connection.recv(1)
    assert capfd.readouterr() == ("", "")
