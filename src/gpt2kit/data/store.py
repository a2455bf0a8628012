"""The token store on disk: shards of raw token ids. `build` writes it, `index` describes it.

A store is a folder named after a hash of what it was built from:

    000000.bin ...   a shard: little-endian token ids, uint16 if every id fits, else uint32
    000000.doc ...   one PIECE record for each piece of text in that shard
    journal.jsonl    one line per finished shard, from which a killed build continues
    index.json       written last, so a store with an index is complete
    verified.json    the checksums of files that were read, with the files' sizes and times at that moment

The reader yields text in pieces: a short document is one piece, a long one several. A shard holds complete pieces, so
it depends on no other shard, but a document may begin in one shard and end in another.

With a loss mask, the highest bit of a token says that it is context, which the loss does not count. A piece is context
as a whole, and so is the end-of-document token after it.

The first token is an end-of-document token. The documents follow, each with an end-of-document token at its end. So
every token of the text has a token before it and is predicted exactly once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit import files as durable
from gpt2kit.data.index import ENDS_DOCUMENT, IS_CONTEXT, PIECE, Damaged, Index, Shard, read_index
from gpt2kit.data.order import CONTEXT
from gpt2kit.errors import DataError

# The file with the checksums of files that were read.
VERIFIED = "verified.json"


def context_bit(dtype: np.dtype[Any]) -> int:
    """Return the bit that marks a token as context."""
    return 1 << (8 * dtype.itemsize - 1)


class TokenStore:
    """A complete store, read-only. `store[a:b]` returns tokens a to b, across shards.

    Args:
        folder: the store.
        verify: compare the checksums of all files that have changed since they were last compared.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = folder
        self._use(read_index(folder))
        if verify:
            for name in find_damaged(folder, self.shards):
                raise Damaged(f"{folder / name}: its content does not match its checksum")
        self._files = [open_tokens(folder, shard, self.dtype) for shard in self.shards]

    def _use(self, index: Index) -> None:
        self.index = index
        self.shards = index.shards
        self.dtype = np.dtype(index.dtype)
        self.notes = index.notes
        # Identity of the token files. It changes when the same tokens are split into files differently.
        self.files_digest = hashlib.sha256(json.dumps([s.sha256 for s in self.shards]).encode()).hexdigest()
        self.tokens = sum(shard.tokens for shard in self.shards)
        self.documents = sum(shard.documents for shard in self.shards)
        self.bytes = sum(shard.bytes for shard in self.shards)  # of text: end-of-document tokens have none
        self.ends = self.documents if index.append_eos else 0  # end-of-document tokens after the first token
        # The number of each shard's first token, and of the token after the last one.
        self.starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of the documents and their tokens, independent of the files of the text and of the store.

        A document's tokens depend only on its text and the tokenizer, so hashes of both, and the sizes, identify them.
        With a loss mask, the hash of a document is also of its parts.
        """
        hashes, sizes = hashlib.sha256(), hashlib.sha256()
        for document_hashes, document_sizes in self.documents_by_shard():
            hashes.update(document_hashes.tobytes())
            sizes.update(pack(document_sizes[:, :3].ravel()))  # as in format 3, whose checkpoints must still resume
        index = self.index
        identity = [index.tokenizer, index.eos_id, index.append_eos, hashes.hexdigest(), sizes.hexdigest()]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Return whether this is the fingerprint in a checkpoint; older checkpoints have the digest of the files."""
        return fingerprint in (self.fingerprint, self.files_digest)

    def __len__(self) -> int:
        return self.tokens

    def __getitem__(self, span: slice) -> NDArray[np.unsignedinteger]:
        tokens = self._read(span)
        return np.bitwise_and(tokens, context_bit(self.dtype) - 1) if self.index.loss_mask else tokens

    def marked(self, span: slice) -> NDArray[np.integer]:
        """Return tokens as in a batch: CONTEXT - id for one that the loss does not count."""
        if not self.index.loss_mask:
            return self._read(span)
        tokens = self._read(span).astype(np.int64)
        ids = tokens & (context_bit(self.dtype) - 1)
        return np.where(ids == tokens, ids, CONTEXT - ids)

    def _read(self, span: slice) -> NDArray[np.unsignedinteger]:
        start, stop, _ = span.indices(self.tokens)
        if start >= stop:
            return np.empty(0, self.dtype)
        number = int(np.searchsorted(self.starts, start, side="right")) - 1
        offset = start - int(self.starts[number])
        tokens = self.shard(number)[offset : offset + stop - start]
        while len(tokens) < stop - start:
            number += 1
            tokens = np.concatenate([tokens, self.shard(number)[: stop - start - len(tokens)]])
        return tokens

    def shard(self, number: int) -> NDArray[np.unsignedinteger] | TokenFile:
        """Return the tokens of one shard, to be sliced."""
        return self._files[number]

    def hashes(self) -> Iterator[NDArray[np.uint64]]:
        """Return the hashes of the documents that end in each shard, shard by shard."""
        return (hashes for hashes, _ in self.documents_by_shard())

    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens, bytes and characters of each document, `(documents, 3)`; end tokens are not counted."""
        return np.concatenate([sizes[:, :3] for _, sizes in self.documents_by_shard()])

    def counted(self) -> NDArray[np.int64]:
        """Return what the loss counts of each document: tokens, bytes, characters, ends, `(documents, 4)`."""
        return np.concatenate([sizes for _, sizes in self.documents_by_shard(counted=True)])

    @functools.cached_property
    def predicted(self) -> tuple[int, int]:
        """The tokens that the loss counts, and their bytes; the end of a document counts as one of each."""
        if not self.index.loss_mask:
            return self.tokens - 1, self.bytes + self.ends
        shards = [sizes.sum(0) for _, sizes in self.documents_by_shard(counted=True)]
        tokens, size, _, ends = np.sum(shards, 0).tolist()
        return tokens + ends, size + ends

    def documents_by_shard(self, counted: bool = False) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        """Yield hashes `(D,)` and sizes `(D, 4)` of the D documents that end in each shard.

        Sizes are tokens, bytes, characters and end-of-document tokens, or only those that the loss counts.
        """
        total = np.zeros(4, np.int64)  # of all pieces so far
        end = total[None]  # the total at the end of the last document, which may be in an earlier shard
        for shard in self.shards:
            pieces = np.frombuffer(self.read_doc(shard), PIECE)  # (P,)
            last = pieces["flags"] & ENDS_DOCUMENT > 0
            columns = [pieces[field] for field in ("tokens", "bytes", "characters")]
            sizes = np.stack([*columns, last * self.index.append_eos], axis=1)  # (P, 4)
            if counted:
                sizes[pieces["flags"] & IS_CONTEXT > 0] = 0
            totals = total + np.cumsum(sizes, axis=0, dtype=np.int64)
            ends = np.concatenate([end, totals[last]])  # (D + 1, 4)
            yield pieces["hash"][last], np.diff(ends, axis=0)
            total, end = total + sizes.sum(axis=0, dtype=np.int64), ends[-1:]

    def read_doc(self, shard: Shard) -> bytes:
        """Return the content of a shard's .doc file."""
        return (self.folder / shard.doc_name).read_bytes()


