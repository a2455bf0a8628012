"""Records of structured files: JSON Lines, JSON lists, CSV, Parquet, data sets of the hub.

Each record's text is held whole; a file is read some records at a time.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gpt2kit.errors import DataError
from gpt2kit.text.encodings import unix
from gpt2kit.text.sources import Place, Report, missing, seekable

# Characters in a CSV cell. Without a limit, a stray quotation mark would take the rest of the file as one cell.
CELL = 1 << 26

_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class _BadRecord(ValueError):
    """A record without usable text: the reason, and a detail."""


def json_lines(text: Iterator[str], place: Place, name: str, replace: bool, report: Report) -> Iterator[str]:
    """The records of a file with a JSON value per line; blank lines do not count."""
    for number, line in enumerate(_lines(text), 1):
        if line.isspace():
            continue
        where = f"{place} line {number}"
        report.records += 1
        try:
            record = _text_of(_parse(line), name)
        except _BadRecord as error:
            report.bad_record(where, *error.args)
            continue
        yield from _clean(record, where, replace, report)


def json_list(text: Iterator[str], place: Place, name: str, replace: bool, report: Report) -> Iterator[str]:
    """The records of a file that is one JSON list, read item by item; broken JSON always stops."""
    stream = _JsonStream(text)
    if stream.peek() != "[":
        raise DataError(f"{place}: not a JSON list. Name it .jsonl if each line is a record")
    stream.at += 1
    number, following = 0, stream.peek()
    while following != "]":
        number += 1
        where = f"{place} item {number}"
        report.records += 1
        try:
            value = stream.value()
            following = stream.peek()
            if following not in (",", "]"):
                raise ValueError(f"{following!r} after it" if following else "the list does not end")
        except ValueError as error:
            raise DataError(
                f"{place} line {stream.line_number()}, item {number}: not JSON ({error}). Mend the file"
            ) from None
        stream.at += 1
        try:
            record = _text_of(value, name)
        except _BadRecord as error:
            report.bad_record(where, *error.args)
            continue
        yield from _clean(record, where, replace, report)


class _JsonStream:
    """JSON values, one after another, in a text of any length. What was read is dropped."""

    # Near the end of the text in hand, a number, a word or an escape may be cut off.
    _CUT = 16

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text, self._lines = "", 1
        self.at = 0

    def line_number(self) -> int:
        """The line of the next character, from 1."""
        return self._lines + self._text.count("\n", 0, self.at)

    def peek(self) -> str:
        """Skip spaces and return the next character; nothing at the end of the text."""
        while True:
            self.at = _SPACE.match(self._text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._read():
                return ""

    def value(self) -> object:
        """Read the next value. Raise ValueError, and stop at its place, if it is broken."""
        self.peek()
        while True:
            broken = None
            settled = len(self._text) - self._CUT
            try:
                value, end = _DECODER.raw_decode(self._text, self.at)
                incomplete = end > settled
            except json.JSONDecodeError as error:
                broken, end = error.msg, error.pos
                incomplete = end > settled or broken.startswith("Unterminated string")
            except RecursionError:
                raise ValueError("nested too deep") from None
            if incomplete and self._read():
                continue
            self.at = end
            if broken:
                raise ValueError(broken)
            return value

    def _read(self) -> bool:
        """Take in as much text as is in hand, so that a long value is parsed only a few times; False at the end."""
        text = [self._text[self.at :]]
        size, more = 0, False
        for piece in self._pieces:
            text.append(piece)
            size, more = size + len(piece), True
            if size >= len(text[0]):
                break
        if more:
            self._lines = self.line_number()
            self._text, self.at = "".join(text), 0
        return more


def csv_rows(
    text: Iterator[str], place: Place, name: str, delimiter: str, replace: bool, report: Report
) -> Iterator[str]:
    """One column of a file with a header; rows with other cells than the header has are bad."""
    csv.field_size_limit(CELL)
    rows = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    column, width = -1, 0
    while True:
        where = f"{place} line {rows.line_num + 1}"
        problem: tuple[str, str] | None = None
        try:
            row = next(rows, None)
        except csv.Error as error:
            row, problem = [], ("not CSV", str(error))
        if row is None:
            return
        if column < 0 and row:
            if name not in row:
                raise DataError(f"{place}: no column {name!r} (it has {_some(row)}). Set reader.field")
            column, width = row.index(name), len(row)
            continue
        if row and len(row) != width:
            problem = ("not as many cells as the header", f"{len(row)} instead of {width}")
        if problem or row:
            report.records += 1
        if problem:
            report.bad_record(where, *problem)
        elif row:
            yield from _clean(row[column], where, replace, report)


def parquet_rows(place: Place, name: str, replace: bool, report: Report) -> Iterator[str]:
    """One column of a Parquet file, a few rows at once."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise missing(place, "Parquet", "pyarrow") from None
    with seekable(place, report) as file:
        try:
            table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            kinds = {column.name: column.type for column in table.schema_arrow}
            if name not in kinds:
                raise DataError(f"{place}: no column {name!r} (it has {_some(list(kinds))}). Set reader.field")
            kind = kinds[name]
            kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
            if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise DataError(f"{place}: column {name!r} is {kind}, not text. Set reader.field")
            number = 0
            for batch in table.iter_batches(_rows_at_once(table.metadata), columns=[name]):
                # As bytes, since Parquet does not make sure that its strings are UTF-8.
                for value in batch.column(0).cast(kind).cast(arrow.large_binary()):
                    number += 1
                    where = f"{place} row {number}"
                    report.records += 1
                    raw = value.as_py()
                    if raw is None:
                        report.bad_record(where, "null instead of text")
                        continue
                    try:
                        text = raw.decode()
                    except UnicodeDecodeError:
                        if not replace:
                            raise DataError(f"{where}: not UTF-8. Mend it, or set reader.on_bad_text replace") from None
                        report.note("undecodable records, their bad bytes replaced", where)
                        text = raw.decode("utf-8", "replace")
                    yield from _clean(text, where, replace, report)
        except arrow.ArrowException as error:
            raise DataError(f"{place}: not a readable Parquet file ({error}). Fetch or write it again") from None


