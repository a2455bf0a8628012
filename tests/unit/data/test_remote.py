"""Stores that were copied to a URL: read through a bounded window on the local disk, over an unreliable network."""

from __future__ import annotations

import errno
import functools
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from helpers import ROOT, Outcome
from tokenizers import Tokenizer

from gpt2kit.data import build, remote
from gpt2kit.data.batches import BlockDataset, EvalBatches, TrainBatches
from gpt2kit.data.build import Corpus
from gpt2kit.data.remote import StreamedStore, open_store
from gpt2kit.data.store import TokenStore
from gpt2kit.data.window_order import WindowOrder, prefetching_batches, window_order
from gpt2kit.errors import DataError
from gpt2kit.text.reader import Reader

MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRY_PAUSES", [0.01] * 4)
    monkeypatch.setattr(build, "BATCH", 400)


@pytest.fixture
def memory() -> Iterator[str]:
    """A remote folder for stores."""
    yield "memory://stores"
    if MEMORY.exists("/stores"):
        MEMORY.rm("/stores", recursive=True)


@pytest.fixture
def text(corpus: Path, trained: Tokenizer) -> Corpus:
    """A text whose store has about 25 shards."""
    return Corpus([corpus / "train.txt"], trained, Reader("line"), shard_tokens=200)


@pytest.fixture
def local(text: Corpus, tmp_path: Path) -> TokenStore:
    """The store on the local disk."""
    return build.open_or_build(text, tmp_path / "local")


def copy(store: TokenStore, url: str) -> None:
    """Copy a store's folder to a URL, as a user does."""
    for path in store.folder.iterdir():
        fsspec.filesystem(url.split("://")[0]).pipe_file(f"{url}/{store.folder.name}/{path.name}", path.read_bytes())


@pytest.fixture
def url(local: TokenStore, memory: str) -> str:
    """A remote folder with a copy of the store."""
    copy(local, memory)
    return memory


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are fetched from memory://, slowly."""
    names: list[str] = []
    get_file = type(MEMORY).get_file

    def get_slowly(self: Any, source: str, *args: Any) -> None:
        names.append(Path(source).name)
        time.sleep(0.005)
        get_file(self, source, *args)

    monkeypatch.setattr(type(MEMORY), "get_file", get_slowly)
    return names


def local_files(scratch: Path, pattern: str = "*.bin") -> set[str]:
    """Return the names of the files on the local disk."""
    return {path.name for path in (scratch / "streamed").rglob(pattern)}


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for the threads that fetch shards."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def order_of(store: TokenStore, window: int) -> WindowOrder:
    return window_order([shard.tokens for shard in store.shards], 16, 16, window, 4, seed=1, shuffle=True)


def batches_of(store: StreamedStore, order: WindowOrder, first_step: int, batch_size: int) -> Iterator[torch.Tensor]:
    micro_batches = prefetching_batches(order, store.prefetch, first_step, batch_size, 0, 1)
    return iter(TrainBatches(BlockDataset(store, 16), micro_batches))


