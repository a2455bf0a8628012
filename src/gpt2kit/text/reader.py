"""Files to documents: where each begins and ends, and in which split it is."""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gpt2kit.errors import DataError, problems_of, refuse
from gpt2kit.text import encodings, formats
from gpt2kit.text.sources import Place, Report, chunks, is_hub_dataset, suffixes

# Characters after which a long document of plain text is handed on in pieces, so that memory does not depend on it.
PIECE = 1 << 18
# Characters of a document that decide its split. Less than half a PIECE, so that they are always in the first piece.
HEAD = 1 << 16

OnBadText = Literal["stop", "replace"]
Split = Literal["train", "valid", "test"]


class Part(str):
    """A piece of a plain text document that continues in the next item; a plain `str` ends its document."""


@dataclass(frozen=True)
class Share:
    """The documents of a text whose hash lies in [low, high) of 0 to 1: one split of it.

    The hash is of the seed and of the document's first HEAD characters. So it does not depend on the order, equal
    documents fall together, and a test share stays the same when the validation share changes.
    """

    low: float
    high: float
    seed: int

    def has(self, head: str) -> bool:
        """Whether a document that begins with `head` (all of it, or HEAD characters at least) is among them."""
        text = f"{self.seed}\n{head[:HEAD]}".encode("utf-8", "surrogatepass")
        place = int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / (1 << 48)
        return self.low <= place < self.high


class Reader:
    """Turns text files into documents: plain text, and .jsonl, .ndjson, .json, .csv, .tsv, .parquet by their names,
    each also as .gz, .zst, .xz or .bz2. For another format, subclass it and override `documents`.

    Line ends are LF whatever the file has, a byte order mark is dropped, and empty documents do not count.

    Args:
        document: what one document is: `auto` (a line of plain text, a record of any other format), `line`,
            `paragraph` (blank lines between), `file`, or any other text, which is then the separator between
            documents. The line end or separator is not part of the document. In structured files this cuts each
            record's text, and `file` means the record.
        field: the name of the text in structured files: a column, or a key of a JSON object. JSON strings need none.
        encoding: auto, or utf-8, utf-16, gb18030, big5, shift-jis, euc-jp, euc-kr, cp1251, latin-1 and others. A byte
            order mark decides first; then auto means UTF-8, or an East Asian or Cyrillic encoding that is beyond doubt.
        on_bad_text: stop at bytes that are no text in this encoding, or replace them by U+FFFD and count them.
        bad_share: the share of a structured file's records that may be bad (broken, null, no text, field missing) and
            are then left out and counted. With 0 the first one stops.
        min_chars: leave out documents with fewer characters, and count them.
        max_documents: stop after so many documents of all files together.
    """

    _report: Report | None = None

    def __init__(
        self,
        document: str = "auto",
        field: str = "text",
        encoding: str = encodings.AUTO,
        on_bad_text: OnBadText = "stop",
        bad_share: float = 0.0,
        min_chars: int = 0,
        max_documents: int | None = None,
    ) -> None:
        self.document = document
        self.field = field
        self.encoding = encoding
        self.on_bad_text = on_bad_text
        self.bad_share = bad_share
        self.min_chars = min_chars
        self.max_documents = max_documents
        refuse(_problems(self))

    def identity(self) -> dict[str, object]:
        """What the documents depend on besides the files' content: part of the cache key."""
        kind = type(self)
        # The public name, wherever the class is: it is in cache keys and checkpoints.
        name = "gpt2kit.text.Reader" if kind is Reader else f"{kind.__module__}.{kind.__qualname__}"
        options = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"reader": name, **options}

    def read(self, places: Sequence[Place], report: Report | None = None, share: Share | None = None) -> Iterator[str]:
        """The documents of all files, or a share of them. One of plain text that is longer than PIECE comes as several
        `Part`s and a last `str`.

        Args:
            places: what `find_files` has found.
            report: filled with what was met; its `bytes` and `pieces` grow while this is read.
            share: gives only these documents; `min_chars` and `max_documents` come before it.
        """
        reader = copy.copy(self)  # so that a report belongs to one reading, and two may go on at once
        reader._report = report = report or Report()
        report.bad_share = self.bad_share
        left = self.max_documents
        for place in places:
            report.pieces.append(0)
            empty = True
            for document in _whole(reader.documents(place), self.min_chars, str(place), report):
                if left == 0:
                    return report.finish()
                left = left - 1 if left is not None else None
                empty = False
                head = next(document)
                if share is None or share.has(head):
                    for piece in itertools.chain([head], document):
                        report.pieces[-1] += 1
                        yield piece
            if empty:
                report.note("files without text", str(place))
        report.finish()

    def documents(self, path: Place) -> Iterator[str]:
        """The documents of one file; one of plain text longer than PIECE comes as several `Part`s and a last `str`."""
        report = self._report or Report(self.bad_share)
        replace = self.on_bad_text == "replace"
        suffix = suffixes(path)[0]
        if is_hub_dataset(path):
            return self._cut(formats.hub_rows(str(path), self.field, replace, report))
        if suffix == ".parquet":
            return self._cut(formats.parquet_rows(path, self.field, replace, report))
        text = encodings.decoded(chunks(path, report), path, self.encoding, replace, report)
        if suffix in (".jsonl", ".ndjson"):
            return self._cut(formats.json_lines(text, path, self.field, replace, report))
        if suffix == ".json":
            return self._cut(formats.json_list(text, path, self.field, replace, report))
        if suffix in (".csv", ".tsv"):
            delimiter = "\t" if suffix == ".tsv" else ","
            return self._cut(formats.csv_rows(text, path, self.field, delimiter, replace, report))
        return _split(text, _separator(self.document, "\n"))

    def _cut(self, records: Iterator[str]) -> Iterator[str]:
        separator = _separator(self.document, "")
        blank = _blank(separator)
        for record in records:
            for document in record.split(separator) if separator else [record]:
                if document := document.strip(blank):
                    yield document


