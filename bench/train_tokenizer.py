"""Time and memory of training tokenizers, and the speed of encoding.

    python bench/train_tokenizer.py --chinese poems.txt --output bench.json

The English and Python text is 50 MB of the Python files in this environment. `--chinese` names a text with one document
per line; without it those rows are omitted. Each figure is measured in a process of its own. Memory is the process's
largest, including interpreter and libraries.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from machine import ROOT, collect_python, report, run_timed

_ENCODE = """
import sys, time
from gpt2kit.tokenization import tokenizer
loaded = tokenizer.load(sys.argv[1])
with open(sys.argv[2], encoding="utf-8") as file:
    text = file.read(24_000_000)
pieces = [text[at : at + 65536] for at in range(0, len(text), 65536)]
loaded.encode_batch_fast(pieces[:8], add_special_tokens=False)
begin = time.perf_counter()
for at in range(0, len(pieces), 64):
    loaded.encode_batch_fast(pieces[at : at + 64], add_special_tokens=False)
print(len(text.encode()) / 1e6 / (time.perf_counter() - begin))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chinese", type=Path, help="a text file with one document per line")
    parser.add_argument("--megabytes", type=int, default=50, help="of English and Python text")
    parser.add_argument("--kinds", nargs="*", default=[], help="further kinds, with the default options")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        english = collect_python(Path(folder) / "english.txt", args.megabytes * 1_000_000)
        plans = [("English/Python", english, ["--vocab_size", "32768"], "bpe")]
        if args.chinese:
            plans += [("Chinese", args.chinese, [], kind) for kind in ("bpe", "char")]
        plans += [(name, path, [], kind) for kind in args.kinds for name, path, _, _ in plans[:2]]
        for name, path, options, kind in plans:
            out = Path(folder) / f"{len(rows)}"
            command_options = [
                "--files",
                str(path),
                "--reader.document",
                "line",
                "--kind",
                kind,
                "--output_dir",
                str(out),
                *options,
            ]
            seconds, megabytes, _ = run_timed([sys.executable, str(ROOT / "train_tokenizer.py"), *command_options])
            row: dict[str, object] = {"text": name, "MB": round(path.stat().st_size / 1e6, 1), "kind": kind}
            row |= {"options": " ".join(options), "training, s": round(seconds, 1), "training, MB": round(megabytes)}
            for cores in (1, 2):
                _, _, output = run_timed([sys.executable, "-c", _ENCODE, str(out), str(path)], cores)
                row[f"encoding, MB/s, cores: {cores}"] = round(float(output), 1)
            rows.append(row)
            print(row, flush=True)
    report(rows, args.output)


if __name__ == "__main__":
    main()
