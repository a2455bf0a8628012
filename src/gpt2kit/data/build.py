"""Build token stores. A build that is killed and continued writes the same bytes as an uninterrupted one.

1. Read the journal, which lists the finished shards.
2. Skip the pieces of text in these shards. They must match the .doc files.
3. Encode the rest in order. Close a shard when it is full, and append it to the journal.
4. Write the index.

A store's folder is named after a hash of its text, tokenizer and options, so a store is never out of date.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from gpt2kit import files as durable
from gpt2kit.data.index import (
    ENDS_DOCUMENT,
    FORMAT,
    INDEX,
    IS_CONTEXT,
    PIECE,
    Damaged,
    Index,
    Shard,
    Source,
    read_journal,
    shard_name,
    write_journal,
)
from gpt2kit.data.near_duplicates import LeftOut
from gpt2kit.data.store import TokenStore, context_bit, find_damaged
from gpt2kit.errors import DataError
from gpt2kit.text import sources
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.reader import Reader, StrT, batched, document_identity
from gpt2kit.text.sources import PathOrURL
from gpt2kit.text.splits import Context, SplitRange, UnfinishedPiece
from gpt2kit.tokenization import tokenizer as tokenizers

logger = logging.getLogger(__name__)

# Called after each batch with the bytes that were read so far and the size of all files. Compressed files count as
# stored.
Progress = Callable[[int, int], None]
Ids = NDArray[np.unsignedinteger]

# Characters that are read, encoded and written at a time. A shard holds complete batches.
BATCH = 1 << 20
# Batches that are queued or being encoded while the caller works on another one.
AHEAD = 2
# Characters that one call of `tokenizers` encodes. During the call each takes 100 to 250 bytes of memory.
_SLICE = 1 << 16


@dataclass(frozen=True)
class Corpus:
    """Text and how it is tokenized: everything that decides a store's content."""

    paths: Sequence[PathOrURL]  # in the order of their documents in the store
    tokenizer: Tokenizer
    reader: Reader
    split_range: SplitRange | None = None  # the split to take; None: all text
    append_eos: bool = True
    shard_tokens: int = 1 << 26  # approximate tokens per shard; a killed build loses at most one shard
    # Which part of a text this is, such as `3/16`; the parts are merged later (`parallel_build`). A part may be empty.
    part: str = ""
    leading_eos: bool = True  # whether the store begins with an end-of-document token; only the first part does
    left_out: LeftOut | None = None  # near duplicates, if they are searched for

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type that holds every id, and with a loss mask another bit."""
        return np.dtype("<u2" if tokenizers.size(self.tokenizer) <= 1 << (15 if self.reader.loss_on else 16) else "<u4")

    def digests(self, cache_dir: Path) -> list[str]:
        """Return the hash of each file, cached in `cache_dir`."""
        return sources.digests(self.paths, cache_dir)

    def key(self, digests: list[str]) -> str:
        """Return a hash of the text, whose files have these digests, the tokenizer, the reader and the formats."""
        content = {
            "format": FORMAT,
            "tokenizer": tokenizers.fingerprint(self.tokenizer),
            "reader": document_identity(self.reader.identity()),
            "files": digests,
            "formats": [sources.suffixes(path) for path in self.paths],  # the same bytes read as .txt and as .jsonl
            "share": asdict(self.split_range) if self.split_range else None,
            "append_eos": self.append_eos,
            "shard_tokens": self.shard_tokens,
            **({"part": [self.part, self.leading_eos]} if self.part else {}),
            **({"left_out": self.left_out.digest} if self.left_out else {}),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def eos_id(self) -> int:
        """The end-of-document token; if the vocabulary has none, the line break with which the store then begins."""
        ids = tokenizers.find_eos(self.tokenizer), self.tokenizer.token_to_id("\n"), 0
        return next(number for number in ids if number is not None)

    def pieces(self) -> Iterator[str]:
        """Read the text again: its documents, long ones in pieces."""
        return self.read(ReadReport())

    def read(self, report: ReadReport) -> Iterator[str]:
        """Yield the documents, as `Reader.read` does, without near duplicates."""
        pieces = self.reader.read(self.paths, report, self.split_range)
        return self.left_out.drop(pieces, report) if self.left_out else pieces

    def index(self, sources: list[Source], notes: list[str], shards: list[Shard]) -> Index:
        """Return the index of this text's store."""
        fingerprint, has_mask = tokenizers.fingerprint(self.tokenizer), bool(self.reader.loss_on)
        if self.left_out and not self.part:
            notes = [*notes, self.left_out.note]
        return Index(self.dtype.str, self.eos_id, self.append_eos, fingerprint, sources, notes, shards, has_mask)


# Writes a store's shards into its folder and returns its index.
Write = Callable[[Path, Corpus, Progress], Index]


