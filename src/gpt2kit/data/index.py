"""The files that describe a token store: its index, the journal of its build, and the records of its pieces of text."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt2kit import files as durable
from gpt2kit.errors import DataError

FORMAT = 4
MAX_BYTES = 1 << 29  # of an index or a journal
INDEX, JOURNAL = "index.json", "journal.jsonl"

_Record = TypeVar("_Record", "Shard", "Source", "Index")

# A record of a .doc file. The hash is of the document's text from its start to the end of this piece, so the last piece
# has the hash of the document, wherever it was cut. End-of-document tokens are not counted.
PIECE = np.dtype([("hash", "<u8"), ("tokens", "<u4"), ("bytes", "<u4"), ("characters", "<u4"), ("flags", "u1")])
# The flags of a piece: it ends its document; the loss does not count it.
ENDS_DOCUMENT, IS_CONTEXT = 1, 2


class Damaged(DataError):
    """A store whose files do not match its index."""


@dataclass(frozen=True)
class Shard:
    """A finished token file and the pieces of text in it."""

    name: str
    tokens: int  # end-of-document tokens included
    pieces: int
    documents: int  # that end in it
    bytes: int  # of its text, as UTF-8
    characters: int
    sha256: str  # of the token file
    doc_sha256: str

    @classmethod
    def from_pieces(cls, name: str, tokens: int, sha256: str, pieces: NDArray[np.void]) -> Shard:
        """Return the description of a token file with these pieces."""
        documents = int(np.count_nonzero(pieces["flags"] & ENDS_DOCUMENT))
        size, characters = (int(pieces[field].sum(dtype=np.int64)) for field in ("bytes", "characters"))
        doc_sha256 = hashlib.sha256(pieces.tobytes()).hexdigest()
        return cls(name, tokens, len(pieces), documents, size, characters, sha256, doc_sha256)

    @property
    def doc_name(self) -> str:
        """Name of the .doc file."""
        return Path(self.name).stem + ".doc"


@dataclass(frozen=True)
class Source:
    """A file of the text and its part of the store. Sources are in order, so the counts tell where each begins."""

    name: str  # path or URL
    pieces: int
    documents: int
    tokens: int  # end-of-document tokens included, but not the store's first token


@dataclass(frozen=True)
class Index:
    """The content of index.json."""

    dtype: str  # of a token, as numpy writes it
    eos_id: int  # the end-of-document token, which is also the first token of the store
    append_eos: bool  # whether each document is followed by it
    tokenizer: str  # fingerprint of the tokenizer
    sources: list[Source]
    notes: list[str]  # what the reader reports: records left out, encodings detected, and so on
    shards: list[Shard]
    loss_mask: bool = False  # whether the highest bit of a token says that it is context

    def to_json(self) -> str:
        """Return the content of index.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: object) -> Index:
        """Parse index.json; `where` names it in error messages."""
        try:
            values = durable.parse_json(text)
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            values["sources"] = [parse(Source, source) for source in values["sources"]]
            values["shards"] = [parse(Shard, shard) for shard in values["shards"]]
            index = parse(cls, values)
            if index.dtype not in ("<u2", "<u4"):
                raise ValueError(f"dtype {index.dtype!r}")
            if not all(isinstance(note, str) for note in index.notes):
                raise ValueError("notes")
            # A store may be untrusted: it must not name files outside its folder.
            if any(shard.name != shard_name(number) for number, shard in enumerate(index.shards)):
                raise ValueError("names of shards")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Damaged(f"{where}: not a valid index ({error})") from None
        return index


def parse(kind: type[_Record], values: dict[str, Any]) -> _Record:
    """Return a dataclass from JSON values; raise ValueError if one has another type than declared, or is no count."""
    record = kind(**values)
    for field in fields(kind):
        value = getattr(record, field.name)
        declared = str(field.type).split("[")[0]  # annotations are strings: "int", "str", "list[str]"
        if type(value).__name__ != declared or (declared == "int" and not 0 <= value < 1 << 53):
            raise ValueError(f"{field.name} {value!r:.60}")
    return record


def read_index(folder: Path) -> Index:
    """Read the index of a store's folder."""
    path = folder / INDEX
    try:
        text = durable.read_limited(path, MAX_BYTES).decode(errors="replace")
    except ValueError as error:
        raise Damaged(f"{path}: {error}") from None
    return Index.from_json(text, path)


def shard_name(number: int) -> str:
    """Return the name of the token file with this number."""
    return f"{number:06d}.bin"


def read_journal(folder: Path) -> list[Shard]:
    """Return the shards that an earlier build finished, and delete its temporary files."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink()  # the other build was killed, since this one holds the lock
    if not (folder / JOURNAL).is_file():
        return []
    shards: list[Shard] = []
    with contextlib.suppress(ValueError, TypeError):  # damaged; shards that follow are built again
        for line in durable.read_limited(folder / JOURNAL, MAX_BYTES).decode(errors="replace").splitlines():
            shard = parse(Shard, durable.parse_json(line))
            if shard.name != shard_name(len(shards)):
                break
            shards.append(shard)
    write_journal(folder, shards)
    return shards


def write_journal(folder: Path, shards: list[Shard]) -> None:
    """Record these shards, and no others, as finished."""
    durable.write_text(folder / JOURNAL, "".join(json.dumps(asdict(shard)) + "\n" for shard in shards))
