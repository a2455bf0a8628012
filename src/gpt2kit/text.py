"""Text files to documents. Everything that decides where a document begins and ends is here."""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from gpt2kit.errors import DataError

PIECE = 1 << 20
"""Characters after which a long document is handed on in pieces, so that memory does not depend on the text."""

_BINARY = {b"\x1f\x8b": "gzip", b"PK": "a zip archive", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class Part(str):
    """A piece of a document that goes on in the next item; a plain `str` ends its document."""


class Reader:
    """Reads UTF-8 text files. For another format, subclass it and override `documents`.

    Line ends are LF whatever the file has, a byte order mark is dropped, and empty documents do not count.

    Args:
        document: what one document is: `line`, `paragraph` (blank lines between), `file`, or any other text, which
            is then the separator between documents. The line end or separator is not part of the document.
    """

    def __init__(self, document: str = "line") -> None:
        self.document = document

    def identity(self) -> dict[str, object]:
        """What the documents depend on besides the files' content: part of the cache key."""
        kind = type(self)
        return {"reader": f"{kind.__module__}.{kind.__qualname__}", **vars(self)}

    def documents(self, path: Path) -> Iterator[str]:
        """The documents of one file; one longer than PIECE comes as several `Part`s and a last `str`."""
        separator = {"line": "\n", "paragraph": "\n\n", "file": ""}.get(self.document, self.document)
        return _split(_decoded(path), separator)


def reader_from(identity: dict[str, object]) -> Reader:
    """The reader that `identity` describes. It is never imported by name: what a checkpoint says cannot run code."""
    options = {name: value for name, value in identity.items() if name != "reader"}
    reader = Reader(**options) if set(options) == set(vars(Reader())) else Reader()  # type: ignore[arg-type]
    if reader.identity() != identity:
        raise DataError(f"this run's reader {identity['reader']} is not gpt2kit's own. Give the text as --files")
    return reader


def find_files(patterns: list[str]) -> list[Path]:
    """The files that paths, folders (searched through) and globs name, each once, in a fixed order."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            if not matches:
                raise DataError(f"{pattern}: no files in this folder. Put text files there or name another")
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
            if not matches:
                what = "no file matches" if glob.has_magic(pattern) else "no such file or folder"
                raise DataError(f"{pattern}: {what} (looked from {Path.cwd()}). Check the path")
        for match in matches:
            if not match.is_file():
                raise DataError(f"{match}: not a regular file. Name a text file, a folder or a pattern")
            found[match] = None
    return list(found)


def _decoded(path: Path) -> Iterator[str]:
    """The file's text in pieces of at most PIECE characters, line ends as LF."""
    decode = codecs.getincrementaldecoder("utf-8")("strict")
    offset = lines = 0
    held = ""  # a CR at a piece's end: its LF may follow
    with open(path, "rb") as file:
        while True:
            raw = file.read(PIECE)
            if offset == 0:
                _refuse_binary(path, raw)
                if raw.startswith(codecs.BOM_UTF8):
                    raw, offset = raw[3:], 3
            pending = len(decode.getstate()[0])
            try:
                text = held + decode.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                line = lines + raw[: max(error.start - pending, 0)].count(b"\n") + 1
                raise DataError(
                    f"{path} line {line}, byte {offset - pending + error.start}: not UTF-8. Save the file as UTF-8"
                ) from None
            if raw and text.endswith("\r"):
                text, held = text[:-1], "\r"
            else:
                held = ""
            if text:
                yield text.replace("\r\n", "\n").replace("\r", "\n")
            if not raw:
                return
            offset += len(raw)
            lines += raw.count(b"\n")


def _refuse_binary(path: Path, head: bytes) -> None:
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            raise DataError(f"{path}: looks like {what}, not UTF-8 text. Convert it first")
    if b"\0" in head:
        raise DataError(f"{path}: holds NUL bytes, so it is no text file. Remove it from the list")


def _split(pieces: Iterator[str], separator: str) -> Iterator[str]:
    """Cut a stream of text at each separator (an empty one: never), holding no more than about two pieces."""
    blank = "\n" if separator == "\n\n" else ""  # paragraphs: more than one blank line separates as one does
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
