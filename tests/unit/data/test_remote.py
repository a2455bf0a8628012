"""Stores that were copied to a URL: read through a bounded window on the local disk, over a bad network."""

from __future__ import annotations

import functools
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
from helpers import ROOT, Outcome, final_weights, logged_rows, same_weights, train_run

from gpt2kit.cli import train as cli
from gpt2kit.data import build
from gpt2kit.data import remote as remote_module
from gpt2kit.data.batches import BlockDataset, EvalBatches, TrainBatches
from gpt2kit.data.build import Corpus
from gpt2kit.data.order import prefetching_batches, window_order
from gpt2kit.data.remote import StreamedStore, open_store
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DataError
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer
from gpt2kit.training.module import GPT2Module

MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "_PAUSES", [0.01] * 4)
    monkeypatch.setattr(build, "BATCH", 400)


@pytest.fixture
def memory() -> Iterator[str]:
    """A remote folder for stores."""
    yield "memory://stores"
    if MEMORY.exists("/stores"):
        MEMORY.rm("/stores", recursive=True)


@pytest.fixture
def text(corpus: Path) -> Corpus:
    """A corpus of some 25 token files."""
    return Corpus([corpus / "train.txt"], tokenizer.load(corpus / "tokenizer"), Reader(), shard_tokens=200)


@pytest.fixture
def local(text: Corpus, tmp_path: Path) -> TokenStore:
    """The same store on the local disk."""
    return build.open_or_build(text, tmp_path / "local")


def copy(store: TokenStore, url: str) -> None:
    """Copy a store's folder to the place, as a user does."""
    for path in store.folder.iterdir():
        fsspec.filesystem(url.split("://")[0]).pipe_file(f"{url}/{store.folder.name}/{path.name}", path.read_bytes())


@pytest.fixture
def remote(local: TokenStore, memory: str) -> str:
    """A remote folder that has the store."""
    copy(local, memory)
    return memory


def here(scratch: Path, pattern: str = "*.bin") -> list[Path]:
    """What lies on the local disk."""
    return [*(scratch / "streamed").rglob(pattern)]


