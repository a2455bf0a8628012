"""Read the records of Parquet and Arrow files, including those that `datasets.save_to_disk` writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gpt2kit.commands import reader_option
from gpt2kit.errors import DataError
from gpt2kit.text.formats import Record, check_column, template_fields
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.sources import PathOrURL, missing_package, open_seekable


def read_parquet(
    path: PathOrURL, field: str, template: str | None, replace: bool, report: ReadReport
) -> Iterator[Record]:
    """Yield one column of a Parquet file, or with a template the rows of its columns."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise missing_package(path, "Parquet", "pyarrow") from None
    with open_seekable(path, report) as file:
        try:
            table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            if template:
                names = _text_columns(table.schema_arrow, template_fields(template), path)
                yield from _rows(table.iter_batches(_rows_per_batch(table.metadata), columns=names), names, path)
                return
            check_column(field, table.schema_arrow.names, path)
            kind = table.schema_arrow.field(field).type
            kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
            if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise DataError(f"{path}: column {field!r} is {kind}, not text. Set {reader_option('field')}")
            number = 0
            for batch in table.iter_batches(_rows_per_batch(table.metadata), columns=[field]):
                # As bytes, because Parquet does not guarantee that its strings are UTF-8.
                for value in batch.column(0).cast(kind).cast(arrow.large_binary()):
                    number += 1
                    where, raw = f"{path} row {number}", value.as_py()
                    try:
                        text = None if raw is None else raw.decode()
                    except UnicodeDecodeError:
                        if not replace:
                            raise DataError(
                                f"{where}: not UTF-8. Fix it, or set {reader_option('errors')} replace"
                            ) from None
                        report.note("records with undecodable bytes, replaced", where)
                        text = raw.decode("utf-8", "replace")
                    yield where, text
        except (arrow.ArrowException, ValueError) as error:  # ValueError: names that are not UTF-8
            raise DataError(f"{path}: not a readable Parquet file ({error}). Download or write it again") from None


def read_arrow(path: PathOrURL, field: str, template: str | None, report: ReadReport) -> Iterator[Record]:
    """Yield the rows of an Arrow file: of a stream, as `datasets` writes it, or of the file format (Feather)."""
    try:
        import pyarrow as arrow
        from pyarrow import ipc
    except ImportError:
        raise missing_package(path, "Arrow", "pyarrow") from None
    with open_seekable(path, report) as file:
        try:
            is_stream = file.read(6) != b"ARROW1"
            file.seek(0)
            table = ipc.open_stream(file) if is_stream else ipc.open_file(file)
            names = _text_columns(table.schema, template_fields(template) if template else [field], path)
            batches = table if is_stream else map(table.get_batch, range(table.num_record_batches))
            yield from _rows(batches, names, path)
        except (arrow.ArrowException, ValueError) as error:  # ValueError: names that are not UTF-8
            raise DataError(f"{path}: not a readable Arrow file ({error}). Download or write it again") from None


def _text_columns(schema: Any, names: Iterable[str], path: PathOrURL) -> list[str]:
    """Return the names, each once; raise unless they are columns of texts or of lists of texts."""
    from pyarrow import types

    names = list(dict.fromkeys(names))
    for name in names:
        check_column(name, schema.names, path)
        kind = schema.field(name).type
        while types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
            kind = kind.value_type
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise DataError(f"{path}: column {name!r} is {kind}, not text. Set {reader_option('field')}")
    return names


def _rows(batches: Iterable[Any], names: list[str], path: PathOrURL) -> Iterator[Record]:
    """Yield the rows of Arrow batches; few of them are Python objects at a time."""
    number = 0
    for batch in batches:
        columns = batch.select(names)
        columns.validate(full=True)  # with wrong offsets, pyarrow would read any memory
        for start in range(0, columns.num_rows, 64):
            for row in columns.slice(start, 64).to_pylist():
                number += 1
                yield f"{path} row {number}", row


def _rows_per_batch(metadata: Any) -> int:
    """Return the number of rows that take about 4 MiB."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return int(min(max((1 << 22) / max(row_bytes, 1), 1), 4096))
