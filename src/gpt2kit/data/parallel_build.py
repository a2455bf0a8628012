"""A token store built in parts, on any number of machines, then joined to the very files of a single build.

Part i of n takes a run of the text's files, about an n-th of their bytes, and makes an ordinary store of it: so it goes
on after a kill, and, if it failed, is made again alone. Its `.doc` files say, besides, how many
characters and tokens each piece of text has, on which the cutting into files depends; so the merge only counts, and
copies tokens. That runs at the speed of disks, while a core encodes 5 to 50 MB/s: it is the encoding that is spread.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2kit import files as durable
from gpt2kit.data import build, cache
from gpt2kit.data.build import Corpus, Progress
from gpt2kit.data.store import HASH, Shard, TokenStore, documents_file, shard_name, unpacked
from gpt2kit.errors import DataError, UserError
from gpt2kit.text import sources
from gpt2kit.text.reader import Split
from gpt2kit.text.sources import Report
from gpt2kit.tokenization import tokenizer as tokenizers

_LAUNCHED = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
_COPIED = 1 << 22
"""Tokens copied at once."""


def numbers(part: str) -> tuple[int, int]:
    """Which part of how many: `3/16`, counted from 1; or `auto`, by the rank that torchrun or srun has given.

    Not by a SLURM array's: there, a part that is made again alone would take itself for all of them.
    """
    launched = next((pair for pair in _LAUNCHED if all(name in os.environ for name in pair)), None)
    if part == "auto" and launched is None:
        raise UserError("--part auto: not started by torchrun or srun. Say which part, such as 3/16")
    if part == "auto" and launched:
        rank, count = (int(os.environ[name]) for name in launched)
        return rank + 1, count
    words = part.split("/")
    if len(words) == 2 and all(word.isdecimal() for word in words) and 1 <= int(words[0]) <= int(words[1]):
        return int(words[0]), int(words[1])
    raise UserError(f"--part {part}: must be a part and their number, from 1/16 to 16/16, or auto")


def corpus_of(corpus: Corpus, number: int, count: int) -> Corpus | None:
    """The text of one part; None if there are more parts than text for them. Part 1 of 1 is the corpus itself."""
    if count == 1:
        return corpus
    if corpus.reader.max_documents is not None:
        raise UserError("reader.max_documents: counts over all files, so not with --part. Leave it out")
    sizes = [sources.size(path) for path in corpus.paths]
    if not any(sizes):
        sizes = [1] * len(sizes)
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    of = np.minimum(middles * count // sum(sizes), count - 1).astype(int) + 1
    own = [path for path, part in zip(corpus.paths, of.tolist(), strict=True) if part == number]
    return replace(corpus, paths=own, part=f"{number}/{count}") if own else None


def build_each(corpora: Mapping[Split, Corpus], number: int, count: int, cache_dir: Path) -> list[str]:
    """Build one part of some splits' stores; a line for each."""
    told = []
    for split, corpus in corpora.items():
        if part := corpus_of(corpus, number, count):
            store = build.open_with_bar(part, cache_dir, f"{split} text, part {number}")
            told.append(f"{split} text: part {number} of {count}: {len(part.paths)} files, {store.tokens:,} tokens")
        else:
            told.append(f"{split} text: no file is left for part {number} of {count}")
    return told


def merge_each(corpora: Mapping[Split, Corpus], count: int, cache_dir: Path) -> list[str]:
    """Make some splits' stores of their parts; a line for each."""
    stores = {split: merge(corpus, count, cache_dir, f"{split} text") for split, corpus in corpora.items()}
    return [f"{split} text: {store.documents:,} documents, {store.tokens:,} tokens" for split, store in stores.items()]


def merge(corpus: Corpus, count: int, cache_dir: Path, what: str = "text") -> TokenStore:
    """Make the store of a corpus from its parts, all of which must be finished; they are deleted then."""
    some = [(number, corpus_of(corpus, number, count)) for number in range(1, count + 1)]
    found = {number: _opened(part, cache_dir) for number, part in some if part}

    def joined(folder: Path, corpus: Corpus, progress: Progress) -> tuple[list[str], list[Shard]]:
        if missing := [number for number, store in found.items() if store is None]:
            raise DataError(
                f"--merge {count}: not finished in {cache_dir}: part {', '.join(map(str, missing))} (or they were "
                f"made of another text, or by other options). Run --part {missing[0]}/{count} again"
            )
        return _joined([store for store in found.values() if store is not None], folder, corpus, progress)

    store = build.open_with_bar(corpus, cache_dir, what, joined)
    for part in found.values():
        if part is not None and count > 1:
            part.close()
            cache.remove(part.folder)
    return store


def _opened(part: Corpus, cache_dir: Path) -> TokenStore | None:
    """The store of a part, if it is finished."""
    try:
        return TokenStore(cache_dir / part.key(cache_dir))
    except FileNotFoundError:
        return None


@dataclass
class _Cut:
    """A token file to be: its pieces, its tokens, the documents that end in it, and what is open at its end."""

    pieces: int = 0
    tokens: int = 0
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    counts: list[NDArray[np.int64]] = field(default_factory=list)
    open_tokens: int = 0