@pytest.mark.parametrize("location", ["memory://stores", "local"])
def test_a_streamed_store_equals_its_copy(
    location: str, text: Corpus, local: TokenStore, url: str, tmp_path: Path
) -> None:
    root = location if "://" in location else str(tmp_path / location)
    store = open_store(root, text, "text", tmp_path / "s")
    assert not local_files(tmp_path / "s"), "nothing is fetched before it is read"
    assert len(store.shards) > 20 and store.fingerprint == local.fingerprint
    assert store[0 : len(store)].tolist() == local[0 : len(local)].tolist()
    for start in range(0, len(local), 170):
        assert np.array_equal(store[start : start + 450], local[start : start + 450])
    assert np.array_equal(store.lengths(), local.lengths())
    assert np.array_equal(np.concatenate([*store.hashes()]), np.concatenate([*local.hashes()]))
    again = open_store(root, text, "text", tmp_path / "s")
    assert again[300:900].tolist() == local[300:900].tolist()
    wait_until(lambda: len(local_files(tmp_path / "s")) <= 6)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """A web server of tmp_path: its address, and how many of the next requests are to `fail`."""
    failures = {"fail": 0}
    lock = threading.Lock()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            with lock:
                fails = failures["fail"] > 0
                failures["fail"] -= fails
            if fails and failures["fail"] % 2:
                self.send_error(503)
            elif fails:  # the connection breaks in the middle
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"half")
                self.close_connection = True
            else:
                super().do_GET()

    handler = functools.partial(Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", failures
        http.shutdown()


def test_requests_are_repeated_when_a_web_server_fails(
    text: Corpus, local: TokenStore, server: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    address, failures = server
    store = open_store(f"{address}/local", text, "text", tmp_path / "s")
    for start in range(0, len(local), 1000):
        failures["fail"] = 3
        assert np.array_equal(store[start : start + 300], local[start : start + 300])
    failures["fail"] = 3
    assert np.array_equal(store.lengths(), local.lengths())
    failures["fail"] = 100
    with pytest.raises(DataError, match=r"000000\.bin: cannot be read after 5 attempts .*Check the URL, the network"):
        store.shard(0)
    failures["fail"] = 0
    assert store.shard(0)[:9].tolist() == local[:9].tolist(), "the next access requests it again"


def test_a_url_without_the_store_is_reported_with_the_command_that_builds_it(
    text: Corpus,
    local: TokenStore,
    memory: str,
    server: tuple[str, dict[str, int]],
    tmp_path: Path,
    call: Callable[..., Outcome],
) -> None:
    pytest.importorskip("aiohttp")
    key = local.folder.name
    for url in (memory, f"{server[0]}/none", str(tmp_path / "none")):
        code, _, err = call(lambda _, url=url: open_store(url, text, "train text", tmp_path / "s"))
        assert code == 3 and len(err.splitlines()) == 1
        assert f"{url}/{key}: there is no complete token store of the train text with these options" in err
        assert "--part 1/1. Then copy the folder FOLDER/" in err and err.endswith(f"{key} to {url}/{key}\n")


def test_a_file_that_was_not_copied_is_named(local: TokenStore, url: str, tmp_path: Path) -> None:
    location = f"/stores/{local.folder.name}"
    for name in ("000003.bin", "000007.doc"):
        MEMORY.rm(f"{location}/{name}")
    store = StreamedStore(f"memory:/{location}", tmp_path / "s")
    with pytest.raises(DataError, match=r"000003\.bin: is missing, but index\.json names it\. Copy the store's folder"):
        store.shard(3)
    with pytest.raises(DataError, match=r"000007\.doc: is missing"):
        store.lengths()
    copy(local, url)
    assert store.shard(3)[:].tolist() == local.shard(3)[:].tolist(), "the next access requests it again"


def test_an_invalid_index_is_refused(text: Corpus, local: TokenStore, url: str, tmp_path: Path) -> None:
    path = f"/stores/{local.folder.name}/index.json"
    index = MEMORY.cat_file(path)
    for content in (index[:-9], index.replace(b"000002.bin", b"../../a.bin"), b"\xff"):
        MEMORY.pipe_file(path, content)
        with pytest.raises(DataError, match=r"not a valid index .*Copy the store's folder there again"):
            open_store(url, text, "text", tmp_path / "s")


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-2], lambda raw: raw[:8] + bytes([raw[8] ^ 1]) + raw[9:]], ids=["short", "one bit"]
)
def test_a_damaged_file_is_reported_in_one_line_and_not_used(
    damage: Callable[[bytes], bytes],
    text: Corpus,
    local: TokenStore,
    url: str,
    tmp_path: Path,
    call: Callable[..., Outcome],
) -> None:
    store = open_store(url, text, "text", tmp_path / "s")
    for name in ("000002.bin", "000002.doc"):
        path = f"/stores/{local.folder.name}/{name}"
        MEMORY.pipe_file(path, damage(MEMORY.cat_file(path)))
    for read in (lambda _: store[0 : len(store)], lambda _: store.lengths()):
        code, _, err = call(read)
        assert code == 3 and len(err.splitlines()) == 1
        assert "000002." in err and "fetched twice, does not match its checksum" in err and "Copy it there again" in err
    wait_until(lambda: not local_files(tmp_path / "s", ".*.tmp"))
    assert "000002.bin" not in local_files(tmp_path / "s")


@pytest.mark.parametrize(("name", "size"), [("000002.bin", 10_000), ("000002.doc", 10_000), ("index.json", 1 << 26)])
def test_a_file_that_is_larger_than_it_may_be_is_not_fetched(
    name: str, size: int, text: Corpus, local: TokenStore, url: str, tmp_path: Path
) -> None:
    path = f"/stores/{local.folder.name}/{name}"
    MEMORY.pipe_file(path, MEMORY.cat_file(path) + bytes(size))
    with pytest.raises(DataError, match=rf"{name}: [\d,]+ bytes, more than the [\d,]+ that it may have"):
        store = open_store(url, text, "text", tmp_path / "s")
        store[0 : len(store)]
        store.lengths()


def test_only_two_windows_are_on_the_local_disk_and_they_are_read_ahead(
    text: Corpus, local: TokenStore, url: str, fetched: list[str], tmp_path: Path
) -> None:
    store = open_store(url, text, "text", tmp_path / "s")
    order = order_of(store, window=3)
    batches = batches_of(store, order, 0, 4)
    largest = 0
    for step in range(order.steps_per_epoch):
        expected = [local[first : first + 17].tolist() for first in order.step(step).tolist()]
        assert next(batches).tolist() == expected
        shards = {store.shards[number].name for number in order.shards_at(step)}
        wait_until(lambda shards=shards: local_files(tmp_path / "s") == shards)  # type: ignore[misc]
        largest = max(largest, len(shards))
    assert largest == 6 and len(local_files(tmp_path / "s", "*.lock")) <= 6
    assert len(fetched) <= len(store.shards) + 3, "each shard once per epoch, and the first ones of the next epoch"
    fetched.clear()
    store.prefetch([])
    for a, b in zip(EvalBatches(store, 16, 5), EvalBatches(local, 16, 5), strict=True):
        assert torch.equal(a, b)
        wait_until(lambda: len(local_files(tmp_path / "s")) <= 3)
    # A shard of the last window may arrive late.
    assert {*fetched} == {shard.name for shard in store.shards} and len(fetched) <= len(store.shards) + 3


