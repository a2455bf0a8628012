"""Read files as documents: find where each begins and ends, and which part of it belongs to a split."""

from __future__ import annotations

import copy
import inspect
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar, get_args

from gpt2kit.commands import reader_option
from gpt2kit.errors import DataError, Problems, refuse
from gpt2kit.text import columnar, encodings, formats
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.sources import PathOrURL, is_hub_dataset, read_chunks, suffixes
from gpt2kit.text.splits import Context, HashRange, SplitRange, UnfinishedContext, UnfinishedPiece

# A longer document of plain text is yielded in pieces of about this many characters, which bounds memory use.
PIECE_LENGTH = 1 << 18

# Names of options that are stored differently in checkpoints and cache keys.
_STORED_NAMES = {"errors": "on_bad_text", "max_bad_fraction": "bad_share"}
# Options that are stored only if they are set.
_NEWER_OPTIONS = ("template", "loss_on", "drop_near_duplicates")

# Formats that hold records; any other file is plain text.
_STRUCTURED = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")

Errors = Literal["stop", "replace"]
StrT = TypeVar("StrT", bound=str)


class Reader:
    """Reads files as documents: plain text, JSON Lines, JSON, CSV, Parquet and Arrow, also compressed.

    Names tell the formats: .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, each also as .gz, .zst, .xz or .bz2.
    All other files are plain text. For another format, subclass it and override `documents`. Line endings become LF, a
    byte order mark is dropped, and empty documents are skipped.

    Args:
        document: What one document is. `file`: a file of plain text, a record of any other format. `line`. `paragraph`:
            separated by blank lines. Any other text: the separator between documents. The newline or separator is not
            part of the document. In structured files this splits each record's text. `auto`, the default of earlier
            versions: a line of plain text, a record of any other format.
        field: Name of the text in structured files: a column, or a key of a JSON object. JSON strings need none.
        template: Instead of `field`, the text of a record from several fields, such as `{title}\\n{paragraphs}`. The
            lines of a list are joined.
        loss_on: Fields of the template that are trained on and scored, such as `paragraphs`, or a list of them. The
            rest is context: the model sees it, but the loss does not count it. Default: the whole text.
        encoding: `auto`, or utf-8, utf-16, gb18030, big5, shift-jis, euc-jp, euc-kr, cp1251, latin-1 and others. A byte
            order mark takes precedence; otherwise auto means UTF-8, or an East Asian or Cyrillic encoding that is
            detected without doubt.
        errors: What to do with bytes that are invalid in this encoding: stop, or replace them with U+FFFD and count
            them.
        max_bad_fraction: Maximum fraction of the records of structured files that may be bad (broken, null, not text,
            field missing). They are skipped and counted. With 0 the first one is an error.
        min_chars: Skip documents with fewer characters, and count them.
        max_documents: Read at most this number of documents, over all files.
        drop_near_duplicates: Leave near copies out of the training text: documents whose similarity to an earlier one,
            or to one of the validation and test text, is at least this number, such as 0.8. Above 0, and at most 1.
    """

    _report: ReadReport | None = None

    def __init__(
        self,
        document: str = "file",
        field: str = "text",
        encoding: str = encodings.AUTO,
        errors: Errors = "stop",
        max_bad_fraction: float = 0.0,
        min_chars: int = 0,
        max_documents: int | None = None,
        template: str | None = None,
        loss_on: list[str] | str | None = None,
        drop_near_duplicates: float | None = None,
    ) -> None:
        self.document = document
        self.field = field
        self.encoding = encoding
        self.errors = errors
        self.max_bad_fraction = max_bad_fraction
        self.min_chars = min_chars
        self.max_documents = max_documents
        self.template = template
        self.loss_on = [loss_on] if isinstance(loss_on, str) else loss_on or []
        self.drop_near_duplicates = drop_near_duplicates
        refuse(_problems(self))

    def identity(self) -> dict[str, object]:
        """Return what decides the documents besides the files' content. Part of checkpoints and cache keys."""
        kind = type(self)
        # The public name, whatever module defines the class.
        name = "gpt2kit.text.Reader" if kind is Reader else f"{kind.__module__}.{kind.__qualname__}"
        options = {_STORED_NAMES.get(name, name): value for name, value in vars(self).items() if name[0] != "_"}
        # As in runs that are older than these options.
        return {"reader": name, **{k: v for k, v in options.items() if v or k not in _NEWER_OPTIONS}}

    def read(
        self, paths: Sequence[PathOrURL], report: ReadReport | None = None, split_range: SplitRange | None = None
    ) -> Iterator[str]:
        """Yield the documents of all files; a long one of plain text as `UnfinishedPiece`s and a last `str`.

        With `loss_on`, the parts of a document are pieces, and the type of some is `Context`.

        Args:
            paths: what `find_files` returns.
            report: filled while the files are read.
            split_range: yield only these documents, or this part of each. `min_chars` and `max_documents` are applied
                first.
        """
        reader = copy.copy(self)  # the copy holds the report, so that two iterations can run at the same time
        reader._report = report = report or ReadReport()
        report.max_bad_fraction = self.max_bad_fraction
        count = 0
        for path in paths:
            report.pieces.append(0)
            count_before = count
            needs_length = split_range is not None and not isinstance(split_range, HashRange)
            lengths = self._lengths(path) if needs_length else itertools.repeat(0)
            pieces = iter(reader.documents(path))
            for first in pieces:
                document_length = next(lengths, 0)  # too few if the file has changed, which the caller refuses
                start, length = [first], len(first)
                while length < self.min_chars and isinstance(start[-1], UnfinishedPiece):
                    start.append(next(pieces))
                    length += len(start[-1])
                if length < self.min_chars:
                    report.note(
                        f"documents left out, shorter than {reader_option('min_chars')} {self.min_chars}", str(path)
                    )
                    continue
                if count == self.max_documents:
                    report.check_bad_fraction()
                    return
                count += 1
                document: Iterator[str] = itertools.chain(start, read_rest(start[-1], pieces))
                for piece in split_range.take(document, document_length) if split_range else document:
                    report.pieces[-1] += 1
                    yield piece
            if count == count_before:
                report.note("files without text", str(path))
        report.check_bad_fraction()

    def _lengths(self, path: PathOrURL) -> Iterator[int]:
        """Read one file, and return the characters of each of its documents."""
        reader = copy.copy(self)
        reader._report = ReadReport(self.max_bad_fraction)  # these bytes and records are not counted twice
        lengths, total = array("q"), 0  # 8 bytes per document, however long it is
        for piece in reader.documents(path):
            total += len(piece)
            if not isinstance(piece, UnfinishedPiece):
                lengths.append(total)
                total = 0
        return iter(lengths)

    def documents(self, path: PathOrURL) -> Iterator[str]:
        """Yield the documents of one file; a long one of plain text as `UnfinishedPiece`s and a last `str`."""
        report = self._report or ReadReport(self.max_bad_fraction)
        replace = self.errors == "replace"
        suffix = suffixes(path)[0]
        if is_hub_dataset(path):
            records = formats.read_hub_dataset(str(path))
        elif suffix == ".parquet":
            records = columnar.read_parquet(path, self.field, self.template, replace, report)
        elif suffix == ".arrow":
            records = columnar.read_arrow(path, self.field, self.template, report)
        else:
            text = encodings.decode(read_chunks(path, report), path, self.encoding, replace, report)
            if suffix in (".jsonl", ".ndjson"):
                records = formats.read_json_lines(text, path)
            elif suffix == ".json":
                records = formats.read_json_list(text, path)
            elif suffix in (".csv", ".tsv"):
                records = formats.read_csv(text, path, self.field, self.template, "\t" if suffix == ".tsv" else ",")
            elif self.loss_on:
                raise DataError(
                    f"{path}: plain text has no fields for {reader_option('loss_on')}. Give records, such as JSON"
                )
            else:
                return split_text(text, _separator(self.document, "\n"))
        parts = formats.extract_texts(records, self.field, self.template, self.loss_on, replace, report)
        if self.loss_on:
            return itertools.chain.from_iterable(map(_parts_as_pieces, parts))
        return _split_records((text for [(_, text)] in parts), _separator(self.document, ""))