def hub_rows(url: str, name: str, replace: bool, report: Report) -> Iterator[str]:
    """The rows of a data set of the hub: `hf://datasets/OWNER/NAME?config=C&split=train&revision=R`."""
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise missing(url, "hf://datasets", "datasets") from None
    parts = urlsplit(url)
    asked = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    options: dict[str, Any] = {"split": "train", **asked, "streaming": True}
    rows = load_dataset(parts.path.lstrip("/"), options.pop("config", None), **options)
    for number, row in enumerate(rows, 1):
        report.records += 1
        where = f"{url} row {number}"
        try:
            record = _text_of(row, name)
        except _BadRecord as error:
            report.bad_record(where, *error.args)
            continue
        yield from _clean(record, where, replace, report)


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """The lines of a text with their ends, each held whole."""
    held: list[str] = []
    for piece in pieces:
        first, *others = piece.split("\n")
        held.append(first)
        for line in others:
            yield "".join(held) + "\n"
            held = [line]
    if last := "".join(held):
        yield last


def _parse(line: str) -> object:
    try:
        return json.loads(line)
    except RecursionError:
        raise _BadRecord("not JSON", "nested too deep") from None
    except ValueError as error:
        raise _BadRecord("not JSON", str(error)) from None


def _text_of(value: object, name: str) -> str:
    """The text of a parsed record: itself, or its field of that name."""
    if isinstance(value, dict):
        if name not in value:
            raise _BadRecord(f"no field {name!r}", f"it has {_some(list(value))}; see reader.field")
        value = value[name]
    if isinstance(value, str):
        return value
    raise _BadRecord("null instead of text" if value is None else f"{type(value).__name__} instead of text")


def _clean(text: str, where: str, replace: bool, report: Report) -> Iterator[str]:
    """The text with LF line ends, unless it is nothing or cannot be encoded."""
    if not text:
        report.note("records without text", where)
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        if not replace:
            report.bad_record(where, "half a surrogate pair, which is no character")
            return
        report.note("records with half a surrogate pair, replaced", where)
        text = _SURROGATE.sub("�", text)
    yield unix(text)


def _rows_at_once(metadata: Any) -> int:
    """Rows that are about 4 MiB together."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return int(min(max((1 << 22) / max(largest, 1), 1), 4096))


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
