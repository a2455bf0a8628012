"""Speed, memory and recall of the search for near duplicates, on a text with known near copies.

    python bench/near_duplicates.py poems.jsonl sources/ --gigabytes 1
    python bench/near_duplicates.py poems.jsonl sources/ --gigabytes 0.05 --library rensa

The text has the documents of the files first, and then documents made of lines that are drawn from them at random. A
part of all documents comes a second time, later, after an edit: of single characters in random places, or of one
stretch that is replaced. Similarities are exact ones, of all shingles. The libraries get the same shingles and the same
number of hashes and bands.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT
from numpy.typing import NDArray

sys.path.insert(0, str(ROOT / "src"))

from gpt2kit.data import minhash
from gpt2kit.text.reader import Reader, read_rest
from gpt2kit.text.sources import find_files

STRENGTHS = [0.0, 0.02, 0.05, 0.1]
KINDS = ["single characters", "one stretch"]
# Edges of the rows of similarity.
RANGES = [0.0, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0]
# A copy comes among this number of later documents.
DELAY = 1000
LONGEST = 200_000  # characters of a document; longer ones are not taken


@dataclasses.dataclass
class Planted:
    """What was planted in a text."""

    documents: int = 0
    copies: array = dataclasses.field(default_factory=lambda: array("q"))
    originals: array = dataclasses.field(default_factory=lambda: array("q"))
    edits: array = dataclasses.field(default_factory=lambda: array("b"))  # number of the strength, and of the kind


def documents(files: Sequence[Path | str]) -> Iterator[str]:
    """Yield the documents of files."""
    pieces = Reader(errors="replace").read(files)
    for first in pieces:
        yield "".join([first, *read_rest(first, pieces)])


def take(name: str, size: float, chance: random.Random) -> list[str]:
    """Return documents of a file or folder with at most about this number of bytes, in random order."""
    texts = [text for text in documents(find_files([name])) if len(text) <= LONGEST]
    chance.shuffle(texts)
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return texts[: int(np.searchsorted(sizes, size)) + 1]


def make_text(files: Sequence[str], target: Path, size: int, fraction: float, seed: int) -> Planted:
    """Write a text of about this number of bytes with planted copies."""
    chance, planted = random.Random(seed), Planted()
    groups = [take(name, size / len(files), chance) for name in files]  # lines are mixed within each
    weights = [len(texts) / sum(map(len, texts)) for texts in groups]  # about as much text of each
    waiting: list[tuple[int, int, str]] = []
    written = 0

    pools = [[line for text in texts for line in text.split("\n")] for texts in groups]
    lengths = [[text.count("\n") + 1 for text in texts] for texts in groups]

    def originals() -> Iterator[str]:
        for texts in groups:
            yield from texts
        while True:
            (group,) = chance.choices(range(len(groups)), weights)
            yield "\n".join(chance.choices(pools[group], k=chance.choice(lengths[group])))

    with open(target, "w", encoding="utf-8") as file:

        def write(text: str) -> int:
            nonlocal written
            line = json.dumps(text, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode("utf-8", "replace"))
            planted.documents += 1
            return planted.documents - 1

        for text in originals():
            if written >= size:
                break
            if not text.strip():
                continue  # no document
            number = write(text)
            if chance.random() < fraction:
                edit = chance.randrange(len(STRENGTHS) * len(KINDS))
                waiting.append((number, edit, make_copy(chance, text, edit)))
            if len(waiting) > DELAY * fraction:
                original, edit, copy = waiting.pop(chance.randrange(len(waiting)))
                if not copy:
                    continue
                planted.copies.append(write(copy))
                planted.originals.append(original)
                planted.edits.append(edit)
    return planted


def make_copy(chance: random.Random, text: str, edit: int) -> str:
    """Return an edited copy. An edit changes at least one character, unless it has no strength."""
    strength, kind = STRENGTHS[edit // len(KINDS)], KINDS[edit % len(KINDS)]
    count = max(1, round(strength * len(text))) if strength else 0
    letters = [letter for letter in text if letter.isalnum()] or ["x"]
    if kind == "one stretch":
        start = chance.randrange(len(text) - count + 1)
        return text[:start] + "".join(chance.choices(letters, k=count)) + text[start + count :]
    characters = list(text)
    for place in chance.sample(range(len(text)), count):
        new = chance.choice(letters)
        characters[place] = chance.choice([new, "", characters[place] + new])
    return "".join(characters)


# The search of each library: the number of the earlier near copy of each document, or another number; -1 if it stays.


def search_gpt2kit(texts: Iterator[str], threshold: float) -> NDArray[np.int32]:
    sketcher, count = minhash.Sketcher(threshold), 0
    for text in texts:
        sketcher.add([text])
        count += 1
    begin = time.perf_counter()
    copies = minhash.find_copies(sketcher.signatures(), np.full(count, threshold))
    print(f"of these, {time.perf_counter() - begin:.1f} s to compare signatures", file=sys.stderr)
    return copies


def search_rensa(texts: Iterator[str], threshold: float) -> NDArray[np.int32]:
    """rensa from end to end, with the shingles as strings."""
    from rensa import RMinHashDeduplicator

    bands = minhash.BUCKETS // minhash.band_length(threshold)
    finder = RMinHashDeduplicator(threshold, minhash.BUCKETS, True, num_bands=16 if 128 % bands else bands)
    stays: list[bool] = []
    for batch in batches(texts):
        pairs = [(str(len(stays) + number), string_shingles(text)) for number, text in enumerate(batch)]
        stays += finder.add_pairs(pairs)
    return np.where(stays, -1, 0).astype(np.int32)


def search_rensa_signatures(texts: Iterator[str], threshold: float) -> NDArray[np.int32]:
    """Signatures by rensa from the same hashes of shingles; the search by gpt2kit."""
    from rensa import RMinHash

    def minima(batch: Sequence[str]) -> NDArray[np.uint32]:
        hashes, owners = minhash.shingles(batch)
        offsets = np.searchsorted(owners, np.arange(len(batch) + 1)).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, minhash.BUCKETS, 1)
        return np.array(matrix.to_rows(), np.uint32)

    minhash._bucket_minima = minima
    return search_gpt2kit(texts, threshold)


def search_datasketch(texts: Iterator[str], threshold: float) -> NDArray[np.int32]:
    from datasketch import MinHash, MinHashLSH

    length = minhash.band_length(threshold)
    index = MinHashLSH(num_perm=minhash.BUCKETS, params=(minhash.BUCKETS // length, length))
    permutations = MinHash(num_perm=minhash.BUCKETS).permutations
    copies, kept = [], {}
    for batch in batches(texts):
        hashes, owners = minhash.shingles(batch)
        words = np.split((hashes >> np.uint64(32)).astype(np.uint32), np.searchsorted(owners, np.arange(1, len(batch))))
        for own in words:
            sketch = MinHash(
                num_perm=minhash.BUCKETS, hashfunc=lambda word: word, permutations=permutations, scheme="affine32"
            )
            sketch.update_batch(np.unique(own))
            found = [number for number in index.query(sketch) if kept[number].jaccard(sketch) >= threshold]
            if not found:
                index.insert(len(copies), sketch, check_duplication=False)
                kept[len(copies)] = sketch
            copies.append(min(found, default=-1))
    return np.array(copies, np.int32)


def batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if sum(map(len, batch[-1:])) + len(batch) * 64 > 1 << 18 or len(batch) == 1000:
            yield batch
            batch = []
    if batch:
        yield batch


def string_shingles(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter.isalnum())
    return [plain[i : i + (2 if "\u3400" <= letter <= "\u9fff" else 5)] for i, letter in enumerate(plain)]


SEARCHES = {
    "gpt2kit": search_gpt2kit,
    "rensa": search_rensa,
    "rensa_signatures": search_rensa_signatures,
    "datasketch": search_datasketch,
}


def run_search(library: str, text: Path, threshold: float, output: Path) -> None:
    """Search in this process, and print seconds and memory as JSON."""
    begin = time.perf_counter()
    copies = SEARCHES[library](documents([text]), threshold)
    figures = {"seconds": time.perf_counter() - begin, "cpu": time.process_time(), "memory": peak_memory()}
    np.save(output, copies)
    print(json.dumps(figures))


def peak_memory() -> float:
    """Return the largest resident memory so far in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def similarity(a: str, b: str) -> float:
    """Return the exact Jaccard similarity of the shingles."""
    x, y = np.unique(minhash.shingles([a])[0]), np.unique(minhash.shingles([b])[0])
    both = len(np.intersect1d(x, y, assume_unique=True))
    return both / max(len(x) + len(y) - both, 1)


