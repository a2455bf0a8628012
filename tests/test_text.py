from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit import text
from gpt2kit.errors import DataError
from gpt2kit.text import Part, Reader, find_files


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
def test_documents(tmp_path: Path, document: str, expected: list[str]) -> None:
    assert read(tmp_path / "t.txt", b"a\n\n\nb c\nd\n", document) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_and_byte_order_marks_do_not_change_the_text(tmp_path: Path, end: bytes) -> None:
    content = b"\xef\xbb\xbf" + "日本\u2028x".encode() + end + b"two"
    assert read(tmp_path / "t.txt", content) == ["日本\u2028x", "two"]


def test_pieces_of_any_size_give_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "ab\r\ncdé日\n\n\r\nlast line is rather long 日本語".encode()
    whole = {kind: read(tmp_path / "t.txt", content, kind) for kind in ("line", "paragraph", "file", "|")}
    for size in range(1, 30):
        monkeypatch.setattr(text, "PIECE", size)
        for kind, documents in whole.items():
            joined, open_document = [], ""
            for piece in read(tmp_path / "t.txt", content, kind):
                open_document += piece
                if not isinstance(piece, Part):
                    joined.append(open_document)
                    open_document = ""
            assert not open_document and joined == documents, (size, kind)


def test_an_undecodable_byte_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.txt line 3, byte 8: not UTF-8"):
        read(tmp_path / "t.txt", b"one\ntwo\n\xff\xfe\n")


@pytest.mark.parametrize("content", [b"\x1f\x8bxx", b"PK\x03\x04", b"a\0b"])
def test_files_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"t\.txt"):
        read(tmp_path / "t.txt", content)


def test_files_are_found_once_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files([str(tmp_path / "*.txt"), str(tmp_path)])
    assert [path.name for path in found] == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize("pattern", ["nothing.txt", "*.none", "empty"])
def test_a_missing_file_is_named(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=pattern.replace("*", r"\*")):
        find_files([str(tmp_path / pattern)])


def test_a_reader_is_known_by_its_options_but_never_imported_by_name() -> None:
    reader = text.reader_from(Reader("paragraph").identity())
    assert reader.document == "paragraph"
    with pytest.raises(DataError, match="evil"):
        text.reader_from({"reader": "evil.Reader", "document": "line"})