def settled(store: StreamedStore) -> None:
    """Wait until nothing is being fetched."""
    for future in list(store._fetches.values()):
        future.exception()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A web server of tmp_path: its address, and knobs: `fail`, how many of the next requests do, and `asked`."""
    knobs: dict[str, Any] = {"fail": 0, "asked": []}
    lock = threading.Lock()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            with lock:
                knobs["asked"].append(self.path)
                failing = knobs["fail"] > 0
                knobs["fail"] -= failing
            if failing and knobs["fail"] % 2:
                self.send_error(503)
            elif failing:  # the connection breaks in the middle
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"half")
                self.close_connection = True
            else:
                super().do_GET()

    handler = functools.partial(Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", knobs
        server.shutdown()


def test_it_is_the_store_that_was_copied(text: Corpus, local: TokenStore, remote: str, tmp_path: Path) -> None:
    store = open_store(remote, text, "text", tmp_path / "s")
    assert not here(tmp_path / "s"), "nothing is fetched before it is read"
    assert len(store.shards) > 20 and store.fingerprint == local.fingerprint
    assert store[0 : len(store)].tolist() == local[0 : len(local)].tolist()
    for start in range(0, len(local), 170):
        assert np.array_equal(store[start : start + 450], local[start : start + 450])
    assert np.array_equal(store.lengths(), local.lengths())
    assert np.array_equal(np.concatenate([*store.hashes()]), np.concatenate([*local.hashes()]))
    again = open_store(remote, text, "text", tmp_path / "s")
    assert again[300:900].tolist() == local[300:900].tolist()


def test_a_place_without_the_store_is_one_line_that_says_how_to_put_it_there(
    text: Corpus,
    local: TokenStore,
    memory: str,
    served: tuple[str, dict[str, Any]],
    tmp_path: Path,
    call: Callable[..., Outcome],
) -> None:
    pytest.importorskip("aiohttp")
    key = local.folder.name
    for url in (memory, f"{served[0]}/none", str(tmp_path / "none")):
        code, _, err = call(lambda _, url=url: open_store(url, text, "train text", tmp_path / "s"))
        assert code == 3 and len(err.splitlines()) == 1
        assert f"{url}/{key}: there is no complete token store of the train text with these options" in err
        assert "--part 1/1. Then copy the folder FOLDER/" in err and err.endswith(f"{key} to {url}/{key}\n")


def test_what_was_not_copied_is_named(local: TokenStore, remote: str, tmp_path: Path) -> None:
    place = f"/stores/{local.folder.name}"
    for name in ("000003.bin", "000007.doc"):
        MEMORY.rm(f"{place}/{name}")
    store = StreamedStore(f"memory:/{place}", tmp_path / "s")
    with pytest.raises(DataError, match=r"000003\.bin: is missing, but index\.json names it\. Copy the store's folder"):
        store.shard(3)
    with pytest.raises(DataError, match=r"000007\.doc: is missing"):
        store.lengths()
    copy(local, remote)
    assert store.shard(3).tolist() == local.shard(3).tolist(), "the next time it asks again"


def test_a_damaged_index_is_refused(text: Corpus, local: TokenStore, remote: str, tmp_path: Path) -> None:
    place = f"/stores/{local.folder.name}/index.json"
    whole = MEMORY.cat_file(place)
    for content in (whole[:-9], whole.replace(b"000002.bin", b"../../a.bin"), b"\xff"):
        MEMORY.pipe_file(place, content)
        with pytest.raises(DataError, match=r"not a sound index .*Copy the store's folder there again"):
            open_store(remote, text, "text", tmp_path / "s")


@pytest.mark.parametrize(
    "harm", [lambda raw: raw[:-2], lambda raw: raw[:8] + bytes([raw[8] ^ 1]) + raw[9:]], ids=["short", "bit"]
)
def test_a_damaged_file_is_one_line(
    harm: Callable[[bytes], bytes],
    text: Corpus,
    local: TokenStore,
    remote: str,
    tmp_path: Path,
    call: Callable[..., Outcome],
) -> None:
    store = open_store(remote, text, "text", tmp_path / "s")
    place = f"/stores/{local.folder.name}"
    for name in ("000002.bin", "000002.doc"):
        MEMORY.pipe_file(f"{place}/{name}", harm(MEMORY.cat_file(f"{place}/{name}")))
    for act in (lambda _: store[0 : len(store)], lambda _: store.lengths()):
        code, _, err = call(act)
        assert code == 3 and len(err.splitlines()) == 1
        assert "000002." in err and "fetched twice, does not match its checksum" in err and "Copy it there again" in err
    settled(store)
    assert not here(tmp_path / "s", ".*.tmp") and "000002.bin" not in {path.name for path in here(tmp_path / "s")}


def test_a_web_server_that_fails_now_and_then(
    text: Corpus, local: TokenStore, served: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    url, knobs = served
    store = open_store(f"{url}/local", text, "text", tmp_path / "s")
    for start in range(0, len(local), 1000):
        knobs["fail"] = 3
        assert np.array_equal(store[start : start + 300], local[start : start + 300])
    knobs["fail"] = 3
    assert np.array_equal(store.lengths(), local.lengths())
    settled(store)
    knobs["fail"] = 100
    with pytest.raises(DataError, match=r"000000\.bin: cannot be read, in 5 attempts .*Check the URL, the network"):
        store.shard(0)
    knobs["fail"] = 0
    assert store.shard(0)[:9].tolist() == local[:9].tolist(), "the next time it asks again"


def test_only_a_window_is_on_the_local_disk_and_it_is_read_ahead(
    text: Corpus, local: TokenStore, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(remote, text, "text", tmp_path / "s")
    fetched: list[str] = []
    real = type(MEMORY).get_file
    monkeypatch.setattr(
        type(MEMORY),
        "get_file",
        lambda self, source, *args: fetched.append(source) or real(self, source, *args),  # type: ignore[func-returns-value]
    )
    order = window_order([s.tokens for s in store.shards], 16, 16, 3, 4, seed=1, shuffle=True)
    batches = iter(TrainBatches(BlockDataset(store, 16, 1), prefetching_batches(order, store.prefetch, 0, 4, 0, 1)))
    most = 0
    for step in range(order.steps_per_epoch):
        expected = [local[first : first + 17].tolist() for first in order.step(step).tolist()]
        assert next(batches).tolist() == expected
        settled(store)
        most = max(most, len(here(tmp_path / "s")))
        assert {path.name for path in here(tmp_path / "s")} == {store.shards[n].name for n in order.files_at(step)}
    assert most == 6 and len(here(tmp_path / "s", "*.lock")) <= 6
    assert len(fetched) <= len(store.shards) + 3, "each file once an epoch, and the beginning of the next epoch"
    fetched.clear()
    del batches
    store.prefetch([])
    for batch, (a, b) in enumerate(zip(EvalBatches(store, 16, 5), EvalBatches(local, 16, 5), strict=True)):
        assert torch.equal(a, b), batch
        settled(store)
        assert len(here(tmp_path / "s")) <= 3
    assert len(fetched) == len(store.shards)


def test_a_start_in_mid_epoch_fetches_only_its_window(text: Corpus, remote: str, tmp_path: Path) -> None:
    store = open_store(remote, text, "text", tmp_path / "s")
    order = window_order([s.tokens for s in store.shards], 16, 16, 2, 4, seed=1, shuffle=True)
    straight = iter(TrainBatches(BlockDataset(store, 16, 1), prefetching_batches(order, store.prefetch, 0, 2, 0, 1)))
    skipped = [next(straight) for _ in range(100)]
    later = open_store(remote, text, "text", tmp_path / "other")
    batches = iter(TrainBatches(BlockDataset(later, 16, 1), prefetching_batches(order, later.prefetch, 40, 2, 0, 1)))
    assert all(torch.equal(next(batches), skipped[number]) for number in range(80, 100))
    settled(later)
    assert len(here(tmp_path / "other")) <= 4


def test_ranks_share_what_is_fetched_and_a_killed_one_leaves_nothing(
    text: Corpus, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    real = type(MEMORY).get_file

    def slow(self: Any, source: str, *args: Any) -> None:
        fetched.append(source)
        time.sleep(0.02)
        real(self, source, *args)

    ranks = [open_store(remote, text, "text", tmp_path / "s") for _ in range(2)]
    monkeypatch.setattr(type(MEMORY), "get_file", slow)
    assert ranks[0].folder == ranks[1].folder
    for rank in ranks:
        rank.prefetch([1, 2, 3])
    tokens = [[rank.shard(n) for n in (1, 2, 3)] for rank in ranks]
    assert len(fetched) == 3
    ranks[0].prefetch([4])
    settled(ranks[0])
    assert all(np.array_equal(a, b) for a, b in zip(*tokens, strict=True)), "a deleted file stays readable"
    assert ranks[1].shard(2).tolist() == tokens[1][1].tolist()
    folder, root = ranks[0].folder, tmp_path / "s" / "streamed"
    left = root / "0123"
    left.mkdir()
    (left / ".000001.bin.7.tmp").write_bytes(b"half")  # as a killed process leaves it, whose locks are gone
    third = open_store(remote, text, "text", tmp_path / "s")
    assert not left.exists() and folder.exists()
    assert len(here(tmp_path / "s")) == 1, "what another process uses stays"
    del third, rank, ranks
    assert not [*root.glob("*/")], "at the end nothing is left"


def test_a_file_that_another_process_deletes_is_fetched_again(text: Corpus, remote: str, tmp_path: Path) -> None:
    store = open_store(remote, text, "text", tmp_path / "s")
    store.prefetch([1, 2])
    settled(store)
    other = open_store(remote, text, "text", tmp_path / "s")
    for path in here(tmp_path / "s"):
        path.unlink()
    assert other.shard(1).tolist() == store.shard(1).tolist()


def test_many_changes_of_mind_leave_only_what_is_wanted(text: Corpus, remote: str, tmp_path: Path) -> None:
    store = open_store(remote, text, "text", tmp_path / "s")
    draw = np.random.default_rng(1)
    for _ in range(50):
        store.prefetch(draw.choice(len(store.shards), 4, replace=False).tolist())
    store.prefetch([5, 6])
    assert [len(store.shard(n)) for n in (5, 6)] == [store.shards[n].tokens for n in (5, 6)]
    until = time.monotonic() + 10
    while {path.name for path in here(tmp_path / "s")} != {"000005.bin", "000006.bin"}:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_local_place_is_copied_in_windows(text: Corpus, local: TokenStore, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "local"), text, "text", tmp_path / "s")
    assert store[0 : len(store)].tolist() == local[0 : len(local)].tolist()
    assert store.fingerprint == local.fingerprint and len(here(tmp_path / "s")) <= 3


def test_a_full_disk_stops_at_once(
    text: Corpus, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]
) -> None:
    store = open_store(remote, text, "text", tmp_path / "s")
    asked: list[str] = []

    def full(self: Any, source: str, target: str) -> None:
        asked.append(source)
        raise OSError(28, os.strerror(28), target)

    monkeypatch.setattr(type(MEMORY), "get_file", full)
    code, _, err = call(lambda _: store.prefetch([1]) or store.shard(1))  # type: ignore[func-returns-value]
    assert code == 5 and "no space left" in err and len(asked) <= 2


@pytest.fixture
def streamed_options(options: list[str], memory: str, tmp_path: Path) -> list[str]:
    """The command that trains from the URL; the one that builds has been run, and its stores copied."""
    kept = [word for word in options if "cache_dir" not in word] + ["--data.shard_tokens=300"]
    built = tmp_path / "built"
    cli.main([*kept, f"--data.cache_dir={built}", "--part=1/1"])
    for index in built.glob("*/index.json"):
        copy(TokenStore(index.parent), memory)
    more = ("--data.streaming=true", "--data.window_shards=2", "--save_every=3")
    return [*kept, f"--data.cache_dir={memory}", *more, "--trainer.log_every_n_steps=1"]


def test_a_streamed_run_resumes_in_mid_epoch_and_validates_like_a_local_one(
    options: list[str],
    streamed_options: list[str],
    inside: Path,
    call: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = [*streamed_options, "--trainer.val_check_interval=7", "--trainer.max_steps=45"]
    straight = train_run(inside / "straight", more)
    real = GPT2Module.training_step
    for stop in (5, 25, 43):  # an epoch has 40 steps
        left = [stop]

        def dying(self: GPT2Module, *args: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("killed")
            return real(self, *args)

        monkeypatch.setattr(GPT2Module, "training_step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train_run(inside / f"{stop}", more)
        monkeypatch.setattr(GPT2Module, "training_step", real)
        resumed = train_run(inside / f"{stop}", more, "--ckpt_path=last")
        assert resumed.name == "version_0" and same_weights(final_weights(straight), final_weights(resumed)), stop
    assert not (inside / "stores").exists()
    other = [*streamed_options, "--data.window_shards=3", f"--trainer.default_root_dir={inside / 'straight'}"]
    code, _, err = call(cli.main, *other, "--ckpt_path", straight)
    assert code == 4 and "window_shards was 2, now 3" in err
    local = [word for word in streamed_options if "streaming" not in word and "cache_dir" not in word]
    code, _, err = call(cli.main, *local, "--data.streaming=false", "--data.cache_dir=c", "--ckpt_path", straight)
    assert code == 4 and "window_shards was 2, now None" in err
    # With a rate of nothing the weights stay as they began, so what is validated is the same model.
    still = ("--trainer.max_steps=7", "--model.optimizer.lr=0", "--model.optimizer.adamw_lr=0")
    losses = [
        [row["val_loss"] for row in logged_rows(train_run(inside / name, words, *still)) if "val_loss" in row]
        for name, words in (("a", options), ("b", streamed_options))
    ]
    assert losses[0] == losses[1] and losses[0]


def test_a_url_without_streaming_is_a_config_problem(options: list[str], call: Callable[..., Outcome]) -> None:
    code, _, err = call(cli.main, *options, "--data.cache_dir=memory://stores")
    assert code == 2 and "data.cache_dir memory://stores: a URL needs data.streaming true" in err


@pytest.mark.parametrize("word", ["--part=1/1", "--merge=2"])
def test_a_store_is_not_built_at_a_url(
    word: str, streamed_options: list[str], inside: Path, call: Callable[..., Outcome]
) -> None:
    code, _, err = call(cli.main, *streamed_options, word)
    assert code == 2 and "--part and --merge build a store on a local disk" in err and "--data.streaming false" in err


def test_a_killed_process_leaves_files_and_the_next_one_deletes_them(streamed_options: list[str], inside: Path) -> None:
    words = [sys.executable, str(ROOT / "trainer.py"), *streamed_options, f"--data.cache_dir={inside / 'built'}"]
    with subprocess.Popen([*words, "--trainer.max_steps=100000"], stderr=subprocess.DEVNULL) as killed:
        until = time.monotonic() + 60
        while not [*inside.rglob("*.ckpt")]:
            assert time.monotonic() < until and killed.poll() is None
            time.sleep(0.02)
        killed.kill()
    assert here(inside / ".cache/gpt2kit")
    ended = subprocess.run([*words, "--trainer.max_steps=10"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert not [*(inside / ".cache/gpt2kit/streamed").glob("*/")]