def test_a_start_in_mid_epoch_fetches_only_its_windows(
    text: Corpus, url: str, fetched: list[str], tmp_path: Path
) -> None:
    store = open_store(url, text, "text", tmp_path / "s")
    order = order_of(store, window=2)
    batches = batches_of(store, order, 0, 2)
    expected = [next(batches) for _ in range(100)][80:]
    fetched.clear()
    later = open_store(url, text, "text", tmp_path / "other")
    batches = batches_of(later, order, 40, 2)
    assert all(torch.equal(next(batches), batch) for batch in expected)
    wait_until(lambda: len(local_files(tmp_path / "other")) <= 4)
    assert len(fetched) < 12


def test_ranks_share_shards_and_delete_them_at_the_end(
    text: Corpus, url: str, fetched: list[str], tmp_path: Path
) -> None:
    ranks = [open_store(url, text, "text", tmp_path / "s") for _ in range(2)]
    assert ranks[0].folder == ranks[1].folder
    for rank in ranks:
        rank.prefetch([1, 2, 3])
    tokens = [[rank.shard(number)[:] for number in (1, 2, 3)] for rank in ranks]
    assert sorted(fetched) == ["000001.bin", "000002.bin", "000003.bin"]
    ranks[0].prefetch([4])
    wait_until(lambda: local_files(tmp_path / "s") == {"000004.bin"})
    assert all(np.array_equal(a, b) for a, b in zip(*tokens, strict=True)), "a deleted file stays readable"
    assert ranks[1].shard(2)[:].tolist() == tokens[1][1].tolist()
    third = open_store(url, text, "text", tmp_path / "s")
    assert local_files(tmp_path / "s") == {"000004.bin"}, "the files of another process are kept"
    del third, rank, ranks
    wait_until(lambda: not [*(tmp_path / "s" / "streamed").glob("*/")])


READ = """
import sys, time
from pathlib import Path
from gpt2kit.data.remote import StreamedStore

store = StreamedStore(sys.argv[1], Path(sys.argv[2]))
store.shard(0)
print("read", flush=True)
time.sleep(float(sys.argv[3]))
"""


def test_the_files_of_a_killed_process_are_deleted_by_the_next_one(local: TokenStore, tmp_path: Path) -> None:
    command = [sys.executable, "-c", READ, str(local.folder), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([*command, "600"], stdout=subprocess.PIPE, env=environment) as killed:
        assert killed.stdout is not None and killed.stdout.readline() == b"read\n"
        killed.kill()
    (folder,) = (tmp_path / "streamed").glob("*/")
    marker = folder / "of_the_killed_process"
    marker.touch()
    subprocess.run([*command, "0"], stdout=subprocess.PIPE, env=environment, check=True)
    assert not marker.exists()


def test_a_store_is_released_in_another_working_directory(
    text: Corpus, url: str, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(url, text, "text")
    folder = store.folder
    (inside / "other").mkdir()
    monkeypatch.chdir(inside / "other")
    del store
    gc.collect()
    assert not list(Path.cwd().iterdir()) and not folder.exists() and folder.is_absolute()


def test_a_shard_that_another_process_deletes_is_fetched_again(text: Corpus, url: str, tmp_path: Path) -> None:
    store = open_store(url, text, "text", tmp_path / "s")
    expected = store.shard(1)[:].tolist()
    other = open_store(url, text, "text", tmp_path / "s")
    for path in (tmp_path / "s/streamed").rglob("*.bin"):
        path.unlink(missing_ok=True)
    assert other.shard(1)[:].tolist() == expected


def test_only_the_last_prefetch_is_kept(text: Corpus, url: str, fetched: list[str], tmp_path: Path) -> None:
    store = open_store(url, text, "text", tmp_path / "s")
    random_numbers = np.random.default_rng(1)
    for _ in range(50):
        store.prefetch(random_numbers.choice(len(store.shards), 4, replace=False).tolist())
    store.prefetch([5, 6])
    assert [len(store.shard(number)) for number in (5, 6)] == [store.shards[number].tokens for number in (5, 6)]
    wait_until(lambda: local_files(tmp_path / "s") == {"000005.bin", "000006.bin"})


def test_a_full_disk_is_reported_at_once(
    text: Corpus, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]
) -> None:
    store = open_store(url, text, "text", tmp_path / "s")
    attempts: list[str] = []

    def fill_up(self: Any, source: str, target: str) -> None:
        attempts.append(source)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr(type(MEMORY), "get_file", fill_up)
    store.prefetch([1])
    code, _, err = call(lambda _: store.shard(1))
    assert code == 5 and "no space left" in err and len(attempts) <= 2