def report(text: Path, planted: Planted, copies: NDArray[np.int32], threshold: float, sample: int, seed: int) -> None:
    """Print recall by strength and by similarity, and the precision of a sample of all documents that are left out."""
    chance = random.Random(seed)
    planted_numbers = chance.sample(range(len(planted.copies)), min(sample, len(planted.copies)))
    left_out = np.flatnonzero(copies >= 0)
    other = np.setdiff1d(left_out, np.frombuffer(planted.copies, np.int64))
    print(f"{len(left_out):,} of {planted.documents:,} documents left out, of which {len(other):,} were not planted")
    checked = chance.sample(other.tolist(), min(sample, len(other)))
    needed = {planted.copies[n] for n in planted_numbers} | {planted.originals[n] for n in planted_numbers}
    needed |= {*checked, *copies[checked].tolist()}
    texts = {number: own for number, own in enumerate(documents([text])) if number in needed}

    by_edit: dict[int, list[tuple[float, bool]]] = collections.defaultdict(list)
    for n in planted_numbers:
        copy, original = planted.copies[n], planted.originals[n]
        by_edit[planted.edits[n]].append((similarity(texts[original], texts[copy]), bool(copies[copy] >= 0)))
    print("\n| edit | copies | mean similarity | left out | of those above the threshold |\n|---|---|---|---|---|")
    for edit, pairs in sorted(by_edit.items(), key=lambda item: (item[0] % 2, item[0])):
        above = [found for value, found in pairs if value >= threshold]
        name = f"{STRENGTHS[edit // len(KINDS)]:.0%} of the characters, {KINDS[edit % len(KINDS)]}"
        mean, found = np.mean([value for value, _ in pairs]), np.mean([found for _, found in pairs])
        print(f"| {name} | {len(pairs):,} | {mean:.2f} | {found:.1%} | {np.mean(above):.1%} |" if above else name)
    print("\n| similarity to the original | copies | left out |\n|---|---|---|")
    pairs = [pair for own in by_edit.values() for pair in own]
    for low, high in zip(RANGES, [*RANGES[1:], 2], strict=True):
        own = [found for value, found in pairs if low <= value < high]
        name = f"{low:g} to {high:g}" if high < 2 else "1"
        print(f"| {name} | {len(own):,} | {np.mean(own) if own else 0:.1%} |")
    if len(checked) and copies.max() > 0:
        values = np.array([similarity(texts[copies[number]], texts[number]) for number in checked])
        print(
            f"\nof {len(values):,} documents left out that were not planted, {np.mean(values >= threshold):.1%} have a "
            f"similarity of at least {threshold:g} to one that stays, {np.mean(values >= threshold - 0.05):.1%} of at "
            f"least {threshold - 0.05:g}, {np.mean(values >= threshold - 0.1):.1%} of at least {threshold - 0.1:g}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="lines are mixed within the documents of each")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--copies", type=float, default=0.1, help="fraction of the documents with a copy")
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--library", nargs="+", choices=SEARCHES, default=["gpt2kit"])
    parser.add_argument("--sample", type=int, default=20_000, help="pairs whose exact similarity is computed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--search", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.search:
        library, text, threshold, output = args.search
        run_search(library, Path(text), float(threshold), Path(output))
        return
    with tempfile.TemporaryDirectory() as folder:
        text, output = Path(folder) / "text.jsonl", Path(folder) / "copies.npy"
        planted = make_text(args.files, text, round(args.gigabytes * 1e9), args.copies, args.seed)
        print(f"{text.stat().st_size / 1e9:.2f} GB, {planted.documents:,} documents, {len(planted.copies):,} copies")
        for library in args.library:
            command: list[Any] = [sys.executable, __file__, "x", "--search", library, text, args.threshold, output]
            done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True)
            figures = json.loads(done.stdout)
            times = f"{figures['seconds']:.0f} s, of which {figures['cpu']:.0f} s on a core"
            print(f"\n{library}: {times}; {figures['memory']:.2f} GB at most", flush=True)
            report(text, planted, np.load(output), args.threshold, args.sample, args.seed)


if __name__ == "__main__":
    main()
