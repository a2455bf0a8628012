"""The token store: a corpus as raw token files on disk, built once and read through memory maps.

A store is a folder named by the content it was made from:

    000000.bin ...   little-endian token ids, uint16 if every id fits, else uint32
    journal.jsonl    one line per finished token file; where a killed build goes on
    documents.bin    8 bytes of hash for each document, to find documents that stand in two splits
    index.json       written last: its presence means that the store is complete

The first token is an end-of-document token, then each document's tokens and one more such token; so every token of
the text has something before it and is predicted exactly once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit import files as durable
from gpt2kit import sources
from gpt2kit import tokenizer as tokenizers
from gpt2kit.errors import DataError
from gpt2kit.splits import Share
from gpt2kit.text import Part, Place, Reader, Report

FORMAT = 2
_BATCH = 1 << 20
"""Characters encoded by one call: enough to keep some cores busy; each takes 100 to 250 bytes while it is encoded."""


@dataclass(frozen=True)
class Shard:
    """One finished token file. `pieces` counts what the reader gave for it, so that a killed build can skip those."""

    name: str
    tokens: int
    pieces: int
    documents: int
    bytes: int
    characters: int
    sha256: str


class TokenStore:
    """A complete store, read only. `store[a:b]` gives tokens a to b across file borders."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.shards = [Shard(**shard) for shard in index["shards"]]
        self.dtype = np.dtype(index["dtype"])
        self.tokens = sum(shard.tokens for shard in self.shards)
        self.documents = sum(shard.documents for shard in self.shards)
        self.characters = sum(shard.characters for shard in self.shards)
        self.bytes = sum(shard.bytes for shard in self.shards)
        """UTF-8 bytes of the documents' text; the ends of documents are not among them."""
        self.fingerprint = hashlib.sha256(json.dumps([s.sha256 for s in self.shards]).encode()).hexdigest()
        """Identity of the token sequence itself, whatever files it came from."""
        self.notes: list[str] = index["notes"]
        """What the reader met: records that it left out, encodings that it found, and the like."""
        self.hashes = _map(folder / "documents.bin", np.dtype("<u8"), self.documents)
        """A hash of each document's text."""
        self._starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])
        self._maps = [_map(folder / shard.name, self.dtype, shard.tokens) for shard in self.shards]

    def __len__(self) -> int:
        return self.tokens

    def __getitem__(self, span: slice) -> NDArray[np.unsignedinteger]:
        start, stop, _ = span.indices(self.tokens)
        if start >= stop:
            return np.empty(0, self.dtype)
        at = int(np.searchsorted(self._starts, start, side="right")) - 1
        begin = start - int(self._starts[at])
        found = self._maps[at][begin : begin + stop - start]
        while len(found) < stop - start:
            at += 1
            found = np.concatenate([found, self._maps[at][: stop - start - len(found)]])
        return found


def open_or_build(
    paths: Sequence[Place],
    tokenizer: Tokenizer,
    reader: Reader,
    cache_dir: Path,
    shard_tokens: int = 1 << 26,
    progress: Callable[[int, int], None] = lambda done, total: None,
    share: Share | None = None,
) -> TokenStore:
    """The store of these files under this tokenizer and reader; built now if it does not exist.

    Args:
        paths: text files and URLs, in the order in which their documents follow one another.
        tokenizer: turns documents into ids.
        reader: turns files into documents.
        cache_dir: where stores lie, each in a folder named by the content it was made from.
        shard_tokens: tokens a file, about; also how much work a killed build can lose.
        progress: called with the bytes of the files that are read, and those that they have; compressed ones count
            as they lie there.
        share: only these documents.
    """
    key = store_key(paths, tokenizer, reader, cache_dir, shard_tokens, share)
    folder = cache_dir / key
    if not (folder / "index.json").is_file():
        from filelock import FileLock

        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock"):  # the system drops the lock of a process that dies
            if not (folder / "index.json").is_file():
                before = digests(paths, cache_dir)
                try:
                    notes, shards = _build(folder, paths, tokenizer, reader, shard_tokens, progress, share)
                finally:
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # unless something is in it, with which the next try goes on
                for path, old, new in zip(paths, before, digests(paths, cache_dir), strict=True):
                    if old != new:
                        raise DataError(f"{path}: was changed while it was being read. Run the same command again")
                _write_index(folder, shards, notes, tokenizer)
    return TokenStore(folder)


def store_key(
    paths: Sequence[Place],
    tokenizer: Tokenizer,
    reader: Reader,
    cache_dir: Path,
    shard_tokens: int,
    share: Share | None = None,
) -> str:
    """A name that changes with the text, the tokenizer, the reader's options, and the formats."""
    made_of = {
        "format": FORMAT,
        "tokenizer": tokenizers.fingerprint(tokenizer),
        "reader": reader.identity(),
        "files": digests(paths, cache_dir),
        "formats": [sources.suffixes(path) for path in paths],  # the same bytes are another text as .txt and as .jsonl
        "share": asdict(share) if share else None,
        "shard_tokens": shard_tokens,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]


def digests(paths: Sequence[Place], cache_dir: Path) -> list[str]:
    """The hash of each local file's content; for a remote one, of what its server says of it."""
    local = [path for path in paths if isinstance(path, Path)]
    try:
        found = iter(durable.Digests(cache_dir / "digests.json").of(local))
    except OSError as error:
        with sources.reading(Path(error.filename or local[0])):
            raise
    return [next(found) if isinstance(path, Path) else sources.remote_identity(path) for path in paths]