class Piece(str):
    """A piece of text with the fields of its .doc record, except for the tokens."""

    hash: int
    bytes: int
    flags: int

    def record(self, tokens: int) -> tuple[int, int, int, int, int]:
        """Return the PIECE record for this number of tokens."""
        return self.hash, tokens, self.bytes, len(self), self.flags


def open_or_build(
    corpus: Corpus, cache_dir: Path, progress: Progress = lambda done, total: None, write: Write | None = None
) -> TokenStore:
    """Open the store of a corpus; build it if it does not exist, repair it if it is damaged.

    Args:
        corpus: the text, and how it is tokenized.
        cache_dir: the folder that holds stores.
        progress: called while the text is read.
        write: writes the shards. Default: `encode`.
    """
    before = corpus.digests(cache_dir)
    folder = cache_dir / corpus.key(before)
    if (store := _open(folder)) is not None:  # `is not None`, because the store of a part may be empty
        return store
    from filelock import FileLock

    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # the system drops the lock of a process that dies
        if (store := _open(folder, "it is rebuilt from the text")) is not None:
            return store
        (folder / INDEX).unlink(missing_ok=True)
        try:
            index = (write or encode)(folder, corpus, progress)
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails unless it is empty: the next build continues from the files in it
        sources.refuse_changes(corpus.paths, before, cache_dir)
        durable.write_text(folder / INDEX, index.to_json())
        return TokenStore(folder)