def find_damaged(folder: Path, shards: list[Shard]) -> list[str]:
    """Return the names of shards whose token file or .doc file is missing or does not match its checksum."""
    expected: dict[Path, tuple[str, tuple[int, ...]]] = {}  # checksum and possible sizes of each file
    for shard in shards:
        expected[folder / shard.name] = shard.sha256, (2 * shard.tokens, 4 * shard.tokens)
        expected[folder / shard.doc_name] = shard.doc_sha256, (PIECE.itemsize * shard.pieces,)
    # Sizes first: another program may have made a file so large that its checksum would take hours.
    present = [path for path, (_, sizes) in expected.items() if path.is_file() and path.stat().st_size in sizes]
    digests = dict(zip(present, durable.Digests(folder / VERIFIED).of(present), strict=True))
    damaged = {path.stem for path, (sha256, _) in expected.items() if digests.get(path) != sha256}
    return [shard.name for shard in shards if Path(shard.name).stem in damaged]


def pack(numbers: NDArray[np.int64]) -> bytes:
    """Encode numbers in base 128, the lowest digit first; the highest bit says that more digits follow."""
    width = max(int(numbers.max(initial=1)).bit_length() + 6, 7) // 7
    rest = numbers[:, None] >> (7 * np.arange(width))  # (numbers, width)
    digits = np.where(rest > 127, rest & 127 | 128, rest)
    used = rest > 0
    used[:, 0] = True  # zero has one digit
    return digits[used].astype(np.uint8).tobytes()


class TokenFile:
    """The tokens of a shard, read from the disk when they are needed: `file[a:b]`.

    A memory map is a little faster. But the system kills a process that reads beyond the end of a mapped file, and
    another program may truncate the file at any time.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], tokens: int) -> None:
        self._path, self._dtype, self._tokens = path, dtype, tokens
        self._descriptor = os.open(path, os.O_RDONLY)  # the file may be deleted while it is open
        weakref.finalize(self, os.close, self._descriptor)
        if hasattr(os, "posix_fadvise"):  # no read-ahead: blocks are read in random order
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __len__(self) -> int:
        return self._tokens

    def __getitem__(self, span: slice) -> NDArray[np.unsignedinteger]:
        start, stop, _ = span.indices(self._tokens)
        size = self._dtype.itemsize
        raw = os.pread(self._descriptor, max(stop - start, 0) * size, start * size)
        if len(raw) < (stop - start) * size:
            raise DataError(
                f"{self._path}: truncated by another program while it was in use. Run the same command again, which "
                "builds the file again; resume with --ckpt_path last"
            )
        return np.frombuffer(raw, self._dtype)


def open_tokens(folder: Path, shard: Shard, dtype: np.dtype[Any]) -> NDArray[np.unsignedinteger] | TokenFile:
    """Open a token file. On Windows it is mapped, which prevents other programs from truncating it."""
    path = folder / shard.name
    if hasattr(os, "pread"):
        return TokenFile(path, dtype, shard.tokens)
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