def reader_from(identity: dict[str, object]) -> Reader:
    """The reader that `identity` describes. It is never imported by name: what a checkpoint says cannot run code."""
    options = {name: value for name, value in identity.items() if name != "reader"}
    own = set(inspect.signature(Reader).parameters)
    reader = Reader(**options) if set(options) == own else Reader()  # type: ignore[arg-type]
    if reader.identity() != identity:
        raise DataError(f"this run's reader {identity.get('reader')} is not gpt2kit's own. Give the text as --files")
    return reader


def shares(valid_share: float, test_share: float, seed: int) -> dict[Split, Share]:
    """The shares of the training text that each split takes, if any is shared out.

    Test documents hash to the lower end and validation documents to the upper: changing one leaves the other alone.
    """
    if not valid_share and not test_share:
        return {}
    found: dict[Split, Share] = {"train": Share(test_share, 1.0 - valid_share, seed)}
    if valid_share:
        found["valid"] = Share(1.0 - valid_share, 1.0, seed)
    if test_share:
        found["test"] = Share(0.0, test_share, seed)
    return found


def split_problems(options: dict[str, Any]) -> list[str]:
    """What is wrong with the data module's shares, in the words of its options."""
    found = []
    for split in ("valid", "test"):
        share = options[f"{split}_share"]
        if not 0 <= share < 1:
            found.append(f"data.{split}_share {share}: must be from 0 to below 1")
        if share and options[f"{split}_files"]:
            found.append(f"data.{split}_share {share}: data.{split}_files are given, too. Leave one out")
    both = options["valid_share"] + options["test_share"]
    return found or (
        [f"data.valid_share and data.test_share: {both} leaves nothing to learn from"] if both >= 1 else []
    )


def _problems(reader: Reader) -> list[str]:
    """What is wrong with a reader's options, which may also come from a checkpoint."""
    texts = {"document": reader.document, "field": reader.field, "encoding": reader.encoding}
    rules = {f"reader.{name} {value!r}: must be a text": not isinstance(value, str) for name, value in texts.items()}
    share, least, most = reader.bad_share, reader.min_chars, reader.max_documents
    rules |= {
        "reader.document: must not be empty": reader.document == "",
        f"reader.on_bad_text {reader.on_bad_text!r}: must be stop or replace": reader.on_bad_text
        not in get_args(OnBadText),
        f"reader.bad_share {share!r}: must be from 0 to below 1": not (
            isinstance(share, int | float) and 0 <= share < 1
        ),
        f"reader.min_chars {least!r}: must be a whole number, at least 0": not (type(least) is int and least >= 0),
        f"reader.max_documents {most!r}: must be a whole number, at least 1": not (
            most is None or (type(most) is int and most >= 1)
        ),
    }
    found = problems_of(rules)
    return found + (encodings.check_encoding(reader.encoding) if isinstance(reader.encoding, str) else [])


def _separator(document: str, default: str) -> str:
    return {"auto": default, "line": "\n", "paragraph": "\n\n", "file": ""}.get(document, document)


def _blank(separator: str) -> str:
    """Characters that are removed around a document: between paragraphs, several blank lines separate as one does."""
    return "\n" if separator == "\n\n" else ""


def _whole(pieces: Iterator[str], min_chars: int, place: str, report: Report) -> Iterator[Iterator[str]]:
    """Each document as an iterator of its pieces, which need not be used up; too short ones are left out."""
    for first in pieces:
        held, length = [first], len(first)
        while length < min_chars and isinstance(held[-1], Part):
            held.append(next(pieces))
            length += len(held[-1])
        if length < min_chars:
            report.note(f"documents left out, shorter than reader.min_chars {min_chars}", place)
            continue
        rest = _rest(held, pieces)
        yield rest
        for _ in rest:
            pass


def _rest(held: list[str], pieces: Iterator[str]) -> Iterator[str]:
    """The pieces in hand, and those that follow up to the document's end."""
    yield from held
    last = held[-1]
    while isinstance(last, Part):
        yield (last := next(pieces))


def _split(pieces: Iterator[str], separator: str) -> Iterator[str]:
    """Cut a plain text at each separator (an empty one: never), holding no more than about two pieces."""
    blank = _blank(separator)
    rest, inside = "", False  # inside: the document in hand has begun with a Part
    for piece in pieces:
        *whole, rest = (rest + piece).split(separator) if separator else [rest + piece]
        for document in whole:
            yield from _trimmed(document, blank, inside)
            inside = False
        rest = rest if inside else rest.lstrip(blank)
        # More than a separator's length is held back: one may begin there, and a document never ends in an empty piece.
        while len(rest) > PIECE + len(separator):
            cut = rest.rfind("\n", PIECE // 2, PIECE) + 1 or PIECE
            yield Part(rest[:cut])
            rest, inside = rest[cut:], True
    yield from _trimmed(rest, blank, inside)


def _trimmed(document: str, blank: str, inside: bool) -> Iterator[str]:
    """The document without blank lines around it, if anything is left."""
    if document := (document if inside else document.lstrip(blank)).rstrip(blank):
        yield document
