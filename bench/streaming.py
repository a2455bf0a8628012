"""Speed of reading a token store through a simulated slow network: a table, and the same as JSON.

    python bench/streaming.py --json bench.json
    python bench/streaming.py --shard_tokens 67108864 --shards 12

The store is of random tokens, on the local disk; each request waits for the latency, and all requests share the
bandwidth. Nothing is trained: batches are read as fast as they come.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from machine import ROOT, finish

sys.path.insert(0, str(ROOT / "src"))

from gpt2kit.data.batches import BlockDataset, TrainBatches
from gpt2kit.data.order import WindowOrder, prefetching_batches, window_order
from gpt2kit.data.remote import StreamedStore
from gpt2kit.data.store import INDEX, Index, Shard, shard_name

_CHUNK = 1 << 18


class SlowFileSystem(LocalFileSystem):
    """A local folder as if it were behind a network: `slow://PATH`."""

    protocol = "slow"
    latency = 0.030
    bytes_per_second = 100e6
    _lock = threading.Lock()
    _free = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:  # type: ignore[override]
        return super()._strip_protocol(str(path).removeprefix("slow://"))

    def _pass(self, count: int) -> None:
        """Wait until so many bytes have gone over the one line that all requests share."""
        with SlowFileSystem._lock:
            free = max(SlowFileSystem._free, time.monotonic()) + count / SlowFileSystem.bytes_per_second
            SlowFileSystem._free = free
        time.sleep(max(free - time.monotonic(), 0))

    def get_file(self, rpath: str, lpath: str, **more: Any) -> None:  # type: ignore[override]
        time.sleep(self.latency)
        with open(self._strip_protocol(rpath), "rb") as source, open(lpath, "wb") as target:
            while raw := source.read(_CHUNK):
                self._pass(len(raw))
                target.write(raw)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        time.sleep(self.latency)
        raw = Path(self._strip_protocol(path)).read_bytes()[start:end]
        self._pass(len(raw))
        return raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=48, help="token files in the store")
    parser.add_argument("--shard_tokens", type=int, default=1 << 22, help="tokens in each")
    parser.add_argument("--window_shards", type=int, default=4)
    parser.add_argument("--block_size", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--latency_ms", type=float, default=30.0)
    parser.add_argument("--megabytes_per_s", type=float, default=100.0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    fsspec.register_implementation("slow", SlowFileSystem)
    SlowFileSystem.latency = given.latency_ms / 1000
    SlowFileSystem.bytes_per_second = given.megabytes_per_s * 1e6
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "store", given.shards, given.shard_tokens)
        figures = measured(Path(folder), given)
    finish([figures], given.json)


def measured(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first batch at an epoch's beginning and in its middle, then one epoch's tokens a second."""
    megabytes = 2 * given.shard_tokens / 1e6
    figures: dict[str, Any] = {"store": f"{given.shards} files of {megabytes:.1f} MB, window {given.window_shards}"}
    figures["line"] = f"{given.latency_ms:g} ms, {given.megabytes_per_s:g} MB/s"
    figures["batch"] = f"{given.batch_size} x {given.block_size}"
    for name, share in (("middle", 0.5), ("beginning", 0.0)):
        with Watched(folder / name) as watched:
            begin = time.perf_counter()
            store = StreamedStore(f"slow://{folder / 'store'}", folder / name)
            order = ordered(store, given)
            step = int(order.steps_per_epoch * share)
            batches = iter(
                TrainBatches(
                    BlockDataset(store, given.block_size, 1),
                    prefetching_batches(order, store.prefetch, step, given.batch_size, 0, 1),
                )
            )
            next(batches)
            figures[f"first batch, {name}, s"] = round(time.perf_counter() - begin, 3)
            if not share:
                steps = order.steps_per_epoch - 1
                for _ in range(steps):
                    next(batches)
                seconds = time.perf_counter() - begin
                tokens = (steps + 1) * given.batch_size * given.block_size
                figures["million tokens/s, one epoch"] = round(tokens / seconds / 1e6, 1)
            for number in order.shards_at(step):  # so that none of them takes from the line when the next one is timed
                store.shard(number)
        figures[f"greatest local MB, {name}"] = round(watched.most / 1e6, 1)
        del batches, store
    return figures


def ordered(store: StreamedStore, given: argparse.Namespace) -> WindowOrder:
    """Windows, with one batch a step."""
    sizes = [shard.tokens for shard in store.shards]
    block = given.block_size
    return window_order(sizes, block, block, given.window_shards, given.batch_size, seed=1, shuffle=True)


def write_store(folder: Path, count: int, tokens: int) -> None:
    """A store of random tokens, in files of the same size."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(1)
    made = []
    for number in range(count):
        raw = draw.integers(0, 1 << 16, tokens, dtype=np.uint16).tobytes()
        (folder / shard_name(number)).write_bytes(raw)
        digests = (hashlib.sha256(raw).hexdigest(), hashlib.sha256(b"").hexdigest())
        made.append(Shard(shard_name(number), tokens, 0, 0, 0, 0, *digests))
        (folder / made[-1].doc_name).write_bytes(b"")
    (folder / INDEX).write_text(Index("<u2", 0, True, "random", [], [], made).to_json())


class Watched:
    """The most bytes that a folder's files had, looked at each 5 ms."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._over, self.most = folder, threading.Event(), 0

    def __enter__(self) -> Watched:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.005):
            total = 0
            for parent, _, names in os.walk(self._folder):
                for name in names:
                    try:
                        total += os.stat(os.path.join(parent, name)).st_size
                    except FileNotFoundError:
                        continue
            self.most = max(self.most, total)


if __name__ == "__main__":
    main()
