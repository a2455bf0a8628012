from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2kit.errors import DataError, UserError
from gpt2kit.text import reader
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.reader import Reader, reader_from
from gpt2kit.text.sources import PathOrURL, find_files
from gpt2kit.text.splits import UnfinishedPiece


def read(path: Path, content: bytes, document: str = "line") -> list[str]:
    path.write_bytes(content)
    return list(Reader(document).documents(path))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("line", ["a", "b c", "d"]),
        ("paragraph", ["a", "b c\nd"]),
        ("file", ["a\n\n\nb c\nd\n"]),
        ("b ", ["a\n\n\n", "c\nd\n"]),
    ],
)
def test_documents_are_split_at_the_separator(tmp_path: Path, document: str, expected: list[str]) -> None:
    assert read(tmp_path / "t.txt", b"a\n\n\nb c\nd\n", document) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_endings_and_byte_order_marks_do_not_change_the_text(tmp_path: Path, end: bytes) -> None:
    content = b"\xef\xbb\xbf" + "日本\u2028x".encode() + end + b"two"
    assert read(tmp_path / "t.txt", content) == ["日本\u2028x", "two"]


def test_pieces_of_any_size_give_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "ab\r\ncdé日\n\n\r\nlast line is rather long 日本語".encode()
    expected = {kind: read(tmp_path / "t.txt", content, kind) for kind in ("line", "paragraph", "file", "|")}
    for size in range(1, 30):
        monkeypatch.setattr(reader, "PIECE_LENGTH", size)
        monkeypatch.setattr("gpt2kit.text.sources.CHUNK", size)
        for kind, documents in expected.items():
            joined, open_document = [], ""
            for piece in read(tmp_path / "t.txt", content, kind):
                open_document += piece
                if not isinstance(piece, UnfinishedPiece):
                    joined.append(open_document)
                    open_document = ""
            assert not open_document and joined == documents, (size, kind)


def test_a_text_in_memory_has_the_pieces_of_a_file(tmp_path: Path) -> None:
    for text in ("", "a\n", "long line \n" * 60_000, "x" * 600_000):
        (tmp_path / "t.txt").write_text(text)
        pieces = list(reader.split_text([text]))
        assert pieces == list(Reader("file").documents(tmp_path / "t.txt")) and "".join(pieces) == text
        assert all(isinstance(piece, UnfinishedPiece) for piece in pieces[:-1])


def test_files_are_found_once_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden", ".git/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    files = find_files([str(tmp_path / "*.txt"), str(tmp_path)])
    assert [path.name for path in files] == ["a.txt", "b.txt", "c.txt"]


def test_a_reader_is_restored_from_its_options_but_not_imported_by_its_name() -> None:
    assert reader_from(Reader("paragraph").identity()).document == "paragraph"
    with pytest.raises(DataError, match="evil"):
        reader_from({"reader": "evil.Reader", "document": "line"})


def test_short_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\ntwelve\nx\neleven\n")
    report = ReadReport()
    assert list(Reader("line", min_chars=4).read([tmp_path / "t.txt"], report)) == ["twelve", "eleven"]
    assert report.lines() == [
        f"2 documents left out, shorter than data.reader.min_chars 4 (first: {tmp_path / 't.txt'})",
    ]


def test_short_last_pieces_are_not_short_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PIECE_LENGTH", 4)
    monkeypatch.setattr("gpt2kit.text.sources.CHUNK", 4)
    (tmp_path / "t.txt").write_text("abcdefghijkl\nabc\nabcdefghijklmnop\n")
    assert "".join(Reader("line", min_chars=11).read([tmp_path / "t.txt"])) == "abcdefghijklabcdefghijklmnop"


def test_two_iterations_at_once_have_separate_reports(tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text("x\nlong\n")
    one_reader, reports = Reader("line", min_chars=2), [ReadReport(), ReadReport()]
    for pair in zip(*(one_reader.read(paths, report) for report in reports), strict=True):
        assert pair == ("long", "long")
    assert [report.bytes for report in reports] == [14, 14] and reports[0].lines() == reports[1].lines()
    assert one_reader.identity() == Reader("line", min_chars=2).identity()


def test_max_documents_counts_over_all_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    paths = find_files([str(tmp_path)])
    assert list(Reader("line", max_documents=3).read(paths)) == ["a1", "a2", "b1"]
    assert list(Reader("line", max_documents=2).read([*paths, tmp_path / "not opened"])) == ["a1", "a2"]


def test_a_file_without_text_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n \n")
    (tmp_path / "b.txt").write_text("")
    report = ReadReport()
    assert list(Reader("line").read(find_files([str(tmp_path)]), report)) == [" "]
    assert report.lines() == [f"1 files without text (first: {tmp_path / 'b.txt'})"]


class UpperCaseReader(Reader):
    """A reader that overrides nothing but `documents`."""

    def documents(self, path: PathOrURL) -> Iterator[str]:
        yield from Path(path).read_text().upper().split(",")


def test_a_subclass_needs_only_documents(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a,bb,cc,dd")
    subclass = UpperCaseReader("line", min_chars=2, max_documents=2)
    assert list(subclass.read([tmp_path / "t.txt"])) == ["BB", "CC"]
    assert str(subclass.identity()["reader"]).endswith("UpperCaseReader")
    with pytest.raises(DataError, match="is not gpt2kit's own"):
        reader_from(subclass.identity())


def test_all_options_are_restored_from_a_checkpoint() -> None:
    identity = Reader("file", "title", "gb18030", "replace", 0.5, 3, 100).identity()
    assert all(value is None or type(value) in (str, int, float) for value in identity.values())
    assert reader_from(identity).identity() == identity


@pytest.mark.parametrize(
    "option",
    [
        {"document": ""},
        {"document": 3},
        {"encoding": "utf8x"},
        {"encoding": None},
        {"errors": "ignore"},
        {"max_bad_fraction": 1.0},
        {"max_bad_fraction": "x"},
        {"min_chars": -1},
        {"max_documents": 0},
    ],
)
def test_invalid_options_are_refused(option: dict[str, object]) -> None:
    name = next(iter(option))
    with pytest.raises(UserError, match=f"reader.{name}"):
        Reader(**option)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        reader_from({**Reader().identity(), **option})


@pytest.mark.parametrize("name", ["line.txt", "records.jsonl", "list.json", "rows.csv"])
def test_memory_does_not_depend_on_the_file(name: str, tmp_path: Path) -> None:
    """Read 10 MB, 28 MB as a string: one line of plain text, or records of 0.3 MB each."""
    before, separator, after = {
        "line.txt": ("", "", ""),
        "records.jsonl": ('{"text": "', '"}\n{"text": "', '"}'),
        "list.json": ('["', '", "', '"]'),
        "rows.csv": ('text\n"', '"\n"', '"\n'),
    }[name]
    with open(tmp_path / name, "w", encoding="utf-8") as file:
        file.write(before)
        for number in range(32):
            file.write(separator if number else "")
            file.write("word 🙂 " * (1 << 15))
        file.write(after)
    tracemalloc.start()
    characters = sum(len(piece) for piece in Reader().read([tmp_path / name]))
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == 32 * 7 << 15
    assert memory < 10e6
