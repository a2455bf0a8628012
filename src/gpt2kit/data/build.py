"""Builds token stores: once for each corpus, never stale, never half-written, bit-identical however often it is killed.

A store's folder is named by its content's hash, so changed text or another tokenizer is another store. Each finished
token file is noted in a journal; a build that was killed goes on behind the last one. `store` opens what is built.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from gpt2kit import files as durable
from gpt2kit.data.store import (
    FORMAT,
    INDEX,
    JOURNAL,
    SOURCES,
    Damaged,
    Index,
    Shard,
    TokenStore,
    damaged,
    documents_file,
    shard_name,
)
from gpt2kit.errors import DataError
from gpt2kit.text import sources
from gpt2kit.text.reader import Part, Reader, Share
from gpt2kit.text.sources import Place, Report
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.sampling import batched

Progress = Callable[[int, int], None]
"""Called with the bytes of the files that are read, and those that they have; compressed ones count as they lie."""

Ids = NDArray[np.unsignedinteger]
Batch = tuple[list[str], list[Ids]]
"""Texts and their ids."""

# Characters of a batch: what is read, encoded and written at a time.
BATCH = 1 << 20
# Batches that are encoded, or wait to be, while the caller works on another one.
AHEAD = 2
# Characters encoded by one call of `tokenizers`: each takes 100 to 250 bytes meanwhile.
_SLICE = 1 << 16


@dataclass(frozen=True)
class Corpus:
    """Text and how it becomes tokens: all that decides a store's content.

    Args:
        paths: text files and URLs, in the order in which their documents follow one another.
        tokenizer: turns documents into ids.
        reader: turns files into documents.
        share: only these documents.
        append_eos: end each document with the end-of-document token.
        shard_tokens: tokens a file, about; also how much work a killed build can lose.
        part: which part of a text this is, such as `3/16`, to be merged with the others (`parallel_build`). A part may
            be empty.
        leading_eos: begin with an end-of-document token, as every store does; of the parts, only the first one.
    """

    paths: Sequence[Place]
    tokenizer: Tokenizer
    reader: Reader
    share: Share | None = None
    append_eos: bool = True
    shard_tokens: int = 1 << 26
    part: str = ""
    leading_eos: bool = True

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest that holds every id."""
        return np.dtype("<u2" if tokenizers.size(self.tokenizer) <= 1 << 16 else "<u4")

    def key(self, cache_dir: Path) -> str:
        """A name that changes with the text, the tokenizer, the reader's options, and the formats."""
        made_of = {
            "format": FORMAT,
            "tokenizer": tokenizers.fingerprint(self.tokenizer),
            "reader": self.reader.identity(),
            "files": sources.digests(self.paths, cache_dir),
            "formats": [sources.suffixes(path) for path in self.paths],  # the same bytes read as .txt and as .jsonl
            "share": asdict(self.share) if self.share else None,
            "append_eos": self.append_eos,
            "shard_tokens": self.shard_tokens,
            **({"part": [self.part, self.leading_eos]} if self.part else {}),
        }
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]


Make = Callable[[Path, Corpus, Progress], tuple[list[str], list[Shard]]]
"""Writes a store's token files into its folder; returns notes for people and the files."""


def open_or_build(
    corpus: Corpus, cache_dir: Path, progress: Progress = lambda done, total: None, make: Make | None = None
) -> TokenStore:
    """The store of a corpus; built now if it does not exist, mended if it is damaged.

    Args:
        corpus: the text, and how it becomes tokens.
        cache_dir: where stores lie, each in a folder named by the content it was made from.
        progress: told how far the reading is.
        make: writes the token files; by default from the text.
    """
    folder = cache_dir / corpus.key(cache_dir)
    if (found := _opened(folder)) is not None:  # a part may be empty, and an empty store is false
        return found
    from filelock import FileLock

    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # the system drops the lock of a process that dies
        if (found := _opened(folder, "it is built again from the text")) is not None:
            return found
        (folder / INDEX).unlink(missing_ok=True)
        build(corpus, folder, cache_dir, progress, make)
        return TokenStore(folder)


