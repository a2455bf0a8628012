"""Structured files to the texts of their records: JSON Lines, JSON lists, CSV, Parquet, data sets of the hub.

A record is one text: a `str`, or an iterator of pieces if it is too long to be held. JSON of any size is read in
pieces of about LONG characters; a CSV row is held whole, up to ROW characters; of Parquet, some pages of one column.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gpt2kit.decoding import unix
from gpt2kit.errors import DataError
from gpt2kit.sources import Place, Report, missing, seekable

Record = str | Iterator[str]

LONG = 1 << 22
"""Characters from which a JSON value is not held whole."""

ROW = 1 << 26
"""Characters that a row of a CSV file may have."""

_SPACES = re.compile(r"[ \t\r\n]*")
_BLANKS = re.compile(r"[ \t\r]*")
_STRING = re.compile(r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_HIGH = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_SCALAR = re.compile(r'[^\s"\[\]{},:]+')
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Broken(ValueError):
    """Not JSON; what follows in the same record means nothing."""


class _Wrong(ValueError):
    """JSON, but no text in it where it should be: the reason, and a detail."""


def json_lines(text: Iterator[str], place: Place, name: str, replace: bool, report: Report) -> Iterator[Record]:
    """The records of a file with a JSON value a line; blank lines do not count."""
    stream = _Stream(text, _BLANKS)
    number = 0
    while (line := stream.line(LONG)) != "":
        number += 1
        where = f"{place} line {number}"
        if line is None:
            report.records += 1
            yield _guarded(_checked(unix(_long(stream, name)), where, replace, report), where, report, stops=False)
            stream.skip_line()
        elif not line.isspace():
            report.records += 1
            try:
                record = _text_of(_parsed(line), name)
            except (_Broken, _Wrong) as error:
                report.bad_record(where, *error.args)
                continue
            yield from _sound(record, where, replace, report)


def json_list(text: Iterator[str], place: Place, name: str, replace: bool, report: Report) -> Iterator[Record]:
    """The records of a file that is one JSON list, read item by item; broken JSON always stops."""
    stream = _Stream(text, _SPACES)
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
                        _checked(unix(_long(stream, name)), where, replace, report), where, report, stops=True
                    )
            except _Wrong as error:
                report.bad_record(where, *error.args)
            separator = stream.peek()
            if separator not in (",", "]"):
                raise _Broken("not JSON", f"{separator!r} after it" if separator else "the list does not end")
            stream.at += 1
            if separator == "]":
                return
    except _Broken as error:
        why = " ".join(f"({part})" if index else part for index, part in enumerate(error.args))
        raise DataError(f"{place} line {stream.line_number()}, item {number}: {why}. Mend the file") from None


def csv_rows(
    text: Iterator[str], place: Place, name: str, delimiter: str, replace: bool, report: Report
) -> Iterator[Record]:
    """One column of a file with a header; rows with other cells than the header has are bad."""
    stream = _Stream(text, _BLANKS)

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
        except _Wrong as error:
            report.bad_record(where, *error.args)
            continue
        yield from _sound(record, where, replace, report)


class _Stream:
    """Text that is looked at a little ahead; what was consumed is dropped."""

    def __init__(self, pieces: Iterator[str], spaces: re.Pattern[str]) -> None:
        self._pieces, self._spaces = pieces, spaces
        self.text, self.at = "", 0
        self._lines = 1

    def more(self) -> bool:
        """Add the next piece to what is held; whether there was one."""
        piece = next(self._pieces, "")
        self._lines += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)

    def line_number(self) -> int:
        return self._lines + self.text.count("\n", 0, self.at)

    def peek(self) -> str:
        """The next character that is no space, not consumed; nothing at the end."""
        while True:
            self.at = self._spaces.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def line(self, limit: int) -> str | None:
        """The next line with its end, consumed; nothing at the end; None if it is longer than the limit."""
        searched = self.at
        while (end := self.text.find("\n", searched)) < 0:
            if len(self.text) - self.at > limit:
                return None
            searched = len(self.text) - self.at  # where it will be once the consumed text is dropped
            if not self.more():
                line, self.at = self.text[self.at :], len(self.text)
                return line
        line, self.at = self.text[self.at : end + 1], end + 1
        return line

    def skip_line(self) -> None:
        while (end := self.text.find("\n", self.at)) < 0:
            self.at = len(self.text)
            if not self.more():
                return
        self.at = end + 1

    def value(self, limit: int) -> tuple[bool, object]:
        """The next JSON value, consumed; (False, None), with nothing consumed, if it is longer than the limit."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text):
                    self.at = end
                    return True, value
                if not self.more():  # else: a number at the end of what is held may go on
                    self.at = len(self.text)
                    return True, value
            except RecursionError:
                raise _Broken("not JSON", "nested too deep") from None
            except ValueError as error:
                if len(self.text) - self.at > limit:
                    return False, None
                if not self.more():
                    raise _Broken("not JSON", str(error).split(":")[0]) from None

    def string(self) -> Iterator[str]:
        """The pieces of a JSON string; its opening quote is the next character."""
        self.at += 1
        while True:
            end = _STRING.match(self.text, self.at).end()  # type: ignore[union-attr]
            raw = self.text[self.at : end]
            closed = self.text[end : end + 1] == '"'
            if not closed and (high := _HIGH.search(raw)):  # the other half of the pair may follow
                end, raw = self.at + high.start(), raw[: high.start()]
            if raw:
                yield json.loads(f'"{raw}"')
            self.at = end + closed
            if closed:
                return
            rest = len(self.text) - self.at
            if (rest >= 12 or (rest and self.text[self.at] < " ")) or not self.more():
                raise _Broken("not JSON", "a string that does not end, or a bad character in it")