def document_identity(identity: dict[str, object]) -> dict[str, object]:
    """Return what of a reader's identity decides the documents of a file; training texts may leave some of them out."""
    return {name: value for name, value in identity.items() if name != "drop_near_duplicates"}


def reader_from(identity: dict[str, object]) -> Reader:
    """Return the reader with this identity. No class is imported by its name: a checkpoint must not run code."""
    names = {stored: name for name, stored in _STORED_NAMES.items()}
    options: dict[str, object] = dict.fromkeys(_NEWER_OPTIONS)
    options |= {names.get(name, name): value for name, value in identity.items() if name != "reader"}
    parameters = set(inspect.signature(Reader).parameters)
    reader = Reader(**options) if set(options) == parameters else Reader()  # type: ignore[arg-type]
    if reader.identity() != identity:
        raise DataError(
            f"this run's reader {identity.get('reader')!s:.60} is not gpt2kit's own. Give the text as --files"
        )
    return reader


def _problems(reader: Reader) -> list[str]:
    """List what is invalid in a reader's options, which may also come from a checkpoint."""
    fraction, least, most = reader.max_bad_fraction, reader.min_chars, reader.max_documents
    similarity = reader.drop_near_duplicates
    template = reader.template
    fields = formats.template_fields(template) if isinstance(template, str) else []
    rules = [
        ("document", isinstance(reader.document, str) and reader.document, "must be text, and not empty"),
        ("field", isinstance(reader.field, str), "must be text"),
        ("template", template is None or fields, "must contain a field in braces, such as {text}"),
        (
            "loss_on",
            isinstance(reader.loss_on, list) and all(name in fields for name in reader.loss_on),
            f"must be a field of {reader_option('template')}, or several",
        ),
        (
            "loss_on",
            not reader.loss_on or reader.document in ("file", "auto"),
            f"needs {reader_option('document')} file, since a record is one document",
        ),
        ("errors", reader.errors in get_args(Errors), "must be stop or replace"),
        ("max_bad_fraction", isinstance(fraction, int | float) and 0 <= fraction < 1, "must be from 0 to below 1"),
        ("min_chars", type(least) is int and least >= 0, "must be a whole number, at least 0"),
        ("max_documents", most is None or (type(most) is int and most >= 1), "must be a whole number, at least 1"),
        (
            "drop_near_duplicates",
            similarity is None or (type(similarity) in (int, float) and 0 < similarity <= 1),
            "must be a similarity above 0, and at most 1",
        ),
    ]
    problems = Problems(encodings.encoding_problems(str(reader.encoding)))
    for name, is_valid, rule in rules:
        problems.check(is_valid, f"{reader_option(name)} {getattr(reader, name)!r:.60}: {rule}")
    return problems.messages