def open_with_bar(corpus: Corpus, cache_dir: Path, what: str, write: Write | None = None) -> TokenStore:
    """Open or build the store of a corpus, with a progress bar on a terminal; the bar names the text by `what`."""
    with tqdm(desc=f"tokenizing {what}", unit="B", unit_scale=True, leave=False, delay=1, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        return open_or_build(corpus, cache_dir, progress, write)


def _open(folder: Path, remedy: str = "") -> TokenStore | None:
    """Open the store if it exists and is undamaged, and mark it as used."""
    try:
        store = TokenStore(folder)
    except FileNotFoundError:
        return None
    except Damaged as error:
        if remedy:
            logger.info(f"{error}; {remedy}")
        return None
    with contextlib.suppress(OSError):
        os.utime(folder / INDEX)  # `cache` prunes by this time
    return store


def encode(folder: Path, corpus: Corpus, progress: Progress) -> Index:
    """Write the shards that an earlier build did not finish, and those that are missing or damaged."""
    shards = read_journal(folder)
    to_repair = find_damaged(folder, shards)
    report = ReadReport(is_part=bool(corpus.part))
    pieces = make_pieces(corpus.read(report))
    size = sum(sources.size(path) for path in corpus.paths)

    def encode_pieces(pieces: Iterator[Piece]) -> Iterator[tuple[list[Piece], list[Ids]]]:
        for batch in encode_batches(batched(pieces, BATCH), corpus.tokenizer, corpus.dtype):
            yield batch
            progress(min(report.bytes, size or report.bytes), size)

    for number, record in enumerate(shards):
        shard_pieces = itertools.islice(pieces, record.pieces)
        if record.name in to_repair:
            actual = _write_shard(folder, number, encode_pieces(shard_pieces), corpus)
        else:
            actual = _skip(folder, record, shard_pieces)
        if actual != record:
            write_journal(folder, [])
            raise DataError(f"{folder}: its journal does not match the text and was reset. Run the same command again")
    rest = encode_pieces(pieces)
    while shard := _write_shard(folder, len(shards), rest, corpus):
        shards.append(shard)
        write_journal(folder, shards)
    if corpus.part:  # the merge checks the records of all parts together
        notes = [json.dumps({"records": report.records, "bad": report.bad, "met": report.notes})]
    else:
        refuse_empty(shards, corpus, report)
        notes = report.lines()
    return corpus.index(_count_sources(folder, corpus, shards, report), notes, shards)


def make_pieces(texts: Iterable[str]) -> Iterator[Piece]:
    """Yield what a reader yields, with hashes and sizes."""
    hasher = hashlib.blake2b(digest_size=8)
    for number, text in enumerate(texts):
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            reason = f"{error.reason} ({text[error.start]!r})"
            raise DataError(f"piece {number} of the text: {reason}. Fix the reader") from None
        is_context, ends_document = isinstance(text, Context), not isinstance(text, UnfinishedPiece)
        hasher.update(b"\xfe" + raw + b"\xff" if is_context else raw)  # bytes that are never in UTF-8
        piece = Piece(text)
        piece.hash = int.from_bytes(hasher.digest(), "little")
        piece.bytes = len(raw)
        piece.flags = ENDS_DOCUMENT * ends_document | IS_CONTEXT * is_context
        if ends_document:
            hasher = hashlib.blake2b(digest_size=8)
        yield piece


def encode_batches(
    batches: Iterable[list[StrT]], tokenizer: Tokenizer, dtype: np.dtype[np.unsignedinteger]
) -> Iterator[tuple[list[StrT], list[Ids]]]:
    """Yield each batch with the ids of its texts, in order; no special tokens are added.

    A thread encodes on all cores while the caller reads text and writes ids. At most AHEAD batches wait, so memory does
    not depend on the corpus. The thread ends when the iterator is exhausted or closed.
    """
    waiting: collections.deque[tuple[list[StrT], Future[list[Ids]]]] = collections.deque()
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


def _encode_batch(texts: Sequence[str], tokenizer: Tokenizer, dtype: np.dtype[np.unsignedinteger]) -> list[Ids]:
    """Encode a batch in slices, because the library's results take a hundred times the memory of the ids."""
    count = max(1, len(texts) * _SLICE // max(1, sum(map(len, texts))))
    arrays: list[Ids] = []
    for start in range(0, len(texts), count):
        arrays += [np.array(ids, dtype) for ids in tokenizers.encode_batch(tokenizer, texts[start : start + count])]
    return arrays


def _skip(folder: Path, shard: Shard, pieces: Iterable[Piece]) -> Shard:
    """Return the description that a finished shard would have if it were written from these pieces of the text."""
    records = np.fromiter((piece.record(tokens=0) for piece in pieces), PIECE)
    doc = np.fromfile(folder / shard.doc_name, PIECE)
    if len(records) == len(doc):
        records["tokens"] = doc["tokens"]  # unknown without encoding
    return Shard.from_pieces(shard.name, shard.tokens, shard.sha256, records)


def _write_shard(
    folder: Path, number: int, batches: Iterator[tuple[list[Piece], list[Ids]]], corpus: Corpus
) -> Shard | None:
    """Write encoded batches into the shard with this number until it is full; return None if no batch is left."""
    eos = np.array([corpus.eos_id], corpus.dtype)
    end = [eos] if corpus.append_eos else []
    arrays = [eos] if corpus.leading_eos and number == 0 else []
    # Even without text, the first part has the store's leading token.
    first = next(batches, ([], []) if corpus.part and arrays else None)
    if first is None:
        return None
    name, tokens, hasher = shard_name(number), 0, hashlib.sha256()
    records = []
    with durable.replacing(folder / name) as temporary, open(temporary, "wb") as file:
        for pieces, ids in itertools.chain([first], batches):
            for piece, piece_ids in zip(pieces, ids, strict=True):
                added = [piece_ids, *end] if piece.flags & ENDS_DOCUMENT else [piece_ids]
                is_context = piece.flags & IS_CONTEXT
                arrays += [array | context_bit(corpus.dtype) for array in added] if is_context else added
            records.append(np.array([p.record(len(i)) for p, i in zip(pieces, ids, strict=True)], PIECE))
            chunk = np.concatenate(arrays)
            file.write(chunk.data)
            hasher.update(chunk.data)
            tokens += len(chunk)
            arrays = []
            if tokens >= corpus.shard_tokens:
                break
    doc = np.concatenate(records)
    shard = Shard.from_pieces(name, tokens, hasher.hexdigest(), doc)
    with durable.replacing(folder / shard.doc_name) as temporary:
        temporary.write_bytes(doc.tobytes())
    return shard


def _count_sources(folder: Path, corpus: Corpus, shards: list[Shard], report: ReadReport) -> list[Source]:
    """Count pieces, documents and tokens of each file of the text."""
    counts = np.zeros((len(corpus.paths), 3), np.int64)
    ends = np.cumsum(report.pieces)  # number of the piece that follows each file's last one
    first = 0
    for shard in shards:
        pieces = np.fromfile(folder / shard.doc_name, PIECE)  # (P,)
        source = np.searchsorted(ends, np.arange(first, first + len(pieces)), side="right")
        documents = (pieces["flags"] & ENDS_DOCUMENT).astype(np.int64)
        tokens = pieces["tokens"] + documents if corpus.append_eos else pieces["tokens"]
        np.add.at(counts, source, np.stack([np.ones_like(documents), documents, tokens], axis=1))
        first += len(pieces)
    return [Source(str(path), *row) for path, row in zip(corpus.paths, counts.tolist(), strict=True)]


def refuse_empty(shards: list[Shard], corpus: Corpus, report: ReadReport) -> None:
    """Raise if the text has no documents."""
    if any(shard.documents for shard in shards):
        return
    if corpus.split_range:
        fraction = f"{corpus.split_range.high - corpus.split_range.low:.3g}"
        raise DataError(
            f"{corpus.paths[0]}: no text in a split of {fraction} of the text: the documents are too few, too short "
            "or equal. Increase the fraction, or give data.valid_files and data.test_files"
        )
    raise report.no_text(corpus.paths)
