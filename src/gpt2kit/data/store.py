"""The token store on disk: a corpus as raw token files, opened through memory maps. `build` builds it.

A store is a folder named by the content it was made from:

    000000.bin ...   little-endian token ids, uint16 if every id fits, else uint32
    000000.doc ...   of each document that ends in the token file of this number: 8 bytes of hash of its text, for all
                     of them; then, as base-128 numbers, how many tokens, UTF-8 bytes and characters it has
    journal.jsonl    one line per finished token file; where a killed build goes on
    index.json       written last: its presence means that the store is complete
    verified.json    the files whose checksums were compared, and their times then

The first token is an end-of-document token, then each document's tokens and one more such token; so every token of
the text has something before it and is predicted exactly once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit import files as durable
from gpt2kit.errors import DataError

FORMAT = 3
INDEX, JOURNAL, VERIFIED = "index.json", "journal.jsonl", "verified.json"
SOURCES = 100
"""Files of the text that an index names, at most."""
HASH = np.dtype("<u8")


@dataclass(frozen=True)
class Shard:
    """One finished token file and the documents that end in it.

    Args:
        name: of the token file.
        tokens: in it.
        pieces: what the reader gave for it, so that a build which goes on can pass over those.
        documents: that end in it.
        bytes: UTF-8 bytes of those documents' text.
        characters: of those documents' text.
        open_tokens: of a document that ends in a later file, so far.
        sha256: of the token file.
        documents_sha256: of the file beside it.
    """

    name: str
    tokens: int
    pieces: int
    documents: int
    bytes: int
    characters: int
    open_tokens: int
    sha256: str
    documents_sha256: str

    def check(self) -> None:
        """Raise ValueError if it cannot be."""
        counts = (self.tokens, self.pieces, self.documents, self.bytes, self.characters, self.open_tokens)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"counts {counts}")

    @property
    def documents_name(self) -> str:
        """Of the file beside it."""
        return Path(self.name).stem + ".doc"


@dataclass(frozen=True)
class Index:
    """What index.json holds.

    Args:
        dtype: of a token, as numpy writes it.
        eos_id: the token that ends a document; the first one of the store, too.
        append_eos: whether documents are ended by it.
        tokenizer: its fingerprint.
        sources: the text's first files, for people.
        notes: what the reader met: records that it left out, encodings that it found, and the like.
        shards: the token files.
    """

    dtype: str
    eos_id: int
    append_eos: bool
    tokenizer: str
    sources: list[str]
    notes: list[str]
    shards: list[Shard]

    def to_json(self) -> str:
        """The content of index.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: object) -> Index:
        """Read it; `where` names it in the error."""
        try:
            found = json.loads(text)
            if found.pop("format") != FORMAT:
                raise ValueError("of another format")
            index = cls(**{**found, "shards": [Shard(**shard) for shard in found["shards"]]})
            index.check()
            return index
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Damaged(f"{where}: not a sound index ({error})") from None

    def check(self) -> None:
        """Raise ValueError if it cannot be: a store may come from elsewhere, and nothing outside it may be named."""
        if self.dtype not in ("<u2", "<u4"):
            raise ValueError(f"dtype {self.dtype!r}")
        for texts in (self.sources, self.notes):
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"texts {texts!r}")
        for number, shard in enumerate(self.shards):
            if shard.name != shard_name(number):
                raise ValueError(f"file {shard.name!r}")
            shard.check()


def read_index(folder: Path) -> Index:
    """The index of a store's folder."""
    return Index.from_json((folder / INDEX).read_bytes().decode(errors="replace"), folder / INDEX)


def shard_name(number: int) -> str:
    """The token file of this number."""
    return f"{number:06d}.bin"


class Damaged(DataError):
    """A store whose files are not what its index says."""


