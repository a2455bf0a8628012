"""The memory and the disk that a store takes do not grow with the corpus: 1 GB and 4 GB of made text.

    python tests/prove_data.py [--gigabytes 1 4]

Each build runs in a process of its own; the memory is the largest that the process ever held.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = 600
"""MB of memory that a build may take."""

BUILD = """
import sys
from pathlib import Path
from gpt2kit.data import build as shards
from gpt2kit.data.build import Corpus
from gpt2kit.text import Reader
from gpt2kit.tokenization import tokenizer
corpus = Corpus(sorted(Path(sys.argv[1]).glob("*.txt")), tokenizer.load(sys.argv[2]), Reader())
store = shards.open_or_build(corpus, Path(sys.argv[3]))
size = sum(path.stat().st_size for path in store.folder.iterdir())
print(store.bytes + store.documents, store.documents, store.tokens, size)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 4])
    given = parser.parse_args()
    memories = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        text = work / "text"
        text.mkdir()
        for gigabytes in sorted(given.gigabytes):
            size = write(text, round(gigabytes * 1e9))
            if not (work / "tokenizer").exists():
                words = ["--files", str(text / "000.txt"), "--vocab_size", "32768", "--output_dir", "tokenizer"]
                subprocess.run(
                    [sys.executable, str(ROOT / "train_tokenizer.py"), *words],
                    cwd=work,
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
            begin = time.perf_counter()
            memory, told = build(text, work)
            seconds = time.perf_counter() - begin
            read, documents, tokens, disk = map(int, told.split())
            memories.append(memory)
            print(
                f"{size / 1e9:.2f} GB: {size / 1e6 / seconds:.1f} MB/s, {memory:.0f} MB of memory, {documents:,} "
                f"documents, {tokens:,} tokens, {disk / tokens:.4f} bytes of disk a token",
                flush=True,
            )
            assert read == size, "each byte of the text is a document's, or a line's end"
            assert memory <= MOST, f"{memory:.0f} MB of memory"
            assert disk <= 2 * tokens * 1.01 + 20 * documents, "2 bytes a token, and what each document takes"
    assert max(memories) <= 1.1 * min(memories), f"memory grows with the corpus: {memories}"
    print("proved")


def write(folder: Path, size: int) -> int:
    """Fill the folder with files of some 100 MB until it holds so many bytes; the bytes that it holds."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvwyz", k=draw.randint(1, 9))) for _ in range(50_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    sums = [sum(weights[:1])]
    for weight in weights[1:]:
        sums.append(sums[-1] + weight)
    held = sum(path.stat().st_size for path in folder.iterdir())
    for number in range(len(list(folder.iterdir())), 1 << 20):
        if held >= size:
            break
        own = random.Random(number)
        with open(folder / f"{number:03d}.txt", "w", encoding="utf-8", newline="\n") as file:
            while file.tell() < 100_000_000 and held + file.tell() < size:
                some = own.choices(words, cum_weights=sums, k=20_000)
                at = 0
                while at < len(some):
                    count = own.randint(20, 400)
                    file.write(" ".join(some[at : at + count]) + "\n")
                    at += count
        held += (folder / f"{number:03d}.txt").stat().st_size
    return held


def build(text: Path, work: Path) -> tuple[float, str]:
    """The largest memory in MB of a process that builds the store, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, "-c", BUILD, str(text), str(work / "tokenizer"), str(work / "cache")]
    with tempfile.TemporaryFile() as told:
        child = subprocess.Popen(words, stdout=told, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"the build ended with {child.returncode}")
        told.seek(0)
        return usage.ru_maxrss / 1024, told.read().decode()


if __name__ == "__main__":
    main()