_DECODER = json.JSONDecoder()


def _long(stream: _Stream, name: str) -> Iterator[str]:
    """The pieces of the text of a value that is too long to be held; the stream is left behind the value."""
    first = stream.peek()
    if first == '"':
        yield from stream.string()
        return
    if first != "{":
        _skip(stream)
        raise _Wrong(f"a {'list' if first == '[' else 'value'}, neither text nor an object")
    wrong: tuple[str, ...] | None = (f"no field {name!r}", "see reader.field")
    stream.at += 1
    while stream.peek() != "}":
        if stream.peek() != '"':
            raise _Broken("not JSON", "a key is missing")
        key = ""
        for piece in stream.string():
            key += piece[: len(name) + 1] if len(key) <= len(name) else ""
        if stream.peek() != ":":
            raise _Broken("not JSON", "':' is missing")
        stream.at += 1
        if key == name and stream.peek() == '"' and wrong:
            wrong = None
            yield from stream.string()
        else:
            if key == name and wrong:
                wrong = (f"field {name!r} is no text",)
            _skip(stream)
        if stream.peek() == ",":
            stream.at += 1
        elif stream.peek() != "}":
            raise _Broken("not JSON", "',' or '}' is missing")
    stream.at += 1
    if wrong:
        raise _Wrong(*wrong)


def _skip(stream: _Stream) -> None:
    """Consume one JSON value, whatever its size."""
    depth = 0
    while True:
        character = stream.peek()
        if not character:
            raise _Broken("not JSON", "it ends in the middle")
        if character == '"':
            for _ in stream.string():
                pass
        elif _SCALAR.match(stream.text, stream.at):
            while scalar := _SCALAR.match(stream.text, stream.at):
                stream.at = scalar.end()
                if stream.at < len(stream.text) or not stream.more():  # else the word may go on
                    break
        elif character in ("[{" if depth == 0 else "[]{},:"):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(character, 0)
            stream.at += 1
        else:
            raise _Broken("not JSON", f"{character!r} instead of a value")
        if depth <= 0:
            return


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except RecursionError:
        raise _Broken("not JSON", "nested too deep") from None
    except ValueError as error:
        raise _Broken("not JSON", str(error)) from None


def _text_of(value: object, name: str) -> str:
    """The text of a parsed record: itself, or its field of that name."""
    if isinstance(value, dict):
        if name not in value:
            raise _Wrong(f"no field {name!r}", f"it has {_some(list(value))}; see reader.field")
        value = value[name]
    if isinstance(value, str):
        return value
    raise _Wrong("null instead of text" if value is None else f"{type(value).__name__} instead of text")


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
    except (_Broken, _Wrong) as error:
        if begun or (stops and isinstance(error, _Broken)):
            raise DataError(f"{where}: {error.args[0]}, in a record too long to be left out. Mend it") from None
        report.bad_record(where, *error.args)


def _rows_at_once(metadata: Any) -> int:
    """Rows that are about 4 MiB together."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return int(min(max((1 << 22) / max(largest, 1), 1), 4096))


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