def open_with_bar(corpus: Corpus, cache_dir: Path, what: str, make: Make | None = None) -> TokenStore:
    """Open or build the store of a corpus, with a progress bar if there is a terminal; `what` names the text."""
    with tqdm(desc=f"tokenizing {what}", unit="B", unit_scale=True, leave=False, delay=1, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        return open_or_build(corpus, cache_dir, progress, make)


def build(corpus: Corpus, folder: Path, cache_dir: Path, progress: Progress, make: Make | None = None) -> None:
    """Make a store, continuing what its folder holds already; `cache_dir` remembers the texts' hashes."""
    before = sources.digests(corpus.paths, cache_dir)
    try:
        notes, shards = (make or encode)(folder, corpus, progress)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless something is in it, from which the next build continues
    for path, old, new in zip(corpus.paths, before, sources.digests(corpus.paths, cache_dir), strict=True):
        if old != new:
            raise DataError(f"{path}: was changed while it was being read. Run the same command again")
    durable.write_text(folder / INDEX, _index(corpus, shards, notes).to_json())


def _opened(folder: Path, remedy: str = "") -> TokenStore | None:
    """The store, if it is there and sound; used by now."""
    try:
        store = TokenStore(folder)
    except FileNotFoundError:
        return None
    except Damaged as error:
        if remedy:
            _note(f"{error}; {remedy}")
        return None
    with contextlib.suppress(OSError):
        os.utime(folder / INDEX)  # the time of its last use, by which `cache` prunes
    return store


def encode(folder: Path, corpus: Corpus, progress: Progress) -> tuple[list[str], list[Shard]]:
    """Write the token files, those excepted that are there and sound; what was met on the way, too."""
    recorded, broken = finished_shards(folder)
    report = Report(whole=not corpus.part)
    total = sum(sources.size(path) for path in corpus.paths)
    ends: collections.deque[_End] = collections.deque()
    pieces = _weighed(corpus.reader.read(corpus.paths, report, corpus.share), ends)
    shards: list[Shard] = []

    def batches(some: Iterator[str]) -> Iterator[Batch]:
        read = _reported(batched(some, BATCH), report, total, progress)
        return encode_batches(read, corpus.tokenizer, corpus.dtype)

    for known in recorded:
        own = itertools.islice(pieces, known.pieces)
        if known.name not in broken:
            collections.deque(own, maxlen=0)  # the reader reads on, to know what it met and where documents end
            passed = [ends.popleft() for _ in range(len(ends))]
            if (len(passed), *_sums(passed)) != (known.documents, known.bytes, known.characters):
                clear_journal(folder)
                raise DataError(
                    f"{folder / JOURNAL}: does not fit the text, and was deleted. Run the same command again"
                )
        elif _write_shard(folder, shards, batches(own), ends, corpus) != known:
            raise DataError(f"{folder / known.name}: built again, it is not what it was. Delete {folder}")
        shards.append(known)
    rest = batches(pieces)
    while shard := _write_shard(folder, shards, rest, ends, corpus):
        shards.append(shard)
        add_to_journal(folder, shard)
    if corpus.part:
        return [json.dumps({"records": report.records, "bad": report.bad, "met": report.met})], shards
    refuse_empty(shards, corpus, report)
    return report.lines(), shards


def encode_batches(
    batches: Iterable[list[str]], tokenizer: Tokenizer, dtype: np.dtype[np.unsignedinteger]
) -> Iterator[Batch]:
    """Yield each batch with the ids of each of its texts, in order; no special token is added to a text.

    A thread encodes, on all cores, while the caller reads text and writes ids. It never reads far ahead, so memory does
    not depend on the corpus. Exhaust or close the iterator, and the thread ends.
    """
    waiting: collections.deque[tuple[list[str], Future[list[Ids]]]] = collections.deque()
    pool = ThreadPoolExecutor(1, "encoding")
    try:
        for texts in batches:
            waiting.append((texts, pool.submit(_encode_batch, texts, tokenizer, dtype)))
            if len(waiting) == AHEAD:
                done, ids = waiting.popleft()
                yield done, ids.result()
        for done, ids in waiting:
            yield done, ids.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_batch(texts: list[str], tokenizer: Tokenizer, dtype: np.dtype[np.unsignedinteger]) -> list[Ids]:
    """Encode a batch in slices: the library's results take a hundred times the memory of the ids."""
    count = max(1, len(texts) * _SLICE // max(1, sum(map(len, texts))))
    arrays: list[Ids] = []
    for start in range(0, len(texts), count):
        encodings = tokenizer.encode_batch_fast(texts[start : start + count], add_special_tokens=False)
        arrays += [np.array(encoding.ids, dtype) for encoding in encodings]
    return arrays


def finished_shards(folder: Path) -> tuple[list[Shard], set[str]]:
    """Return what an earlier build has finished, and the names of those of its files that are missing or damaged."""
    for left in folder.glob(".*.tmp"):
        left.unlink()  # of a build that was killed; this one holds the lock
    recorded = _read_journal(folder)
    return recorded, set(damaged(folder, recorded))


def add_to_journal(folder: Path, shard: Shard) -> None:
    """Record a token file as finished, durably."""
    with open(folder / JOURNAL, "a", encoding="utf-8") as journal:
        journal.write(json.dumps(asdict(shard)) + "\n")
        journal.flush()
        os.fsync(journal.fileno())


def clear_journal(folder: Path) -> None:
    """Empty the journal: no token file counts as finished."""
    durable.write_text(folder / JOURNAL, "")


def refuse_empty(shards: list[Shard], corpus: Corpus, report: Report) -> None:
    """Raise if there was no text."""
    if not any(shard.documents for shard in shards):
        what = f"{corpus.paths[0]}{' and the others' if corpus.paths[1:] else ''}"
        share = corpus.share
        split = f" for the {share.high - share.low:.3g} of it that this split takes" if share else ""
        met = f" ({'; '.join(report.lines())})" if report.met else ""
        raise DataError(f"{what}: no text in it{split}{met}. Name files that hold text")


@dataclass(frozen=True)
class _End:
    """A whole document's hash and size."""

    hash: int
    bytes: int
    characters: int


def _sums(ends: list[_End]) -> tuple[int, int]:
    """Bytes and characters of some documents."""
    return sum(end.bytes for end in ends), sum(end.characters for end in ends)


def _weighed(pieces: Iterable[str], ends: collections.deque[_End]) -> Iterator[str]:
    """The pieces; before a document's last one comes, what the document amounts to lies in `ends`."""
    hasher, size, characters = hashlib.blake2b(digest_size=8), 0, 0
    for number, piece in enumerate(pieces):
        try:
            raw = piece.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"piece {number} of the text: {error.reason} ({piece[error.start]!r}). Mend the reader"
            ) from None
        hasher.update(raw)
        size += len(raw)
        characters += len(piece)
        if not isinstance(piece, Part):
            ends.append(_End(int.from_bytes(hasher.digest(), "little"), size, characters))
            hasher, size, characters = hashlib.blake2b(digest_size=8), 0, 0
        yield piece


def _write_shard(
    folder: Path,
    before: list[Shard],
    batches: Iterator[Batch],
    ends: collections.deque[_End],
    corpus: Corpus,
) -> Shard | None:
    """Write encoded batches into one token file until it is full; None if nothing is left."""
    # Even without text, the first part has the token that the store begins with.
    first = next(batches, ([], []) if corpus.part and corpus.leading_eos and not before else None)
    if first is None:
        return None
    eos = np.array([tokenizers.eos_id(corpus.tokenizer)], corpus.dtype)
    name = shard_name(len(before))
    hasher = hashlib.sha256()
    tokens = pieces = 0
    open_tokens = before[-1].open_tokens if before else 0
    done: list[_End] = []
    counts: list[int] = []
    with durable.replacing(folder / name) as temporary, open(temporary, "wb") as file:
        for batch in itertools.chain([first], batches):
            parts = [eos] if corpus.leading_eos and not before and not tokens else []
            for text, ids in zip(*batch, strict=True):
                parts.append(ids)
                open_tokens += len(ids)
                if not isinstance(text, Part):
                    if corpus.append_eos:
                        parts.append(eos)
                    done.append(end := ends.popleft())
                    counts += (open_tokens, end.bytes, end.characters)
                    open_tokens = 0
            joined = np.concatenate(parts)
            file.write(joined.data)
            hasher.update(joined.data)
            tokens += len(joined)
            pieces += len(batch[0])
            if tokens >= corpus.shard_tokens:
                break
    documents = documents_file([end.hash for end in done], counts)
    shard = Shard(
        name,
        tokens,
        pieces,
        len(done),
        *_sums(done),
        open_tokens,
        hasher.hexdigest(),
        hashlib.sha256(documents).hexdigest(),
    )
    with durable.replacing(folder / shard.documents_name) as temporary:
        temporary.write_bytes(documents)
    return shard


def _index(corpus: Corpus, shards: list[Shard], notes: list[str]) -> Index:
    return Index(
        dtype=corpus.dtype.str,
        eos_id=tokenizers.eos_id(corpus.tokenizer),
        append_eos=corpus.append_eos,
        tokenizer=tokenizers.fingerprint(corpus.tokenizer),
        sources=[str(path) for path in corpus.paths[:SOURCES]],
        notes=notes,
        shards=shards,
    )


def _read_journal(folder: Path) -> list[Shard]:
    """The token files that an earlier build has finished; a torn last line of the journal does not count."""
    file = folder / JOURNAL
    if not file.is_file():
        return []
    shards: list[Shard] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            shard = Shard(**json.loads(line))
            shard.check()
        except (ValueError, TypeError):
            break
        if shard.name != shard_name(len(shards)):
            break
        shards.append(shard)
    durable.write_text(file, "".join(json.dumps(asdict(shard)) + "\n" for shard in shards))
    return shards


def _note(line: str) -> None:
    print(f"note   {line}", file=sys.stderr)


def _reported(batches: Iterator[list[str]], report: Report, total: int, progress: Progress) -> Iterator[list[str]]:
    for batch in batches:
        yield batch
        progress(min(report.bytes, total or report.bytes), total)
