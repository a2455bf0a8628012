"""Write files durably: if the process is killed, a reader sees the old content or the new, never a part of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# On POSIX an open file can be deleted and renamed, folders can be synced, and a file's change time (ctime) cannot be
# set back. None of this holds on Windows.
POSIX = os.name == "posix"
# Maximum size of a cache of digests in bytes: that of a million files.
_MAX_CACHE = 1 << 29


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; unless the block fails, sync it to disk and rename it to `path`."""
    if not path.name:  # the current folder, or the root
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise an OSError that names `path` if a write fails: the system names no file, or only a temporary one."""
    try:
        yield
    except Exception as error:
        number, name = error_number(error), getattr(error, "filename", None)
        if number is None or (name and not str(name).endswith(".tmp")):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def error_number(error: BaseException) -> int | None:
    """Return the system's number of an error; None if it has none. The libraries in Rust have it in their messages."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def read_limited(path: Path, max_bytes: int = 1 << 26) -> bytes:
    """Return the content of a file that may be hostile; raise ValueError unless it is a regular file of a limited size.

    No more is read than the size that the system reports: that is 0 for files in /proc, and some of them are endless.
    """
    refuse_special(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{size / 1e6:,.0f} MB, too large")
        return file.read(size)


def refuse_special(path: Path, allow_link: bool = True) -> None:
    """Raise ValueError for a folder, a pipe or a device: reading a pipe may wait forever."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    if path.is_symlink() and not allow_link:
        raise ValueError("a symbolic link")


def is_named_pipe(path: Path) -> bool:
    """Return whether opening a file may wait forever. A shell passes <(command) as /dev/fd/63, which does not."""
    return path.is_fifo() and not path.is_relative_to("/dev")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text that may be damaged; raise ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` durably, as UTF-8 with LF line endings on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sync_file(path: Path) -> None:
    """Make the content of `path` survive a power failure."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power failure; do nothing on Windows."""
    if POSIX:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(path: Path) -> str:
    """Return the file's SHA-256 as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """SHA-256 digests of files, cached while a file's size, times and inode stay the same.

    Hashing a large corpus at each start would be slow, and a modification time alone could miss an edit: unlike the
    change time (ctime), it can be set back. Windows has no change time, so every file is hashed again there.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._entries: dict[str, list[object]] = {}  # path to signature and digest
        with contextlib.suppress(OSError, ValueError, TypeError):  # missing or damaged: hash again
            entries = dict(parse_json(read_limited(cache, _MAX_CACHE))).items()
            self._entries = {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 5}

    def of(self, paths: list[Path]) -> list[str]:
        """Return the digest of each file, and cache the new ones."""
        signatures = {path: _signature(path) for path in paths}
        names = {path: str(path.resolve()) for path in paths}
        new = [p for p in signatures if not POSIX or self._entries.get(names[p], [])[:-1] != signatures[p]]
        with ThreadPoolExecutor() as threads:  # hashing releases the interpreter lock
            for path, sha256 in zip(new, threads.map(digest, new), strict=True):
                self._entries[names[path]] = [*signatures[path], sha256]
        if new:
            try:
                write_text(self._cache, json.dumps(self._entries))
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):  # the folder may be read-only
                    raise
        return [str(self._entries[names[path]][-1]) for path in paths]


def _signature(path: Path) -> list[object]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
