"""Stores that live elsewhere: built there, continued there, read through a bounded window, over a bad network."""

from __future__ import annotations

import functools
import json
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
from conftest import ROOT, Outcome
from test_train import equal, rows, train, weights

from gpt2kit.cli import train as cli
from gpt2kit.data import build, fetching, uploading
from gpt2kit.data.batches import EvalBatches, Rows, TrainBatches
from gpt2kit.data.build import Corpus
from gpt2kit.data.encoding_gigatoken import WrongIds
from gpt2kit.data.remote import StreamedStore
from gpt2kit.data.store import TokenStore
from gpt2kit.data.windows import foretold, window_order
from gpt2kit.errors import DataError
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer
from gpt2kit.training.module import GPT2Module

MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_PAUSES", [0.01] * 4)
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


def uploaded(key: str) -> dict[str, bytes]:
    """The files of a store in memory."""
    return {path.rsplit("/", 1)[-1]: MEMORY.cat_file(path) for path in MEMORY.find(f"/stores/{key}")}


def built(store: TokenStore) -> dict[str, bytes]:
    """The files of a store on the local disk."""
    return {path.name: path.read_bytes() for path in store.folder.iterdir() if path.name != "verified.json"}


def here(scratch: Path, pattern: str = "*.bin") -> list[Path]:
    """What lies on the local disk."""
    return [*(scratch / "streamed").rglob(pattern)]


def settled(store: StreamedStore) -> None:
    """Wait until nothing is being fetched."""
    for future in list(store._held.values()):
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


def test_built_elsewhere_it_is_the_same_store(text: Corpus, local: TokenStore, memory: str, tmp_path: Path) -> None:
    store = uploading.open_or_build(text, memory, tmp_path / "s")
    assert uploaded(local.folder.name) == built(local)
    assert not here(tmp_path / "s"), "nothing stays here of what was built"
    assert len(store.shards) > 20 and store.fingerprint == local.fingerprint
    assert store[0 : len(store)].tolist() == local[0 : len(local)].tolist()
    for start in range(0, len(local), 170):
        assert np.array_equal(store[start : start + 450], local[start : start + 450])
    assert np.array_equal(store.lengths(), local.lengths())
    assert np.array_equal(np.concatenate([*store.hashes()]), np.concatenate([*local.hashes()]))
    again = uploading.open_or_build(text, memory, tmp_path / "s")
    assert again[300:900].tolist() == local[300:900].tolist()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same machine", "another machine"])
