"""Structured files to the texts of their records: JSON Lines, JSON lists, CSV, Parquet, data sets of the hub.

A record is one text: a `str`, or an iterator of pieces if it is too long to be held. JSON of any size is read in
pieces of about LONG characters; a CSV row is held whole, up to ROW characters; of Parquet, some pages of one column.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gpt2kit.errors import DataError
from gpt2kit.text.encodings import unix
from gpt2kit.text.json_stream import BLANKS, SPACES, Broken, Stream, Wrong, long_text, parsed
from gpt2kit.text.sources import Place, Report, missing, seekable

Record = str | Iterator[str]

LONG = 1 << 22
"""Characters from which a JSON value is not held whole."""

ROW = 1 << 26
"""Characters that a row of a CSV file may have."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def json_lines(text: Iterator[str], place: Place, name: str, replace: bool, report: Report) -> Iterator[Record]:
    """The records of a file with a JSON value a line; blank lines do not count."""
    stream = Stream(text, BLANKS)
    number = 0
    while (line := stream.line(LONG)) != "":
        number += 1
        where = f"{place} line {number}"
        if line is None:
            report.records += 1
            yield _guarded(_checked(unix(long_text(stream, name)), where, replace, report), where, report, stops=False)
            stream.skip_line()
        elif not line.isspace():
            report.records += 1
            try:
                record = _text_of(parsed(line), name)
            except (Broken, Wrong) as error:
                report.bad_record(where, *error.args)
                continue
            yield from _sound(record, where, replace, report)


def json_list(text: Iterator[str], place: Place, name: str, replace: bool, report: Report) -> Iterator[Record]:
    """The records of a file that is one JSON list, read item by item; broken JSON always stops."""
    stream = Stream(text, SPACES)
    if stream.peek() != "[":
        raise DataError(f"{place}: not a JSON list. Name it .jsonl if each line is a record")
    stream.at += 1
    number = 0
    try:
        if stream.peek() == "]":
            return
        while True:
            number += 1
            where = f"{place} item {number}"
            report.records += 1
            stream.peek()
            try:
                found, value = stream.value(LONG)
                if found:
                    yield from _sound(_text_of(value, name), where, replace, report)
                else:
                    yield _guarded(
                        _checked(unix(long_text(stream, name)), where, replace, report), where, report, stops=True
                    )
            except Wrong as error:
                report.bad_record(where, *error.args)
            separator = stream.peek()
            if separator not in (",", "]"):
                raise Broken("not JSON", f"{separator!r} after it" if separator else "the list does not end")
            stream.at += 1
            if separator == "]":
                return
    except Broken as error:
        why = " ".join(f"({part})" if index else part for index, part in enumerate(error.args))
        raise DataError(f"{place} line {stream.line_number()}, item {number}: {why}. Mend the file") from None


def csv_rows(
    text: Iterator[str], place: Place, name: str, delimiter: str, replace: bool, report: Report
) -> Iterator[Record]:
    """One column of a file with a header; rows with other cells than the header has are bad."""
    stream = Stream(text, BLANKS)

    def lines() -> Iterator[str]:
        number = 0
        while line := stream.line(ROW):
            number += 1
            yield line
        if line is None:
            raise DataError(f"{place} line {number + 1}: longer than {ROW:,} characters. Is this a CSV file?")

    csv.field_size_limit(ROW)
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
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
            yield from _sound(row[column], where, replace, report)


def parquet_rows(place: Place, name: str, replace: bool, report: Report) -> Iterator[Record]:
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
                    yield from _sound(text, where, replace, report)
        except arrow.ArrowException as error:
            raise DataError(f"{place}: not a readable Parquet file ({error}). Fetch or write it again") from None


def hub_rows(url: str, name: str, replace: bool, report: Report) -> Iterator[Record]:
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
        except Wrong as error:
            report.bad_record(where, *error.args)
            continue
        yield from _sound(record, where, replace, report)


def _text_of(value: object, name: str) -> str:
    """The text of a parsed record: itself, or its field of that name."""
    if isinstance(value, dict):
        if name not in value:
            raise Wrong(f"no field {name!r}", f"it has {_some(list(value))}; see reader.field")
        value = value[name]
    if isinstance(value, str):
        return value
    raise Wrong("null instead of text" if value is None else f"{type(value).__name__} instead of text")


def _sound(text: str, where: str, replace: bool, report: Report) -> Iterator[str]:
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
    yield "".join(unix(iter([text]))) if "\r" in text else text


def _checked(pieces: Iterator[str], where: str, replace: bool, report: Report) -> Iterator[str]:
    """`_sound` for a text in pieces: what of it was given on cannot be taken back, so a bad character stops."""
    for piece in pieces:
        if _SURROGATE.search(piece):
            if not replace:
                raise DataError(f"{where}: half a surrogate pair. Mend it, or set reader.on_bad_text replace")
            report.note("records with half a surrogate pair, replaced", where)
            piece = _SURROGATE.sub("�", piece)
        yield piece


def _guarded(pieces: Iterator[str], where: str, report: Report, stops: bool) -> Iterator[str]:
    """A long record's pieces; one that turns out bad is left out, unless some of it was given on.

    Args:
        stops: broken JSON stops in any case, since nobody knows where the next record begins.
    """
    begun = False
    try:
        for piece in pieces:
            begun = begun or piece != ""
            yield piece
    except (Broken, Wrong) as error:
        if begun or (stops and isinstance(error, Broken)):
            raise DataError(f"{where}: {error.args[0]}, in a record too long to be left out. Mend it") from None
        report.bad_record(where, *error.args)


def _rows_at_once(metadata: Any) -> int:
    """Rows that are about 4 MiB together."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return int(min(max((1 << 22) / max(largest, 1), 1), 4096))


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
