"""Speed of encoding on one core and more: the library's own loop, and gpt2kit's.

    python bench/encoding.py --files data/train/*.txt --tokenizer tokenizers/mine --json encoding.json

Without `--files` the text is the Python standard library's sources, without `--tokenizer` a byte-level one of 8,192
tokens is trained on it. What is timed is the way from files to ids: reading, encoding, and the hash of the ids. Each
figure is of a process of its own with this number of cores; the ways take turns, and medians are reported. Their ids
must be equal. On a busy machine the milliseconds of processor time that a megabyte takes are steadier than its speed.

    loop     one call of the library for each batch of a million characters, by its own threads
    gpt2kit  the same in slices, in the background, while the next text is read
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_RUN = """
import hashlib, json, os, sys, time
way, cores, folder, most, *paths = sys.argv[1:]
cores = int(cores)
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
import numpy as np
from pathlib import Path
from gpt2kit.data import build
from gpt2kit.text import Reader
from gpt2kit.tokenization import tokenizer
loaded = tokenizer.load(folder)
dtype = np.dtype("<u2" if tokenizer.size(loaded) <= 1 << 16 else "<u4")

def batches():
    batch, held, size = [], 0, 0
    for piece in Reader().read([Path(path) for path in paths]):
        batch.append(piece)
        held += len(piece)
        if held >= 1 << 20:
            size += sum(len(text.encode()) for text in batch)
            yield batch
            batch, held = [], 0
            if size >= int(most):
                return
    if batch:
        yield batch

def loop():
    for batch in batches():
        found = loaded.encode_batch_fast(batch, add_special_tokens=False)
        yield batch, [np.array(encoding.ids, dtype) for encoding in found]

hasher, size = hashlib.sha256(), 0
begin, before = time.perf_counter(), sum(os.times()[:4])
for texts, ids in loop() if way == "loop" else build.encode_batches(batches(), loaded, dtype):
    hasher.update(np.concatenate(ids).tobytes())
    size += sum(len(text.encode()) for text in texts)
seconds, spent = time.perf_counter() - begin, sum(os.times()[:4]) - before
print(json.dumps([size / 1e6 / seconds, spent * 1e9 / size, hasher.hexdigest()]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="+", help="any files that the trainer reads")
    parser.add_argument("--tokenizer", type=Path, nargs="+", help="folders")
    parser.add_argument("--megabytes", type=float, default=20, help="of text, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=["loop", "gpt2kit"], default=["loop", "gpt2kit"])
    parser.add_argument("--cores", type=int, nargs="+", default=sorted({1, 2, os.cpu_count() or 1}))
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = given.files or [collect(Path(folder) / "python.jsonl", int(given.megabytes * 1e6))]
        folders = given.tokenizer or [train(files, Path(folder) / "tokenizer")]
        rows = [row for trained in folders for row in measured(trained, files, given)]
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    print("\n" + " | ".join(rows[0]) + "\n" + " | ".join("---" for _ in rows[0]))
    for row in rows:
        print(" | ".join(str(value) for value in row.values()))
    print(f"\n{machine}, load {os.getloadavg()}")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2, ensure_ascii=False) + "\n")


def measured(trained: Path, files: list[Path], given: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each way and number of cores; `of loop` is the median of the ratios within each round."""
    plans = [(way, cores) for cores in given.cores for way in given.ways]
    speeds: dict[tuple[str, int], list[float]] = {plan: [] for plan in plans}
    spent: dict[tuple[str, int], list[float]] = {plan: [] for plan in plans}
    digests = set()
    for number in range(given.rounds):
        for way, cores in plans:
            speed, own, told = once(way, cores, trained, files, int(given.megabytes * 1e6))
            speeds[way, cores].append(speed)
            spent[way, cores].append(own)
            digests.add(told)
        print(f"round {number + 1} of {given.rounds} {trained.name}", file=sys.stderr, flush=True)
    if len(digests) != 1:
        sys.exit(f"error: {trained}: the ways give {len(digests)} different sequences of ids")
    rows = []
    for (way, cores), found in speeds.items():
        ratios = [one / base for one, base in zip(found, speeds.get(("loop", cores), found), strict=True)]
        row: dict[str, object] = {"tokenizer": trained.name, "way": way, "cores": cores}
        row |= {"MB/s": round(statistics.median(found), 2), "least": round(min(found), 2)}
        row |= {"most": round(max(found), 2), "of loop": round(statistics.median(ratios), 2)}
        rows.append(row | {"CPU ms/MB": round(statistics.median(spent[way, cores]), 1)})
    return rows


def once(way: str, cores: int, trained: Path, files: list[Path], most: int) -> tuple[float, float, str]:
    """MB/s, milliseconds of all processors for a MB, and the hash of the ids."""
    words = [sys.executable, "-c", _RUN, way, str(cores), str(trained), str(most), *map(str, files)]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "RAYON_NUM_THREADS": str(cores), "PYTHONPATH": paths}
    told = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    speed, spent, rest = json.loads(told)
    return speed, spent, rest


def collect(path: Path, most: int) -> Path:
    """The standard library's sources, one a record, up to a size."""
    size = 0
    with open(path, "w", encoding="utf-8") as file:
        for source in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
            try:
                text = source.read_text(encoding="utf-8") if "site-packages" not in source.parts else ""
            except UnicodeDecodeError:
                continue
            if text and "\0" not in text and size < most:
                file.write(json.dumps({"text": text}) + "\n")
                size += len(text)
    return path


def train(files: list[Path], folder: Path) -> Path:
    """A byte-level tokenizer of these files."""
    words = [sys.executable, str(ROOT / "train_tokenizer.py"), "--files", *map(str, files), "--output_dir", str(folder)]
    subprocess.run([*words, "--vocab_size", "8192"], check=True, stdout=subprocess.DEVNULL)
    return folder


if __name__ == "__main__":
    main()