class Selection(NamedTuple):
    """The documents of files, or those of one split."""

    paths: Sequence[PathOrURL]
    reader: Reader = Reader()
    split_range: SplitRange | None = None

    def read(self, report: ReadReport | None = None) -> Iterator[str]:
        """Yield the documents, as `Reader.read` does."""
        return self.reader.read(self.paths, report, self.split_range)


def read_rest(piece: str, pieces: Iterator[str]) -> Iterator[str]:
    """Yield the pieces that follow `piece`, up to the end of its document."""
    while isinstance(piece, UnfinishedPiece):
        piece = next(pieces)
        yield piece


def batched(pieces: Iterable[StrT], size: int) -> Iterator[list[StrT]]:
    """Group pieces into lists of at least `size` characters; only the last may have fewer."""
    batch: list[StrT] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece)
        if characters >= size:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def describe_documents(reader: Reader, paths: Sequence[PathOrURL]) -> str:
    """Return what one document of these files is, such as `a file each`."""
    if reader.document in ("line", "paragraph"):
        return f"a {reader.document} each"
    if reader.document not in ("auto", "file"):
        return f"separated by {reader.document!r}"
    structured = [is_hub_dataset(path) or suffixes(path)[0] in _STRUCTURED for path in paths]
    plain = "line" if reader.document == "auto" else "file"
    return "a record each" if all(structured) else f"a {plain} or record each" if any(structured) else f"a {plain} each"


def _separator(document: str, auto: str) -> str:
    """Return what separates documents; empty if they are never split."""
    return {"auto": auto, "line": "\n", "paragraph": "\n\n", "file": ""}.get(document, document)


def _margin(separator: str) -> str:
    """Return the characters to strip from documents: newlines for paragraphs, which may have several between them."""
    return "\n" if separator == "\n\n" else ""


def _parts_as_pieces(parts: list[formats.Part]) -> Iterator[str]:
    """Yield the parts of a record as the pieces of one document."""
    for is_context, text in parts[:-1]:
        yield UnfinishedContext(text) if is_context else UnfinishedPiece(text)
    is_context, text = parts[-1]
    yield Context(text) if is_context else text


def _split_records(texts: Iterator[str], separator: str) -> Iterator[str]:
    """Split each record's text into documents."""
    for text in texts:
        for document in text.split(separator) if separator else [text]:
            if stripped := document.strip(_margin(separator)):
                yield stripped


def split_text(chunks: Iterable[str], separator: str = "") -> Iterator[str]:
    """Split plain text into documents, and long documents into pieces; hold at most about two pieces."""
    margin = _margin(separator)
    rest = ""
    is_continued = False  # whether a piece of this document has been yielded
    for chunk in chunks:
        *documents, rest = (rest + chunk).split(separator) if separator else [rest + chunk]
        for document in documents:
            yield from _strip(document, margin, is_continued)
            is_continued = False
        if not is_continued:
            rest = rest.lstrip(margin)
        # Keep at least a separator's length: a separator may begin there, and the last piece must not be empty.
        while len(rest) > PIECE_LENGTH + len(separator):
            end = rest.rfind("\n", PIECE_LENGTH // 2, PIECE_LENGTH) + 1 or PIECE_LENGTH
            yield UnfinishedPiece(rest[:end])
            rest, is_continued = rest[end:], True
    yield from _strip(rest, margin, is_continued)


def _strip(document: str, margin: str, is_continued: bool) -> Iterator[str]:
    """Strip the margin of a document, and yield what is left unless it is empty."""
    document = document.rstrip(margin)
    if not is_continued:
        document = document.lstrip(margin)
    if document:
        yield document