def _joined(parts: list[TokenStore], folder: Path, corpus: Corpus, progress: Progress) -> tuple[list[str], list[Shard]]:
    """Write the token files, those excepted that are there and sound; what the parts have met, too."""
    report = _report(parts, corpus)
    recorded, broken = build.finished_shards(folder)
    parts = [part for part in parts if part.tokens]
    total = sum(part.tokens - 1 for part in parts) + 1
    made: list[Shard] = []
    begin = 0
    for number, cut in enumerate(_cuts(parts, corpus)):
        known = recorded[number] if number < len(recorded) else None
        if known is None or known.name in broken:
            tokens = _tokens(parts, begin, begin + cut.tokens, corpus)
            shard = _write(folder / shard_name(number), tokens, cut)
            if known is None:
                build.add_to_journal(folder, shard)
        if known is not None and (known.pieces, known.tokens) != (cut.pieces, cut.tokens):
            build.clear_journal(folder)
            raise DataError(
                f"{folder}: its journal does not fit the parts, and was deleted. Run the same command again"
            )
        made.append(known or shard)
        begin += cut.tokens
        progress(begin, total)
    build.refuse_empty(made, corpus, report)
    return report.lines(), made


def _report(parts: list[TokenStore], corpus: Corpus) -> Report:
    """What all parts have met together, judged as one reading."""
    whole = Report(corpus.reader.bad_share)
    for part in parts:
        met = json.loads(part.notes[0])
        whole.records += met["records"]
        whole.bad += met["bad"]
        for what, (times, first) in met["met"].items():
            whole.note(what, first, times)
    whole.finish()
    return whole


def _cuts(parts: list[TokenStore], corpus: Corpus) -> Iterator[_Cut]:
    """Where a single build begins another file: at the first end of a batch of pieces behind enough tokens."""
    cut, characters = _Cut(tokens=1), 0  # the first token of a store ends no document
    for part in parts:
        for hashes, counts, pieces in _documents(part):
            ends, tokens = pieces[:, 0] % 2 == 0, pieces[:, 1]
            sums = np.cumsum(pieces[:, 0] // 2)
            taken = passed = 0  # pieces and documents
            while True:
                before = int(sums[taken - 1]) if taken else 0
                end = int(np.searchsorted(sums, before + build.BATCH - characters)) + 1
                some = slice(taken, min(end, len(pieces)))
                documents = slice(passed, passed + int(ends[some].sum()))
                cut.pieces += some.stop - some.start
                cut.tokens += int(tokens[some].sum()) + (documents.stop - passed) * corpus.append_eos
                cut.hashes.append(hashes[documents])
                cut.counts.append(counts[documents])
                last = np.flatnonzero(ends[some])
                rest = slice(some.start + int(last[-1]) + 1 if len(last) else some.start, some.stop)
                cut.open_tokens = int(tokens[rest].sum()) + (0 if len(last) else cut.open_tokens)
                taken, passed = some.stop, documents.stop
                if end > len(pieces):
                    characters += int(sums[-1]) - before if len(sums) else 0
                    break
                characters = 0
                if cut.tokens >= corpus.shard_tokens:
                    yield cut
                    cut = _Cut(open_tokens=cut.open_tokens)
    if cut.pieces:
        yield cut


def _documents(part: TokenStore) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]]:
    """Of each file of a part: hashes and sizes of its documents; of each piece twice its characters, plus one if its
    document goes on, and its tokens."""
    for shard in part.shards:
        raw, count = part.documents_of(shard), shard.documents
        values = unpacked(raw[count * HASH.itemsize :])
        yield np.frombuffer(raw, HASH, count), values[: 3 * count].reshape(-1, 3), values[3 * count :].reshape(-1, 2)


def _tokens(parts: list[TokenStore], begin: int, end: int, corpus: Corpus) -> Iterator[NDArray[np.unsignedinteger]]:
    """Some tokens of all parts in a row, of which each but the first loses its first one."""
    if not begin:
        yield np.array([tokenizers.eos_id(corpus.tokenizer)], corpus.dtype)
    at = 1
    for part in parts:
        low, high = max(begin - at, 0) + 1, min(end - at, part.tokens - 1) + 1
        for first in range(low, high, _COPIED):
            yield part[first : min(first + _COPIED, high)]
        at += part.tokens - 1


def _write(target: Path, tokens: Iterator[NDArray[np.unsignedinteger]], cut: _Cut) -> Shard:
    """Copy tokens into one file, and write what is said of its documents beside it."""
    hasher = hashlib.sha256()
    count = 0
    with durable.replacing(target) as temporary, open(temporary, "wb") as file:
        for some in tokens:
            file.write(some.data)
            hasher.update(some.data)
            count += len(some)
    if count != cut.tokens:
        raise DataError(f"{target}: the parts have {count} tokens for it instead of {cut.tokens}. Delete them")
    counts = np.concatenate(cut.counts)
    documents = documents_file(np.concatenate(cut.hashes).tolist(), counts.ravel().tolist())
    sums = counts.sum(axis=0).tolist()
    shard = Shard(
        name=target.name,
        tokens=count,
        pieces=cut.pieces,
        documents=len(counts),
        bytes=sums[1],
        characters=sums[2],
        open_tokens=cut.open_tokens,
        sha256=hasher.hexdigest(),
        documents_sha256=hashlib.sha256(documents).hexdigest(),
    )
    with durable.replacing(target.with_name(shard.documents_name)) as temporary:
        temporary.write_bytes(documents)
    return shard
