"""Downloads are whole and checked, or not there; what broke off goes on where it broke."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Outcome
from serving import Server, serving

from gpt2kit.data import download, fetching
from gpt2kit.data.download import Remote, fetch
from gpt2kit.errors import DataError

TEXT = b"".join(b"line %d of a text that is large enough to break off in the middle\n" % n for n in range(20_000))
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "_PAUSES", [0.0, 0.0])
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as found:
        found.files["/text"] = TEXT
        yield found


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    remote = Remote(f"{server.url}/text", "text.txt", SHA256)
    assert fetch(remote, tmp_path / "new") == SHA256 == fetch(remote, tmp_path / "new")
    assert (tmp_path / "new/text.txt").read_bytes() == TEXT and left(tmp_path / "new") == ["text.txt"]
    assert server.asked == [("/text", None)]


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_broken_connection_goes_on_where_it_broke(server: Server, tmp_path: Path, sha256: str | None) -> None:
    server.breaks = [300_000, 0, 1, 200_000, 300_000]  # more breaks than attempts: each of them brought something
    assert fetch(Remote(f"{server.url}/text", "text.txt", sha256), tmp_path) == SHA256
    assert (tmp_path / "text.txt").read_bytes() == TEXT and left(tmp_path) == ["text.txt"]
    begins = [int(asked[6:-1]) for _, asked in server.asked if asked]
    assert begins == [300_000, 300_000, 300_001, 500_001, 800_001]


def test_what_an_earlier_call_has_left_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.breaks, server.codes = [700_000], []
    remote = Remote(f"{server.url}/text", "text.txt")
    part = download._Part(remote, tmp_path)
    assert not part.more()  # and here the process is killed
    assert (tmp_path / ".text.txt.part").stat().st_size == 700_000 and not (tmp_path / "text.txt").exists()
    assert fetch(remote, tmp_path) == SHA256
    assert server.asked[1:] == [("/text", "bytes=700000-")]


def test_versions_are_not_mixed(server: Server, tmp_path: Path) -> None:
    """Changed between the two halves: from the beginning, though no checksum would have told."""
    other = TEXT[::-1]
    server.breaks = [700_000]
    remote = Remote(f"{server.url}/text", "text.txt")
    assert not download._Part(remote, tmp_path).more()
    server.files["/text"], server.tag = other, '"two"'
    assert fetch(remote, tmp_path) == hashlib.sha256(other).hexdigest()
    assert (tmp_path / "text.txt").read_bytes() == other


def test_without_a_tag_or_a_checksum_it_begins_anew(server: Server, tmp_path: Path) -> None:
    server.tag, server.breaks = None, [700_000]
    fetch(Remote(f"{server.url}/text", "text.txt"), tmp_path)
    assert [asked for _, asked in server.asked] == [None, None]
    server.asked.clear()
    server.breaks = [700_000]
    fetch(Remote(f"{server.url}/text", "other.txt", SHA256), tmp_path)
    assert [asked for _, asked in server.asked] == [None, "bytes=700000-"]


def test_a_server_that_cannot_go_on(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [100_000, 700_000]
    assert fetch(Remote(f"{server.url}/text", "text.txt", SHA256), tmp_path) == SHA256
    server.breaks = [100_000] * 100
    with pytest.raises(DataError, match=r"in 3 attempts .*broke off after 100,000 of 1,\d+,\d+ bytes"):
        fetch(Remote(f"{server.url}/text", "other.txt", SHA256), tmp_path)
    assert len(server.breaks) == 100 - 4, "one that brought something, and three that brought no more"


def test_a_server_that_has_less_than_has_come(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".text.txt.part").write_bytes(TEXT + b"more")
    assert fetch(Remote(f"{server.url}/text", "text.txt", SHA256), tmp_path) == SHA256


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    remote = Remote(f"{server.url}/text", "text.txt", "0" * 64)
    with pytest.raises(DataError, match=rf"what came has the SHA-256 {SHA256}, not 0{{64}}.*not kept; run"):
        fetch(remote, tmp_path)
    assert left(tmp_path) == []
    (tmp_path / "text.txt").write_bytes(b"another")
    with pytest.raises(DataError, match=r"text.txt: is there, but has the SHA-256 .* Delete it"):
        fetch(remote, tmp_path)
    assert (tmp_path / "text.txt").read_bytes() == b"another"


def test_errors_that_pass_and_errors_that_stay(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429]
    assert fetch(Remote(f"{server.url}/text", "text.txt"), tmp_path) == SHA256
    server.asked.clear()
    with pytest.raises(DataError, match=r"the server answers 404 .*put it at .*gone.txt"):
        fetch(Remote(f"{server.url}/gone", "gone.txt"), tmp_path)
    assert len(server.asked) == 1


def test_without_a_network(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DataError, match=r"attempts \(URLError: .*Without a network here, fetch it .* put it at .*text"):
        fetch(Remote("http://127.0.0.1:1/text", "text.txt"), tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT)
    assert fetch(Remote("http://127.0.0.1:1/text", "text.txt", SHA256), tmp_path) == SHA256


def test_a_proxy_of_the_environment_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.files["http://example.invalid/text"] = TEXT
    assert fetch(Remote("http://example.invalid/text", "text.txt"), tmp_path) == SHA256
    assert server.asked == [("http://example.invalid/text", None)]


def test_a_full_disk_is_known_before(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    remote = Remote(f"{server.url}/text", "text.txt")
    code, _, err = call(lambda _: fetch(remote, tmp_path))
    assert code == 5 and "no space left" in err and len(server.asked) == 1 and left(tmp_path) == []


def test_a_disk_that_fills_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not tried again; what has come stays, and is gone on with when there is room."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    remote = Remote(f"{server.url}/text", "text.txt")
    (tmp_path / ".text.txt.part").symlink_to("/dev/full")
    monkeypatch.setattr(download._Part, "forget", lambda self: None)
    with pytest.raises(OSError) as full:
        fetch(remote, tmp_path)
    assert full.value.errno == errno.ENOSPC and len(server.asked) == 1


def test_chunks_without_a_length(server: Server, tmp_path: Path) -> None:
    server.length = False
    assert fetch(Remote(f"{server.url}/text", "text.txt", SHA256), tmp_path) == SHA256


def test_json(server: Server) -> None:
    server.files["/list"] = json.dumps([{"path": "a"}]).encode()
    assert download.read_json(f"{server.url}/list") == [{"path": "a"}]
    server.files["/list"] = b"<html>"
    with pytest.raises(DataError, match="JSONDecodeError"):
        download.read_json(f"{server.url}/list")


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(download, "_SECONDS", 0.05)
        began = time.monotonic()
        with pytest.raises(DataError, match=r"cannot be fetched, in 3 attempts .*timed out"):
            fetch(Remote(f"http://127.0.0.1:{silent.getsockname()[1]}/text", "text.txt"), tmp_path)
        assert time.monotonic() - began < 10