def _build(
    folder: Path,
    paths: Sequence[Place],
    tokenizer: Tokenizer,
    reader: Reader,
    shard_tokens: int,
    progress: Callable[[int, int], None],
    share: Share | None,
) -> tuple[list[str], list[Shard]]:
    """Write the token files, going on after the last finished one of a build that was killed; what was met, too."""
    shards = _finished(folder)
    report = Report()
    total = sum(sources.size(path) for path in paths)
    with durable.replacing(folder / "documents.bin") as temporary, open(temporary, "wb") as hashes:
        pieces = _hashed(reader.read(paths, report, share), hashes)
        rest = itertools.islice(pieces, sum(shard.pieces for shard in shards), None)
        batches = _reported(_batched(rest), report, total, progress)
        while shard := _write_shard(folder, len(shards), batches, tokenizer, _dtype(tokenizer), shard_tokens):
            shards.append(shard)
            with open(folder / "journal.jsonl", "a", encoding="utf-8") as journal:
                journal.write(json.dumps(asdict(shard)) + "\n")
                journal.flush()
                os.fsync(journal.fileno())
        if not any(shard.documents for shard in shards):
            what = f"{paths[0]}{' and the others' if paths[1:] else ''}"
            split = f" for the {share.high - share.low:.3g} of it that this split takes" if share else ""
            met = f" ({'; '.join(report.lines())})" if report.met else ""
            raise DataError(f"{what}: no text in it{split}{met}. Name files that hold text")
    return report.lines(), shards


def _write_index(folder: Path, shards: list[Shard], notes: list[str], tokenizer: Tokenizer) -> None:
    index = {
        "format": FORMAT,
        "dtype": _dtype(tokenizer).str,
        "notes": notes,
        "shards": [asdict(shard) for shard in shards],
    }
    durable.write_text(folder / "index.json", json.dumps(index, indent=1, ensure_ascii=False))


def _dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if tokenizers.size(tokenizer) <= 1 << 16 else "<u4")


def _hashed(pieces: Iterator[str], hashes: IO[bytes]) -> Iterator[str]:
    """The pieces; on the way the hash of each whole document is written down."""
    hasher = hashlib.blake2b(digest_size=8)
    for number, piece in enumerate(pieces):
        try:
            hasher.update(piece.encode())
        except UnicodeEncodeError as error:
            raise DataError(
                f"piece {number} of the text: {error.reason} ({piece[error.start]!r}). Mend the reader"
            ) from None
        yield piece
        if not isinstance(piece, Part):
            hashes.write(hasher.digest())
            hasher = hashlib.blake2b(digest_size=8)


def _finished(folder: Path) -> list[Shard]:
    """The token files that a killed build has finished; a torn last line of the journal does not count."""
    journal = folder / "journal.jsonl"
    if not journal.is_file():
        return []
    shards = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            shards.append(Shard(**json.loads(line)))
        except (ValueError, TypeError):
            break
    durable.write_text(journal, "".join(json.dumps(asdict(shard)) + "\n" for shard in shards))
    return shards


def _write_shard(
    folder: Path, number: int, batches: Iterator[list[str]], tokenizer: Tokenizer, dtype: np.dtype, at_least: int
) -> Shard | None:
    """Encode batches into one token file until it holds `at_least` tokens; None if nothing is left."""
    first = next(batches, None)
    if first is None:
        return None
    eos = tokenizers.eos_id(tokenizer)
    path = folder / f"{number:06d}.bin"
    hasher = hashlib.sha256()
    tokens = pieces = documents = size = characters = 0
    with durable.replacing(path) as temporary, open(temporary, "wb") as file:
        for batch in itertools.chain([first], batches):
            ids: list[int] = [] if number or tokens else [eos]
            for text, encoding in zip(batch, tokenizer.encode_batch_fast(batch, add_special_tokens=False), strict=True):
                ids += encoding.ids
                if not isinstance(text, Part):
                    ids.append(eos)
                    documents += 1
                size += len(text.encode())
                characters += len(text)
            raw = np.array(ids, dtype).tobytes()
            file.write(raw)
            hasher.update(raw)
            tokens += len(ids)
            pieces += len(batch)
            if tokens >= at_least:
                break
    return Shard(path.name, tokens, pieces, documents, size, characters, hasher.hexdigest())


def _reported(
    batches: Iterator[list[str]], report: Report, total: int, progress: Callable[[int, int], None]
) -> Iterator[list[str]]:
    for batch in batches:
        yield batch
        progress(min(report.bytes, total or report.bytes), total)


def _batched(pieces: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece)
        if characters >= _BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _map(path: Path, dtype: np.dtype, tokens: int) -> NDArray[np.unsignedinteger]:
    """Map one token file, with read-ahead off: blocks are read in random order."""
    found = path.stat().st_size // dtype.itemsize if path.is_file() else 0
    if found != tokens:
        raise DataError(f"{path}: holds {found} tokens, not the {tokens} of its index. Delete {path.parent}")
    mapped = np.memmap(path, dtype, mode="r")
    raw: mmap.mmap = mapped._mmap  # type: ignore[attr-defined]
    if hasattr(mmap, "MADV_RANDOM"):
        raw.madvise(mmap.MADV_RANDOM)
    return np.asarray(mapped)
