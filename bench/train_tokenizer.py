"""Time and memory of training tokenizers, and the speed of encoding: a table, and the same as JSON.

    python bench/train_tokenizer.py --chinese poems.txt --output bench.json

English and Python text is 50 MB of the Python files in this environment. `--chinese` is a text of one's own, one
document a line; without it those rows are left out. Each figure is taken in a process of its own, the memory is its
largest, interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from machine import ROOT, collect, finish, timed

_ENCODE = """
import sys, time
from gpt2kit.tokenization import tokenizer
found = tokenizer.load(sys.argv[1])
with open(sys.argv[2], encoding="utf-8") as file:
    text = file.read(24_000_000)
pieces = [text[at : at + 65536] for at in range(0, len(text), 65536)]
found.encode_batch_fast(pieces[:8], add_special_tokens=False)
begin = time.perf_counter()
for at in range(0, len(pieces), 64):
    found.encode_batch_fast(pieces[at : at + 64], add_special_tokens=False)
print(len(text.encode()) / 1e6 / (time.perf_counter() - begin))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chinese", type=Path, help="a text file, one document a line")
    parser.add_argument("--megabytes", type=int, default=50, help="of English and Python text")
    parser.add_argument("--kinds", nargs="*", default=[], help="also these kinds, with the default options")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        english = collect(Path(folder) / "english.txt", given.megabytes * 1_000_000)
        plans = [("English/Python", english, ["--vocab_size", "32768"], "bpe")]
        if given.chinese:
            plans += [("Chinese", given.chinese, [], kind) for kind in ("bpe", "char")]
        plans += [(name, path, [], kind) for kind in given.kinds for name, path, _, _ in plans[:2]]
        for name, path, options, kind in plans:
            out = Path(folder) / f"{len(rows)}"
            words = ["--files", str(path), "--kind", kind, "--output_dir", str(out), *options]
            seconds, megabytes, _ = timed([sys.executable, str(ROOT / "train_tokenizer.py"), *words])
            row: dict[str, object] = {"text": name, "MB": round(path.stat().st_size / 1e6, 1), "kind": kind}
            row |= {"options": " ".join(options), "train s": round(seconds, 1), "train MB": round(megabytes)}
            for cores in (1, 2):
                _, _, told = timed([sys.executable, "-c", _ENCODE, str(out), str(path)], cores)
                row[f"encode MB/s, {cores} core"] = round(float(told), 1)
            rows.append(row)
            print(row, flush=True)
    finish(rows, given.output)


if __name__ == "__main__":
    main()
