"""Read the records of structured files: JSON Lines, JSON lists, CSV, datasets on the Hugging Face hub.

Files are read a few records at a time, so memory use depends on the largest record, not on the size of the file.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator
from operator import itemgetter
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gpt2kit.commands import reader_option
from gpt2kit.errors import DataError
from gpt2kit.files import parse_json
from gpt2kit.text.encodings import normalize_newlines
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.sources import PathOrURL, missing_package, translate_errors

# Maximum characters in a CSV cell. Without a limit, a stray quotation mark would make a cell of the rest of the file.
MAX_CELL = 1 << 26

# Where a record is, and its value: a string, another JSON value, or a BadRecord.
Record = tuple[str, object]
# Whether a part of a text is context, which the loss does not count, and the part.
Part = tuple[bool, str]

_SURROGATE = re.compile("[\ud800-\udfff]")
_FIELD = re.compile(r"\{([^{}]+)\}")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class BadRecord(ValueError):
    """A record without usable text: the reason, and a detail."""


def extract_texts(
    records: Iterable[Record],
    field: str,
    template: str | None,
    loss_on: Collection[str],
    replace: bool,
    report: ReadReport,
) -> Iterator[list[Part]]:
    """Yield the text of each record, with LF line endings. `report` decides whether a bad record raises.

    The text is one part, unless `loss_on` names fields of the template: all else is context then.
    """
    for where, value in records:
        report.records += 1
        try:
            parts = _parts_of(value, field, template, loss_on)
            for _, text in parts:
                text.encode()
        except UnicodeEncodeError:
            if not replace:
                report.reject_record(where, "half a surrogate pair", "not a character")
                continue
            report.note("records with half a surrogate pair, replaced", where)
            parts = [(is_context, _SURROGATE.sub("�", text)) for is_context, text in parts]
        except BadRecord as error:
            report.reject_record(where, *error.args)
            continue
        if any(text for is_context, text in parts if not is_context):
            yield [(is_context, normalize_newlines(text)) for is_context, text in parts]
        else:
            report.note(f"records without text{' in ' + ', '.join(loss_on) if loss_on else ''}", where)


def read_json_lines(text: Iterator[str], path: PathOrURL) -> Iterator[Record]:
    """Yield the records of a file with one JSON value per line; skip blank lines."""
    for number, line in enumerate(_lines(text), 1):
        if not line.isspace():
            try:
                value = parse_json(line)
            except ValueError as error:
                value = BadRecord("not JSON", str(error))
            yield f"{path} line {number}", value


def read_json_list(text: Iterator[str], path: PathOrURL) -> Iterator[Record]:
    """Yield the items of a file that is one JSON list. Broken JSON always raises."""
    stream = _JsonStream(text)
    if stream.peek() != "[":
        raise DataError(f"{path}: not a JSON list. Name it .jsonl if each line is a record")
    stream.position += 1
    number, following = 0, stream.peek()
    while following != "]":
        number += 1
        try:
            value = stream.read_value()
            following = stream.peek()
            if following not in (",", "]"):
                raise ValueError(f"{following!r} after the item" if following else "the list does not end")
        except ValueError as error:
            line = stream.line_number()
            raise DataError(f"{path} line {line}, item {number}: not JSON ({error}). Fix the file") from None
        if following == ",":
            stream.position += 1
        yield f"{path} item {number}", value
    stream.position += 1  # after the closing bracket
    if stream.peek():  # a second list would be lost
        raise DataError(
            f"{path} line {stream.line_number()}: text after the end of the list. Put all records into one list, or "
            "name the file .jsonl if each line is a record"
        )


class _JsonStream:
    """Reads consecutive JSON values from text of any length; holds one value and the chunks that it is in."""

    # A number, a literal or an escape that ends this close to the end of the text may continue in the next chunk.
    _MARGIN = 16

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._text, self._first_line = "", 1
        self.position = 0

    def line_number(self) -> int:
        """Return the line of the next character, from 1."""
        return self._first_line + self._text.count("\n", 0, self.position)

    def peek(self) -> str:
        """Skip spaces and return the next character, or an empty string at the end of the text."""
        while True:
            self.position = _SPACE.match(self._text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self._text):
                return self._text[self.position]
            if not self._read_more():
                return ""

    def read_value(self) -> object:
        """Return the next value. If it is invalid, stop at the invalid character and raise ValueError."""
        self.peek()
        while True:
            message = ""
            margin = len(self._text) - self._MARGIN
            try:
                value, end = _DECODER.raw_decode(self._text, self.position)
                is_incomplete = end > margin
            except json.JSONDecodeError as error:
                message, end = error.msg, error.pos
                is_incomplete = end > margin or message.startswith("Unterminated string")
            except RecursionError:
                raise ValueError("nested too deeply") from None
            if is_incomplete and self._read_more():
                continue
            self.position = end
            if message:
                raise ValueError(message)
            return value

    def _read_more(self) -> bool:
        """At least double the text, so that a long value is parsed few times; return False at the end of the file."""
        rest = self._text[self.position :]
        chunks, size = [], 0
        for chunk in self._chunks:
            chunks.append(chunk)
            size += len(chunk)
            if size >= len(rest):
                break
        if not chunks:
            return False
        self._first_line = self.line_number()
        self._text, self.position = rest + "".join(chunks), 0
        return True


def read_csv(
    text: Iterator[str], path: PathOrURL, field: str, template: str | None, delimiter: str
) -> Iterator[Record]:
    """Yield one column of a file with a header, or with a template whole rows.

    A row whose number of cells differs from the header's is bad.
    """
    csv.field_size_limit(MAX_CELL)
    rows = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        where = f"{path} line {rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, BadRecord("not CSV", str(error))
            continue
        if not row:
            continue
        if not header:
            header = row
            for name in template_fields(template) if template else [field]:
                check_column(name, header, path)
        elif len(row) != len(header):
            yield where, BadRecord("not as many cells as the header", f"{len(row)} instead of {len(header)}")
        else:
            yield where, dict(zip(header, row, strict=True)) if template else row[header.index(field)]


def read_hub_dataset(url: str) -> Iterator[Record]:
    """Yield the rows of a dataset on the hub: `hf://datasets/OWNER/NAME?config=C&split=train&revision=R`."""
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise missing_package(url, "hf://datasets", "datasets") from None
    parts = urlsplit(url)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    options: dict[str, Any] = {"split": "train", **query, "streaming": True}
    with translate_errors(url):
        rows = load_dataset(parts.path.lstrip("/"), options.pop("config", None), **options)
        for number, row in enumerate(rows, 1):
            yield f"{url} row {number}", row


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    """Yield the lines of a text with their line endings."""
    line: list[str] = []  # a line may be much longer than a chunk, so its parts are joined once
    for chunk in chunks:
        first, *others = chunk.split("\n")
        line.append(first)
        for other in others:
            yield "".join(line) + "\n"
            line = [other]
    if any(line):
        yield "".join(line)


def template_fields(template: str) -> list[str]:
    """Return the names of the fields in a template."""
    return _FIELD.findall(template)


def _parts_of(value: object, field: str, template: str | None, loss_on: Collection[str]) -> list[Part]:
    """Return the text of a record: the value itself, its field, or the template with its fields."""
    if isinstance(value, BadRecord):
        raise value
    if template and isinstance(value, dict):
        parts: list[Part] = []
        # Text and names of fields alternate. A line break is \\n as typed in a shell.
        for number, item in enumerate(_FIELD.split(template.replace("\\n", "\n"))):
            is_field = number % 2 == 1
            text = _join_lines(_field_of(value, item, "template")) if is_field else item
            if text:
                parts.append((bool(loss_on) and not (is_field and item in loss_on), text))
        groups = itertools.groupby(parts, itemgetter(0))
        return [(is_context, "".join(text for _, text in group)) for is_context, group in groups]
    if loss_on:
        raise BadRecord(f"{type(value).__name__} instead of an object", f"see {reader_option('loss_on')}")
    if isinstance(value, dict):
        value = _field_of(value, field, "field")
    if isinstance(value, str):
        return [(False, value)]
    advice = f"a list of lines: name its field in {reader_option('template')}" if isinstance(value, list) else ""
    raise BadRecord("null instead of text" if value is None else f"{type(value).__name__} instead of text", advice)


def _field_of(record: dict[str, object], name: str, option: str) -> object:
    if name not in record:
        raise BadRecord(f"no field {name!r}", f"it has {_shorten(record)}; see {reader_option(option)}")
    return record[name]


def _join_lines(value: object) -> str:
    """Return a text, or the lines of a list as one text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    raise BadRecord("null instead of text" if value is None else f"{type(value).__name__} instead of text or lines")


def check_column(field: str, columns: list[str], path: PathOrURL) -> None:
    """Raise unless a file has this column."""
    if field not in columns:
        raise DataError(f"{path}: no column {field!r} (it has {_shorten(columns)}). Set {reader_option('field')}")


def _shorten(names: Iterable[object]) -> str:
    texts = list(map(str, names))
    return ", ".join([*texts[:8], "..."] if len(texts) > 8 else texts)