class TokenStore:
    """A complete store, read only. `store[a:b]` gives tokens a to b across file borders.

    Args:
        folder: the store.
        verify: compare the files' checksums, those excepted that were compared before and did not change since.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = folder
        self._use(read_index(folder))
        if verify:
            for name in damaged(folder, self.shards):
                raise Damaged(f"{folder / name}: its content does not fit its checksum, so it is damaged")
        self._maps = [mapped(folder / shard.name, self.dtype) for shard in self.shards]

    def _use(self, index: Index) -> None:
        self.index = index
        self.shards = index.shards
        self.dtype = np.dtype(index.dtype)
        self.notes = index.notes
        self.files_digest = hashlib.sha256(json.dumps([s.sha256 for s in self.shards]).encode()).hexdigest()
        """Identity of the token files: another one if the same tokens are cut into files otherwise."""
        self.tokens = sum(shard.tokens for shard in self.shards)
        self.documents = sum(shard.documents for shard in self.shards)
        self.characters = sum(shard.characters for shard in self.shards)
        self.bytes = sum(shard.bytes for shard in self.shards)
        """UTF-8 bytes of the documents' text; the ends of documents are not among them."""
        self.ends = self.documents if index.append_eos else 0
        """End-of-document tokens after the first token."""
        self.starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])
        """The number of each file's first token, and that behind the last one."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of the documents and their tokens, whatever files they came from and are cut into.

        A document's tokens follow from its text and the tokenizer, so hashes of both, and sizes, stand for them.
        """
        hashes, lengths = hashlib.sha256(), hashlib.sha256()
        for shard in self.shards:
            raw, split = self.documents_of(shard), shard.documents * HASH.itemsize
            hashes.update(raw[:split])
            lengths.update(raw[split:])
        index = self.index
        identity = [index.tokenizer, index.eos_id, index.append_eos, hashes.hexdigest(), lengths.hexdigest()]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a checkpoint recorded this text; older checkpoints recorded the digest of its files."""
        return fingerprint in (self.fingerprint, self.files_digest)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.folder, False)  # another process maps the files anew, it is not sent their content

    def __len__(self) -> int:
        return self.tokens

    def __getitem__(self, span: slice) -> NDArray[np.unsignedinteger]:
        start, stop, _ = span.indices(self.tokens)
        if start >= stop:
            return np.empty(0, self.dtype)
        at = int(np.searchsorted(self.starts, start, side="right")) - 1
        begin = start - int(self.starts[at])
        found = self.shard(at)[begin : begin + stop - start]
        while len(found) < stop - start:
            at += 1
            found = np.concatenate([found, self.shard(at)[: stop - start - len(found)]])
        return found

    def shard(self, number: int) -> NDArray[np.unsignedinteger]:
        """The tokens of one file."""
        return self._maps[number]

    def hashes(self) -> Iterator[NDArray[np.uint64]]:
        """A hash of each document's text, those of one file at a time."""
        for shard in self.shards:
            yield np.frombuffer(self.documents_of(shard)[: shard.documents * HASH.itemsize], HASH)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens, bytes and characters of each document, `[documents, 3]`; its end token is not counted."""
        parts = [unpacked(self.documents_of(shard)[shard.documents * HASH.itemsize :]) for shard in self.shards]
        return np.concatenate(parts).reshape(-1, 3)

    def documents_of(self, shard: Shard) -> bytes:
        """The content of the file beside a token file."""
        return (self.folder / shard.documents_name).read_bytes()


def leakage_note(a: TokenStore, name_a: str, b: TokenStore, name_b: str, tokenizer: Tokenizer) -> list[str]:
    """A line on the documents of `b` that stand in `a`, with the first of them, if there are any."""
    count, first = count_shared(a, b)
    if not count:
        return []
    start = tokenizer.decode(document_tokens(b, first, 32))[:60]
    share = count / b.documents
    return [f"{count:,} {name_b} documents ({share:.1%}) stand in the {name_a} text, too, such as {start!r}"]


def count_shared(a: TokenStore, b: TokenStore) -> tuple[int, int]:
    """How many documents of `b` stand in `a`, too, and the number of the first (0 if there is none).

    It holds some 32 bytes for each document of `b`, so `b` is the smaller one. Hashes of 8 bytes: the chance that two
    texts of ten million documents each seem to share one is 1 in 200,000.
    """
    known, places = np.unique(np.concatenate([*b.hashes()]), return_inverse=True)
    met = np.zeros(len(known), bool)
    for some in a.hashes():
        at = np.minimum(np.searchsorted(known, some), len(known) - 1)
        met[at[known[at] == some]] = True
    twice = met[places]
    return int(twice.sum()), int(twice.argmax())


def document_tokens(store: TokenStore, number: int, most: int) -> list[int]:
    """The tokens of a document, at most so many of them."""
    lengths = store.lengths()[: number + 1, 0]
    start = 1 + int(lengths[:number].sum()) + (number if store.index.append_eos else 0)
    tokens: list[int] = store[start : start + min(int(lengths[number]), most)].tolist()
    return tokens


def damaged(folder: Path, shards: list[Shard]) -> list[str]:
    """Names of token files that, with the file beside them, are not what is written of them."""
    wanted = {folder / shard.name: shard.sha256 for shard in shards}
    wanted |= {folder / shard.documents_name: shard.documents_sha256 for shard in shards}
    there = [path for path in wanted if path.is_file()]
    found = dict(zip(there, durable.Digests(folder / VERIFIED).of(there), strict=True))
    return [
        shard.name
        for shard in shards
        if any(found.get(path) != wanted[path] for path in (folder / shard.name, folder / shard.documents_name))
    ]


def documents_file(hashes: list[int], lengths: list[int]) -> bytes:
    """The content of a .doc file; `lengths` holds three numbers a document, in a row."""
    return np.array(hashes, HASH).tobytes() + packed(lengths)


def packed(values: Iterable[int]) -> bytes:
    """Numbers in base 128, the lowest digit first; all digits but a number's last have their highest bit set."""
    digits = bytearray()
    for value in values:
        while value > 127:
            digits.append(value & 127 | 128)
            value >>= 7
        digits.append(value)
    return bytes(digits)


def unpacked(raw: bytes) -> NDArray[np.int64]:
    """The numbers that `packed` wrote."""
    digits = np.frombuffer(raw, np.uint8).astype(np.int64)
    last = np.flatnonzero(digits < 128)
    if not len(last):
        return np.empty(0, np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(last[-1] + 1) - np.repeat(first, last - first + 1)
    return np.add.reduceat((digits[: last[-1] + 1] & 127) << (7 * place), first)


def mapped(path: Path, dtype: np.dtype) -> NDArray[np.unsignedinteger]:
    """Map one token file, with read-ahead off: blocks are read in random order."""
    if not path.stat().st_size:
        return np.empty(0, dtype)
    mapped = np.memmap(path, dtype, mode="r")
    raw: mmap.mmap = mapped._mmap  # type: ignore[attr-defined]
    if hasattr(mmap, "MADV_RANDOM"):
        raw.madvise(mmap.MADV_RANDOM)
    return np.asarray(mapped)
