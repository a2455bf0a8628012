"""From text to batches: building the token store, its size, and the speed of batches, compared with two libraries.

    python bench/data.py --output bench.json

The text is the Python files of this environment, the tokenizer a byte-level BPE of 32,768 tokens. Two libraries are
measured if they are installed: `datasets` (map, then tokens grouped into blocks, as in run_clm.py) and `litdata`
(optimize with a TokensLoader, as in its documentation). Each line is a document; gpt2kit also builds the text as one
document. Each build runs in a process of its own, bound to one or two cores; loaders take turns in one process. A
figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT, collect_python, report, run_timed

sys.path.insert(0, str(ROOT / "src"))

from gpt2kit.data import build
from gpt2kit.data.build import Corpus
from gpt2kit.data.index import Index, Shard, shard_name
from gpt2kit.data.store import TokenStore
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer

BLOCK = 1024
GPT2KIT = "gpt2kit"
ONE_DOCUMENT = "gpt2kit, one document"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=48, help="of text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=1000, help="batches of 8 blocks per loader and round")
    parser.add_argument("--cold", type=int, default=512, help="MB of the store that is read from the disk")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--build", nargs=5, help=argparse.SUPPRESS)  # one build, in a process of its own
    args = parser.parse_args()
    if args.build:
        way, cores, text, tokenizer_folder, folder = args.build
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
        begin = time.perf_counter()
        BUILDS[way](Path(text), tokenizer_folder, Path(folder), int(cores))
        print(time.perf_counter() - begin)
        return
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        text = collect_python(work / "text.txt", args.megabytes * 1_000_000)
        options = ["--files", str(text), "--vocab_size", "32768", "--output_dir", str(work / "tokenizer")]
        run_timed([sys.executable, str(ROOT / "train_tokenizer.py"), *options])
        ways = [GPT2KIT, *(name for name in ("datasets", "litdata") if importlib.util.find_spec(name))]
        rows += measure_builds(text, work, [GPT2KIT, ONE_DOCUMENT, *ways[1:]], args.rounds)
        rows += measure_loaders(work, ways, args.rounds, args.batches)
        rows += measure_cold_reads(work / "cold", args.cold)
    report(rows, args.output)


def measure_builds(text: Path, work: Path, ways: list[str], rounds: int) -> list[dict[str, object]]:
    """Return MB/s, the largest memory of the main process, and disk use, for each way on one and two cores."""
    results: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for turn in range(rounds):
        for way in ways:
            for cores in (1, 2):
                folder = work / f"{way}-{cores}-{turn}"
                command = [sys.executable, __file__, "--build", way, str(cores), str(text), str(work / "tokenizer")]
                _, memory, output = run_timed([*command, str(folder)], cores)
                seconds = float(output.split()[-1])
                results.setdefault((way, cores), []).append((text.stat().st_size / 1e6 / seconds, memory))
    rows = []
    for (way, cores), figures in results.items():
        disk = sum(path.stat().st_size for path in (work / f"{way}-{cores}-0").rglob("*") if path.is_file())
        speed, memory = (statistics.median(part) for part in zip(*figures, strict=True))
        own_speed = statistics.median(speed for speed, _ in results[GPT2KIT, cores])
        rows.append(
            {
                "what": f"build, cores: {cores}",
                "with": way,
                "figure": f"{speed:.1f} MB/s",
                "memory": f"{memory:.0f} MB",
                "disk": f"{disk / 1e6:.1f} MB",
                "gpt2kit / this": f"{own_speed / speed:.1f}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def build_gpt2kit(text: Path, tokenizer_folder: str, folder: Path, cores: int) -> None:
    build.open_or_build(Corpus([text], tokenizer.load(tokenizer_folder), Reader("line")), folder)


def build_one_document(text: Path, tokenizer_folder: str, folder: Path, cores: int) -> None:
    """Build the text as one document, without the cost of many short ones."""
    build.open_or_build(Corpus([text], tokenizer.load(tokenizer_folder), Reader("file")), folder)


def build_datasets(text: Path, tokenizer_folder: str, folder: Path, cores: int) -> None:
    """Tokenize with map, then join and split into blocks with another map."""
    import datasets
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(tokenizer_folder)
    fast.model_max_length = 1 << 30

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": fast([line + fast.eos_token for line in rows["text"]])["input_ids"]}

    def group(rows: dict[str, list[list[int]]]) -> dict[str, Any]:
        joined = [token for row in rows["input_ids"] for token in row]
        length = len(joined) // BLOCK * BLOCK
        return {"input_ids": [joined[at : at + BLOCK] for at in range(0, length, BLOCK)]}

    processes = cores if cores > 1 else None
    raw = datasets.load_dataset("text", data_files=str(text), split="train", cache_dir=str(folder))
    ids = raw.map(encode, batched=True, remove_columns=["text"], num_proc=processes)
    ids.map(group, batched=True, num_proc=processes).save_to_disk(str(folder / "blocks"))


def build_litdata(text: Path, tokenizer_folder: str, folder: Path, cores: int) -> None:
    """Run `optimize` over parts of the file, one for each worker."""
    import functools

    import litdata

    size = text.stat().st_size
    parts = [(size * part // cores, size * (part + 1) // cores) for part in range(cores)]
    litdata.optimize(
        fn=functools.partial(lit_tokens, str(text), tokenizer_folder),
        inputs=parts,
        output_dir=str(folder / "blocks"),
        num_workers=cores,
        chunk_bytes="64MB",
        item_loader=litdata.TokensLoader(block_size=BLOCK),
        verbose=False,
    )


def lit_tokens(text: str, tokenizer_folder: str, part: tuple[int, int]) -> Iterator[Any]:
    import torch

    loaded = tokenizer.load(tokenizer_folder)
    eos = tokenizer.eos_id(loaded)
    with open(text, "rb") as file:
        file.seek(part[0])
        if part[0]:
            file.readline()
        while file.tell() <= part[1] and (line := file.readline()):
            ids = loaded.encode(line.decode().rstrip("\n"), add_special_tokens=False).ids
            yield torch.tensor([*ids, eos], dtype=torch.int)


BUILDS: dict[str, Callable[[Path, str, Path, int], None]] = {
    GPT2KIT: build_gpt2kit,
    ONE_DOCUMENT: build_one_document,
    "datasets": build_datasets,
    "litdata": build_litdata,
}


def measure_loaders(work: Path, ways: list[str], rounds: int, batches: int) -> list[dict[str, object]]:
    """Return million tokens/s of each loader with blocks of 1,024 in random order, and the time to its first batch."""
    importlib.import_module("gpt2kit.data.batches")  # so that the loader's time does not include importing torch
    rates: dict[tuple[str, int, int], list[float]] = {}
    firsts: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(rounds):
        for way in ways:
            for batch_size, workers in ((8, 0), (32, 0), (32, 1)):
                begin = time.perf_counter()
                batch = iter(LOADERS[way](work, batch_size, workers))
                next(batch)
                firsts.setdefault((way, batch_size, workers), []).append(time.perf_counter() - begin)
                count = max(batches * 8 // batch_size, 1)
                begin = time.perf_counter()
                for _ in range(count):
                    next(batch)
                rate = count * batch_size * BLOCK / (time.perf_counter() - begin) / 1e6
                rates.setdefault((way, batch_size, workers), []).append(rate)
                del batch
    rows = []
    for (way, batch_size, workers), each in rates.items():
        rate = statistics.median(each)
        rows.append(
            {
                "what": f"batches of {batch_size}, workers: {workers}",
                "with": way,
                "figure": f"{rate:.0f} M tokens/s",
                "first batch": f"{statistics.median(firsts[way, batch_size, workers]) * 1000:.0f} ms",
                "gpt2kit / this": f"{statistics.median(rates[GPT2KIT, batch_size, workers]) / rate:.1f}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def load_gpt2kit(work: Path, batch_size: int, workers: int) -> Iterator[Any]:
    from gpt2kit.data.batches import BlockDataset, TrainBatches
    from gpt2kit.data.order import block_order

    (folder,) = (path.parent for path in (work / f"{GPT2KIT}-1-0").rglob("index.json"))
    store = TokenStore(folder)
    order = block_order(len(store), BLOCK, BLOCK, batch_size, seed=1, shuffle=True)
    return iter(TrainBatches(BlockDataset(store, BLOCK), order.micro_batches(0, batch_size, 0, 1), workers))


def load_datasets(work: Path, batch_size: int, workers: int) -> Iterator[Any]:
    import datasets
    from torch.utils.data import DataLoader

    blocks = datasets.load_from_disk(str(work / "datasets-1-0" / "blocks")).with_format("torch")
    return endless(DataLoader(blocks, batch_size=batch_size, shuffle=True, num_workers=workers))


def load_litdata(work: Path, batch_size: int, workers: int) -> Iterator[Any]:
    import litdata

    folder = str(work / "litdata-1-0" / "blocks")
    blocks = litdata.StreamingDataset(folder, item_loader=litdata.TokensLoader(BLOCK), shuffle=True, drop_last=True)
    return endless(litdata.StreamingDataLoader(blocks, batch_size=batch_size, num_workers=workers))


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


LOADERS: dict[str, Callable[[Path, int, int], Iterator[Any]]] = {
    GPT2KIT: load_gpt2kit,
    "datasets": load_datasets,
    "litdata": load_litdata,
}


def measure_cold_reads(folder: Path, megabytes: int) -> list[dict[str, object]]:
    """Measure the speed of checksums, and of batches from files that are not in the page cache."""
    from gpt2kit.data.batches import BlockDataset, TrainBatches
    from gpt2kit.data.order import block_order

    folder.mkdir()
    shards = []
    for number in range(max(megabytes // 128, 1)):
        raw = np.random.default_rng(number).integers(0, 32768, 1 << 26).astype("<u2").tobytes()
        (folder / shard_name(number)).write_bytes(raw)
        (folder / f"{number:06d}.doc").write_bytes(b"")
        digest, empty = hashlib.sha256(raw).hexdigest(), hashlib.sha256(b"").hexdigest()
        shards.append(Shard(shard_name(number), 1 << 26, 0, 0, 0, 0, digest, empty))
    (folder / "index.json").write_text(Index("<u2", 0, True, "", [], [], shards).to_json())
    rows = []
    begin = time.perf_counter()
    TokenStore(folder)
    rows.append(
        {
            "what": "checksums at the first opening",
            "with": GPT2KIT,
            "figure": f"{len(shards) * 128 / (time.perf_counter() - begin):.0f} MB/s",
        }
    )
    drop_cached_files(folder)
    store = TokenStore(folder)
    order = block_order(len(store), BLOCK, BLOCK, 8, seed=1, shuffle=True)
    batches = iter(TrainBatches(BlockDataset(store, BLOCK), order.micro_batches(0, 8, 0, 1)))
    begin = time.perf_counter()
    for _ in range(500):
        next(batches)
    rate = 500 * 8 * BLOCK / (time.perf_counter() - begin) / 1e6
    rows.append({"what": "batches of 8 from the disk", "with": GPT2KIT, "figure": f"{rate:.0f} M tokens/s"})
    return rows


def drop_cached_files(folder: Path) -> None:
    """Drop the files from the page cache."""
    os.sync()
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
