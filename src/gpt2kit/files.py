"""Durable files: a reader sees the old content or the new, never half of it, whatever is killed and whenever."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

POSIX = os.name == "posix"
"""Of the system's files: a mapped one may be deleted and renamed, folders can be synced, and a change of content shows
in a time that nobody can set back. On Windows none of this holds."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends well it is synced to disk and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` durably, as UTF-8 with LF line ends on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sync_file(path: Path) -> None:
    """Make what was written to `path` survive a power cut."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut (a no-op where folders cannot be opened)."""
    if POSIX:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(path: Path) -> str:
    """The file's SHA-256 as hex digits, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """Content hashes that are remembered while a file's size, times and inode stay the same.

    Hashing a big corpus at each start would be slow, and a name or a time alone would miss an edit. The change time
    (ctime) cannot be set back by a copy or an editor, so a remembered hash is as good as a fresh one. Windows has no
    such time: there all are hashed anew.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            self._known: dict[str, list[object]] = {
                name: value for name, value in dict(known).items() if isinstance(value, list) and len(value) == 5
            }
        except (OSError, ValueError, TypeError):
            self._known = {}

    def of(self, paths: list[Path]) -> list[str]:
        """The digest of each file; what was newly hashed is written to the memory file."""
        signatures = {path: _signature(path) for path in paths}
        names = {path: str(path.resolve()) for path in paths}
        new = [p for p in signatures if not POSIX or self._known.get(names[p], [])[:-1] != signatures[p]]
        with ThreadPoolExecutor() as threads:  # hashing leaves the interpreter free
            for path, found in zip(new, threads.map(digest, new), strict=True):
                self._known[names[path]] = [*signatures[path], found]
        if new:
            try:
                write_text(self._memory, json.dumps(self._known))
            except OSError as error:  # someone else's folder: hash again next time
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
        return [str(self._known[names[path]][-1]) for path in paths]


def _signature(path: Path) -> list[object]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
