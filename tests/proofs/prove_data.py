"""`make prove`: building a store needs no more memory for 4 GB of text than for 1 GB, and a known amount of disk space.

    python tests/proofs/prove_data.py [--gigabytes 1 4]

The text is generated. Each build runs in its own process, whose peak resident memory is measured.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# MB of memory that a build may take.
MAX_MEMORY = 600
BUILD = """
import sys
from pathlib import Path
from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.text import Reader
from gpt2kit.tokenization import tokenizer
corpus = Corpus(sorted(Path(sys.argv[1]).glob("*.txt")), tokenizer.load(sys.argv[2]), Reader("line"))
store = open_or_build(corpus, Path(sys.argv[3]))
size = sum(path.stat().st_size for path in store.folder.iterdir())
print(store.bytes + store.documents, store.documents, store.tokens, size)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 4])
    arguments = parser.parse_args()
    memories = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        text = work / "text"
        text.mkdir()
        for gigabytes in sorted(arguments.gigabytes):
            size = write(text, round(gigabytes * 1e9))
            if not (work / "tokenizer").exists():
                args = ["--files", str(text / "000.txt"), "--vocab_size", "32768", "--output_dir", "tokenizer"]
                command = [sys.executable, str(ROOT / "train_tokenizer.py"), *args]
                subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
            start = time.perf_counter()
            memory, output = build(text, work)
            seconds = time.perf_counter() - start
            read, documents, tokens, disk = map(int, output.split())
            memories.append(memory)
            print(
                f"{size / 1e9:.2f} GB: {size / 1e6 / seconds:.1f} MB/s, {memory:.0f} MB of memory, {documents:,} "
                f"documents, {tokens:,} tokens, {disk / tokens:.4f} bytes of disk per token",
                flush=True,
            )
            assert read == size, "each byte of the text is in a document or ends a line"
            assert memory <= MAX_MEMORY, f"{memory:.0f} MB of memory"
            assert disk <= 2 * tokens * 1.01 + 20 * documents, "2 bytes per token and 20 per document"
    assert max(memories) <= 1.1 * min(memories), f"memory grows with the corpus: {memories}"
    print("proved")


def write(folder: Path, size: int) -> int:
    """Fill the folder with files of about 100 MB until it has `size` bytes; return its size."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvwyz", k=draw.randint(1, 9))) for _ in range(50_000)]
    sums = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))
    written = sum(path.stat().st_size for path in folder.iterdir())
    for number in range(len(list(folder.iterdir())), 1 << 20):
        if written >= size:
            break
        file_draw = random.Random(number)
        with open(folder / f"{number:03d}.txt", "w", encoding="utf-8", newline="\n") as file:
            while file.tell() < 100_000_000 and written + file.tell() < size:
                drawn = file_draw.choices(words, cum_weights=sums, k=20_000)
                first = 0
                while first < len(drawn):
                    count = file_draw.randint(20, 400)
                    file.write(" ".join(drawn[first : first + count]) + "\n")
                    first += count
        written += (folder / f"{number:03d}.txt").stat().st_size
    return written


def build(text: Path, work: Path) -> tuple[float, str]:
    """Build the store in a process; return its peak resident memory in MB, and its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", BUILD, str(text), str(work / "tokenizer"), str(work / "cache")]
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdout=output, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"the build exited with {child.returncode}")
        output.seek(0)
        return usage.ru_maxrss / 1024, output.read().decode()


if __name__ == "__main__":
    main()
