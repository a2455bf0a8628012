"""The speed of reading a token store through a simulated slow network.

    python bench/streaming.py
    python bench/streaming.py --shard_tokens 67108864 --shards 12

The store holds random tokens on the local disk. Each request waits for the latency, and all requests share the
bandwidth. Nothing is trained: batches are read as fast as they arrive.
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
from machine import ROOT, report

sys.path.insert(0, str(ROOT / "src"))

from gpt2kit.data.batches import BlockDataset, TrainBatches
from gpt2kit.data.index import INDEX, Index, Shard, shard_name
from gpt2kit.data.remote import StreamedStore
from gpt2kit.data.window_order import WindowOrder, prefetching_batches, window_order

_CHUNK = 1 << 18


class SlowFileSystem(LocalFileSystem):
    """A local folder that behaves as if it were behind a network: `slow://PATH`."""

    protocol = "slow"
    latency = 0.030
    bytes_per_second = 100e6
    _lock = threading.Lock()
    _free = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:  # type: ignore[override]
        return super()._strip_protocol(str(path).removeprefix("slow://"))

    def _pass(self, count: int) -> None:
        """Wait until this many bytes have passed through the connection that all requests share."""
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
    parser.add_argument("--shards", type=int, default=48, help="shards in the store")
    parser.add_argument("--shard_tokens", type=int, default=1 << 22, help="tokens in each")
    parser.add_argument("--window_shards", type=int, default=4)
    parser.add_argument("--block_size", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--latency_ms", type=float, default=30.0)
    parser.add_argument("--megabytes_per_s", type=float, default=100.0)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    fsspec.register_implementation("slow", SlowFileSystem)
    SlowFileSystem.latency = args.latency_ms / 1000
    SlowFileSystem.bytes_per_second = args.megabytes_per_s * 1e6
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "store", args.shards, args.shard_tokens)
        figures = measure(Path(folder), args)
    report([figures], args.output)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds to the first batch, at the start and in the middle of an epoch, and its tokens per second."""
    megabytes = 2 * args.shard_tokens / 1e6
    figures: dict[str, Any] = {"store": f"{args.shards} shards of {megabytes:.1f} MB, window {args.window_shards}"}
    figures["connection"] = f"{args.latency_ms:g} ms, {args.megabytes_per_s:g} MB/s"
    figures["batch"] = f"{args.batch_size} x {args.block_size}"
    for name, fraction in (("middle", 0.5), ("start", 0.0)):
        with FolderSize(folder / name) as size:
            begin = time.perf_counter()
            store = StreamedStore(f"slow://{folder / 'store'}", folder / name)
            order = windows_of(store, args)
            step = int(order.steps_per_epoch * fraction)
            batches = iter(
                TrainBatches(
                    BlockDataset(store, args.block_size),
                    prefetching_batches(order, store.prefetch, step, args.batch_size, 0, 1),
                )
            )
            next(batches)
            figures[f"first batch, {name}, s"] = round(time.perf_counter() - begin, 3)
            if not fraction:
                steps = order.steps_per_epoch - 1
                for _ in range(steps):
                    next(batches)
                seconds = time.perf_counter() - begin
                tokens = (steps + 1) * args.batch_size * args.block_size
                figures["million tokens/s, one epoch"] = round(tokens / seconds / 1e6, 1)
            for number in order.shards_at(step):  # or their downloads would slow down the next measurement
                store.shard(number)
        figures[f"largest local MB, {name}"] = round(size.largest / 1e6, 1)
        del batches, store
    return figures


def windows_of(store: StreamedStore, args: argparse.Namespace) -> WindowOrder:
    """Return the order of blocks, with one batch per step."""
    sizes = [shard.tokens for shard in store.shards]
    block = args.block_size
    return window_order(sizes, block, block, args.window_shards, args.batch_size, seed=1, shuffle=True)


def write_store(folder: Path, count: int, tokens: int) -> None:
    """Write a store of random tokens in shards of one size."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    shards = []
    for number in range(count):
        raw = random.integers(0, 1 << 16, tokens, dtype=np.uint16).tobytes()
        (folder / shard_name(number)).write_bytes(raw)
        digests = (hashlib.sha256(raw).hexdigest(), hashlib.sha256(b"").hexdigest())
        shards.append(Shard(shard_name(number), tokens, 0, 0, 0, 0, *digests))
        (folder / shards[-1].doc_name).write_bytes(b"")
    (folder / INDEX).write_text(Index("<u2", 0, True, "random", [], [], shards).to_json())


class FolderSize:
    """Measures the largest size of a folder's files, every 5 ms."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._done, self.largest = folder, threading.Event(), 0

    def __enter__(self) -> FolderSize:
        self._thread = threading.Thread(target=self._measure)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _measure(self) -> None:
        while not self._done.wait(0.005):
            total = 0
            for parent, _, names in os.walk(self._folder):
                for name in names:
                    try:
                        total += os.stat(os.path.join(parent, name)).st_size
                    except FileNotFoundError:
                        continue
            self.largest = max(self.largest, total)


if __name__ == "__main__":
    main()