@pytest.mark.parametrize("call_number", [1, 2, 3, 11, 12, 13])
def test_a_killed_build_goes_on_from_what_was_uploaded(
    call_number: int,
    elsewhere: bool,
    text: Corpus,
    local: TokenStore,
    memory: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the middle of an upload: of a token file, of the file beside it, or of the journal."""
    real = type(MEMORY).put_file
    sent: list[str] = []

    def dying(self: Any, source: str, target: str, **more: Any) -> None:
        sent.append(Path(target).name)
        if len(sent) == call_number + 1:
            MEMORY.pipe_file(target, Path(source).read_bytes()[:-9])  # such as a server that is not atomic has then
            raise KeyboardInterrupt
        real(self, source, target, **more)

    monkeypatch.setattr(type(MEMORY), "put_file", dying)
    with pytest.raises(KeyboardInterrupt):
        uploading.open_or_build(text, memory, tmp_path / "one")
    assert "index.json" not in uploaded(local.folder.name)
    finished = sent.count("journal.jsonl") - 1 - (sent[-1] == "journal.jsonl")
    monkeypatch.setattr(type(MEMORY), "put_file", lambda *args, **more: sent.append(Path(args[2]).name) or real(*args))  # type: ignore[func-returns-value]
    sent.clear()
    uploading.open_or_build(text, memory, tmp_path / ("two" if elsewhere else "one"))
    assert uploaded(local.folder.name) == built(local)
    assert [name for name in sent if name.endswith(".bin")] == [s.name for s in local.shards[finished:]]


def test_what_may_be_wrong_is_deleted_there(
    text: Corpus, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = build._write_shard
    left = [5]

    def doubting(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise WrongIds("these ids are wrong")
        return real(*args)

    monkeypatch.setattr(build, "_write_shard", doubting)
    with pytest.raises(WrongIds):
        uploading.open_or_build(text, memory, tmp_path / "s")
    assert not MEMORY.find("/stores")


def test_what_has_vanished_there_is_made_again_alone(
    text: Corpus, local: TokenStore, memory: str, tmp_path: Path
) -> None:
    uploading.open_or_build(text, memory, tmp_path / "s")
    place = f"/stores/{local.folder.name}"
    for name in ("000003.bin", "000007.doc"):
        MEMORY.rm(f"{place}/{name}")
    store = StreamedStore(f"memory:/{place}", tmp_path / "s")
    with pytest.raises(DataError, match=r"000003\.bin: is not there, but index\.json names it\. Delete "):
        store.shard(3)
    with pytest.raises(DataError, match=r"000007\.doc: is not there"):
        store.lengths()
    MEMORY.rm(f"{place}/index.json")
    uploading.open_or_build(text, memory, tmp_path / "s")
    assert uploaded(local.folder.name) == built(local)


def test_a_damaged_index_is_made_again(
    text: Corpus, local: TokenStore, memory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uploading.open_or_build(text, memory, tmp_path / "s")
    place = f"/stores/{local.folder.name}/index.json"
    whole = MEMORY.cat_file(place)
    for content in (whole[:-9], whole.replace(b"000002.bin", b"../../a.bin"), b"\xff"):
        MEMORY.pipe_file(place, content)
        with pytest.raises(DataError, match="not a sound index"):
            StreamedStore(f"{memory}/{local.folder.name}", tmp_path / "s")
        uploading.open_or_build(text, memory, tmp_path / "s")
        assert uploaded(local.folder.name) == built(local)
        assert "it is made again from the text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "harm", [lambda raw: raw[:-2], lambda raw: raw[:8] + bytes([raw[8] ^ 1]) + raw[9:]], ids=["short", "bit"]
)
def test_a_damaged_file_is_one_line(
    harm: Callable[[bytes], bytes],
    text: Corpus,
    local: TokenStore,
    memory: str,
    tmp_path: Path,
    call: Callable[..., Outcome],
) -> None:
    store = uploading.open_or_build(text, memory, tmp_path / "s")
    place = f"/stores/{local.folder.name}"
    for name in ("000002.bin", "000002.doc"):
        MEMORY.pipe_file(f"{place}/{name}", harm(MEMORY.cat_file(f"{place}/{name}")))
    for act in (lambda _: store[0 : len(store)], lambda _: store.lengths()):
        code, _, err = call(act)
        assert code == 3 and len(err.splitlines()) == 1
        assert "000002." in err and "fetched twice, does not fit its checksum" in err and "Delete it and" in err
    settled(store)
    assert not here(tmp_path / "s", ".*.tmp") and "000002.bin" not in {path.name for path in here(tmp_path / "s")}


def test_a_web_server_that_fails_now_and_then(
    text: Corpus, local: TokenStore, served: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    url, knobs = served
    store = uploading.open_or_build(text, f"{url}/local", tmp_path / "s")
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


def test_a_place_that_cannot_be_written_to(
    text: Corpus,
    served: tuple[str, dict[str, Any]],
    memory: str,
    tmp_path: Path,
    call: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("aiohttp")

    def fail(error: Exception) -> Callable[..., None]:
        def put_file(*args: object, **more: object) -> None:
            raise error

        return put_file

    def refused(place: str) -> None:
        code, _, err = call(lambda _: uploading.open_or_build(text, place, tmp_path / "s"))
        assert code == 3 and len(err.splitlines()) == 1
        assert "no finished store of this text, and it cannot be built there" in err and "copy its folder" in err

    refused(f"{served[0]}/none")
    for error in (PermissionError(13, "Forbidden"), NotImplementedError()):
        monkeypatch.setattr(type(MEMORY), "put_file", fail(error))
        refused(memory)


def test_only_a_window_is_on_the_local_disk_and_it_is_read_ahead(
    text: Corpus, local: TokenStore, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = uploading.open_or_build(text, memory, tmp_path / "s")
    fetched: list[str] = []
    real = type(MEMORY).get_file
    monkeypatch.setattr(
        type(MEMORY),
        "get_file",
        lambda self, source, *args: fetched.append(source) or real(self, source, *args),  # type: ignore[func-returns-value]
    )
    order = window_order([s.tokens for s in store.shards], 16, 16, 3, 4, seed=1, shuffle=True)
    batches = iter(TrainBatches(Rows(store, 16, 1), foretold(order, store.want, 0, 4, 0, 1)))
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
    store.want([])
    for batch, (a, b) in enumerate(zip(EvalBatches(store, 16, 5), EvalBatches(local, 16, 5), strict=True)):
        assert torch.equal(a, b), batch
        settled(store)
        assert len(here(tmp_path / "s")) <= 3
    assert len(fetched) == len(store.shards)


def test_a_journal_there_that_does_not_fit_the_text_is_emptied_there(
    text: Corpus, local: TokenStore, memory: str, tmp_path: Path
) -> None:
    uploading.open_or_build(text, memory, tmp_path / "s")
    place = f"/stores/{local.folder.name}"
    lines = MEMORY.cat_file(f"{place}/journal.jsonl").decode().splitlines()
    record = json.loads(lines[2])
    lines[2] = json.dumps({**record, "pieces": record["pieces"] + 1})
    MEMORY.pipe_file(f"{place}/journal.jsonl", "\n".join(lines).encode() + b"\n")
    MEMORY.rm(f"{place}/index.json")
    with pytest.raises(DataError, match="does not fit the text"):
        uploading.open_or_build(text, memory, tmp_path / "s")
    uploading.open_or_build(text, memory, tmp_path / "s")
    assert uploaded(local.folder.name) == built(local)


def test_a_start_in_mid_epoch_fetches_only_its_window(text: Corpus, memory: str, tmp_path: Path) -> None:
    store = uploading.open_or_build(text, memory, tmp_path / "s")
    order = window_order([s.tokens for s in store.shards], 16, 16, 2, 4, seed=1, shuffle=True)
    straight = iter(TrainBatches(Rows(store, 16, 1), foretold(order, store.want, 0, 2, 0, 1)))
    skipped = [next(straight) for _ in range(100)]
    later = uploading.open_or_build(text, memory, tmp_path / "other")
    batches = iter(TrainBatches(Rows(later, 16, 1), foretold(order, later.want, 40, 2, 0, 1)))
    assert all(torch.equal(next(batches), skipped[number]) for number in range(80, 100))
    settled(later)
    assert len(here(tmp_path / "other")) <= 4


def test_ranks_share_what_is_fetched_and_a_killed_one_leaves_nothing(
    text: Corpus, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    real = type(MEMORY).get_file

    def slow(self: Any, source: str, *args: Any) -> None:
        fetched.append(source)
        time.sleep(0.02)
        real(self, source, *args)

    ranks = [uploading.open_or_build(text, memory, tmp_path / "s") for _ in range(2)]
    monkeypatch.setattr(type(MEMORY), "get_file", slow)
    assert ranks[0].folder == ranks[1].folder
    for rank in ranks:
        rank.want([1, 2, 3])
    tokens = [[rank.shard(n) for n in (1, 2, 3)] for rank in ranks]
    assert len(fetched) == 3
    ranks[0].want([4])
    settled(ranks[0])
    assert all(np.array_equal(a, b) for a, b in zip(*tokens, strict=True)), "a deleted file stays readable"
    assert ranks[1].shard(2).tolist() == tokens[1][1].tolist()
    folder, root = ranks[0].folder, tmp_path / "s" / "streamed"
    left = root / "0123"
    left.mkdir()
    (left / ".000001.bin.7.tmp").write_bytes(b"half")  # as a killed process leaves it, whose locks are gone
    third = uploading.open_or_build(text, memory, tmp_path / "s")
    assert not left.exists() and folder.exists()
    assert len(here(tmp_path / "s")) == 1, "what another process uses stays"
    del third, rank, ranks
    assert not [*root.glob("*/")], "at the end nothing is left"


def test_a_file_that_another_process_deletes_is_fetched_again(text: Corpus, memory: str, tmp_path: Path) -> None:
    store = uploading.open_or_build(text, memory, tmp_path / "s")
    store.want([1, 2])
    settled(store)
    other = uploading.open_or_build(text, memory, tmp_path / "s")
    for path in here(tmp_path / "s"):
        path.unlink()
    assert other.shard(1).tolist() == store.shard(1).tolist()


def test_many_changes_of_mind_leave_only_what_is_wanted(text: Corpus, memory: str, tmp_path: Path) -> None:
    store = uploading.open_or_build(text, memory, tmp_path / "s")
    draw = np.random.default_rng(1)
    for _ in range(50):
        store.want(draw.choice(len(store.shards), 4, replace=False).tolist())
    store.want([5, 6])
    assert [len(store.shard(n)) for n in (5, 6)] == [store.shards[n].tokens for n in (5, 6)]
    until = time.monotonic() + 10
    while {path.name for path in here(tmp_path / "s")} != {"000005.bin", "000006.bin"}:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_local_place_is_copied_in_windows(text: Corpus, local: TokenStore, tmp_path: Path) -> None:
    store = uploading.open_or_build(text, str(tmp_path / "nfs"), tmp_path / "s")
    files = {path.name: path.read_bytes() for path in (tmp_path / "nfs" / local.folder.name).iterdir()}
    assert files == built(local)
    assert store[0 : len(store)].tolist() == local[0 : len(local)].tolist()
    assert uploading.open_or_build(text, str(tmp_path / "local"), tmp_path / "s").fingerprint == local.fingerprint


def test_a_full_disk_stops_at_once(
    text: Corpus, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]
) -> None:
    store = uploading.open_or_build(text, memory, tmp_path / "s")
    asked: list[str] = []

    def full(self: Any, source: str, target: str) -> None:
        asked.append(source)
        raise OSError(28, os.strerror(28), target)

    monkeypatch.setattr(type(MEMORY), "get_file", full)
    code, _, err = call(lambda _: store.want([1]) or store.shard(1))  # type: ignore[func-returns-value]
    assert code == 5 and "no space left" in err and len(asked) <= 2


@pytest.fixture
def streamed_options(options: list[str], memory: str) -> list[str]:
    kept = [word for word in options if "cache_dir" not in word]
    more = ("--data.streaming=true", "--data.shard_tokens=300", "--data.window_shards=2", "--save_every=3")
    return [*kept, f"--data.cache_dir={memory}", *more, "--trainer.log_every_n_steps=1"]


def test_a_streamed_run_resumes_in_mid_epoch_and_validates_like_a_local_one(
    options: list[str],
    streamed_options: list[str],
    inside: Path,
    call: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = [*streamed_options, "--trainer.val_check_interval=7", "--trainer.max_steps=45"]
    straight = train(inside / "straight", more)
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
            train(inside / f"{stop}", more)
        monkeypatch.setattr(GPT2Module, "training_step", real)
        resumed = train(inside / f"{stop}", more, "--ckpt_path=last")
        assert resumed.name == "version_0" and equal(weights(straight), weights(resumed)), stop
    assert not (inside / "stores").exists() and not [*(inside / ".cache/gpt2kit").rglob("*-building")]
    other = [*streamed_options, "--data.window_shards=3", f"--trainer.default_root_dir={inside / 'straight'}"]
    code, _, err = call(cli.main, *other, "--ckpt_path", straight)
    assert code == 4 and "window_shards was 2, now 3" in err
    local = [word for word in streamed_options if "streaming" not in word and "cache_dir" not in word]
    code, _, err = call(cli.main, *local, "--data.streaming=false", "--data.cache_dir=c", "--ckpt_path", straight)
    assert code == 4 and "window_shards was 2, now None" in err
    # With a rate of nothing the weights stay as they began, so what is validated is the same model.
    still = ("--trainer.max_steps=7", "--model.optimizer.lr=0", "--model.optimizer.adamw_lr=0")
    losses = [
        [row["val_loss"] for row in rows(train(inside / name, words, *still)) if "val_loss" in row]
        for name, words in (("a", options), ("b", streamed_options))
    ]
    assert losses[0] == losses[1] and losses[0]


def test_a_url_without_streaming_is_a_config_problem(options: list[str], call: Callable[..., Outcome]) -> None:
    code, _, err = call(cli.main, *options, "--data.cache_dir=memory://stores")
    assert code == 2 and "data.cache_dir memory://stores: a URL needs data.streaming true" in err


def test_a_killed_process_leaves_files_and_the_next_one_deletes_them(streamed_options: list[str], inside: Path) -> None:
    words = [sys.executable, str(ROOT / "trainer.py"), *streamed_options, f"--data.cache_dir={inside / 'stores'}"]
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
