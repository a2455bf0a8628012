"""Where text lies: paths, folders, patterns and URLs to files, and files to bytes, compressed or not."""

from __future__ import annotations

import bz2
import contextlib
import errno
import glob
import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from gpt2kit import files as durable
from gpt2kit.errors import DataError

Place = Path | str
"""A local file, or the URL of a remote one."""

CHUNK = 1 << 18
"""Bytes read at once."""

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
HUB = "hf://datasets/"
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_PACKAGES |= {"http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko"}
_PACKAGES |= {
    "hf": "huggingface_hub",
    "webdav": "webdav4",
    "oci": "ocifs",
    "smb": "smbprotocol",
    "dropbox": "dropboxdrivefs",
}


@dataclass
class Report:
    """What reading met: bytes for the progress bar, what the user should hear of, and how many records were bad.

    Args:
        bad_share: the share of the records that may be bad; with 0 the first one stops.
        bytes: read so far, of the files as they lie there.
        records: pieces of structured files (JSON, CSV, Parquet), good or bad.
        bad: those of them that held no text.
        met: what happened, how often, and where first.
        whole: False: of a part of the text, which is judged with the others.
        pieces: how many items `Reader.read` has yielded from each file, in the order of the files.
    """

    bad_share: float = 0.0
    bytes: int = 0
    records: int = 0
    bad: int = 0
    met: dict[str, tuple[int, str]] = field(default_factory=dict)
    whole: bool = True
    pieces: list[int] = field(default_factory=list)

    def note(self, what: str, where: str, count: int = 1) -> None:
        """Count something that the user should hear of; `what` reads on after a number."""
        before, first = self.met.get(what, (0, where))
        self.met[what] = (before + count, first)

    def bad_record(self, where: str, why: str, detail: str = "") -> None:
        """Count a record without usable text, or stop at it."""
        if not self.bad_share:
            more = f" ({detail})" if detail else ""
            raise DataError(
                f"{where}: {why}{more}. Mend it, or leave such records out with reader.bad_share, the share that may "
                "be bad, such as 0.01"
            )
        self.bad += 1
        self.note(f"records left out: {why}", where)

    def finish(self) -> None:
        """Stop if more records were bad than may be; called when everything is read."""
        if self.whole and self.bad > self.bad_share * self.records:
            first = next(where for what, (_, where) in self.met.items() if what.startswith("records left out"))
            raise DataError(
                f"{first} and others: {self.bad:,} of {self.records:,} records are bad ({'; '.join(self.lines())}), "
                f"more than reader.bad_share {self.bad_share} allows. Mend them, or raise it"
            )

    def lines(self) -> list[str]:
        """One line for each kind of thing that was met."""
        return [f"{count:,} {what} (first: {where})" for what, (count, where) in self.met.items()]


def find_files(patterns: list[str]) -> list[Place]:
    """The files that paths, folders (searched through), globs and URLs name, each once, in a fixed order."""
    found: dict[Place, None] = {}
    for pattern in patterns:
        matches: list[Place] = [*_find_remote(pattern)] if "://" in pattern else [*_find_local(pattern)]
        found.update(dict.fromkeys(matches))
    return list(found)


def suffixes(place: Place) -> tuple[str, str]:
    """The suffix that tells the format, and that of the compression or nothing: `("." + format, ".gz")`."""
    name = Path(urlsplit(place).path if isinstance(place, str) else place).name.lower()
    stem, last = os.path.splitext(name)
    return (os.path.splitext(stem)[1], last) if last in COMPRESSIONS else (last, "")


def is_hub_dataset(place: Place) -> bool:
    """Whether it names a whole data set of the Hugging Face hub rather than a file in one."""
    return isinstance(place, str) and place.startswith(HUB) and urlsplit(place).path.count("/") <= 2


def size(place: Place) -> int:
    """Bytes of the file as it lies there; 0 where nobody knows."""
    with reading(place):
        if isinstance(place, Path):
            return place.stat().st_size
        if is_hub_dataset(place):
            return 0
        filesystem, path = filesystem_of(place)
        return int(filesystem.info(path).get("size") or 0)


def digests(places: Sequence[Place], cache_dir: Path) -> list[str]:
    """The hash of each local file's content, remembered in `cache_dir`; for a remote one, of what its server says."""
    local = [place for place in places if isinstance(place, Path)]
    try:
        found = iter(durable.Digests(cache_dir / "digests.json").of(local))
    except OSError as error:
        with reading(Path(error.filename or local[0])):
            raise
    return [next(found) if isinstance(place, Path) else remote_identity(place) for place in places]


def remote_identity(url: str) -> str:
    """What tells that a remote file is the same: its URL, and the size, tag or time that its server gives."""
    with reading(url):
        if is_hub_dataset(url):
            from huggingface_hub import HfApi

            known: object = HfApi().dataset_info(urlsplit(url).path.lstrip("/")).sha
        else:
            filesystem, path = filesystem_of(url)
            info = filesystem.info(path)
            tells = (
                "size",
                "etag",
                "md5",
                "crc",
                "mtime",
                "modified",
                "updated",
                "created",
                "version",
                "commit",
                "oid",
            )
            known = {key: str(info[key]) for key in sorted(info) if any(word in key.lower() for word in tells)}
            known = known or filesystem.ukey(path)
    return hashlib.sha256(f"{url} {known}".encode()).hexdigest()


def chunks(place: Place, report: Report) -> Iterator[bytes]:
    """The file's bytes, decompressed, at most CHUNK at once."""
    with reading(place), _opened(place, report) as file:
        while raw := file.read(CHUNK):
            yield raw


@contextlib.contextmanager
def seekable(place: Place, report: Report) -> Iterator[IO[bytes]]:
    """The file, decompressed, for a reader that jumps about; a copy on disk where it does not allow that."""
    with reading(place), _opened(place, report) as file:
        if not suffixes(place)[1] and file.seekable():
            yield file
        else:
            with tempfile.TemporaryFile() as copy:
                shutil.copyfileobj(file, copy, CHUNK)
                copy.seek(0)
                yield copy


@contextlib.contextmanager
def reading(place: Place) -> Iterator[None]:
    """Turn what can go wrong with a file or a server into an error that names it."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError:
        raise DataError(f"{place}: has vanished, or changed its name. Put it back or leave it out") from None
    except PermissionError:
        raise DataError(f"{place}: may not be read{_owner(place)}. Change its permissions") from None
    except EOFError:
        raise DataError(f"{place}: ends in the middle of its compressed data. Fetch it again") from None
    except (zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{place}: damaged compressed data ({error}). Fetch it again") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE):
            raise
        if error.errno is None and suffixes(place)[1]:
            raise DataError(f"{place}: damaged compressed data ({error}). Fetch it again") from None
        raise DataError(f"{place}: cannot be read ({error.strerror or error}). Check it") from None
    except Exception as error:  # each kind of server has errors of its own
        if isinstance(place, Path):
            raise
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"{place}: cannot be read ({why}). Check the URL, the network and your credentials") from None


def missing(place: Place, what: str, package: str) -> DataError:
    """The error for a package that is not installed."""
    return DataError(f"{place}: {what} needs a package that is not installed. Run: pip install {package}")


def _find_local(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        matches = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        if not matches:
            raise DataError(f"{pattern}: no files in this folder. Put text files there or name another")
    elif path.exists():
        matches = [path]
    elif path.is_symlink():
        raise DataError(f"{pattern}: a symbolic link that leads nowhere or in a circle. Name the file itself")
    else:
        matches = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
        if not matches:
            what = "no file matches" if glob.has_magic(pattern) else "no such file or folder"
            raise DataError(f"{pattern}: {what} (looked from {Path.cwd()}). Check the path")
    for match in matches:
        if not match.is_file():
            raise DataError(f"{match}: not a regular file. Name a text file, a folder or a pattern")
    return matches


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _find_remote(pattern: str) -> list[str]:
    if is_hub_dataset(pattern) or pattern.startswith(("http://", "https://")):
        return [pattern]  # a web server lists no folders, and a ? is part of the address
    with reading(pattern):
        filesystem, path = filesystem_of(pattern)
        if glob.has_magic(path):
            matches = [p for p in filesystem.glob(path) if filesystem.isfile(p)]
        elif filesystem.isdir(path):
            matches = [p for p in filesystem.find(path) if not _hidden(Path(p[len(path) :]))]
        else:
            matches = [path] if filesystem.exists(path) else []
        if not matches:
            raise DataError(f"{pattern}: no such file, or none matches. Check the URL")
        return sorted(str(filesystem.unstrip_protocol(p)) for p in matches)


def filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    from fsspec.core import url_to_fs

    protocol = url.split("://")[0].split("::")[-1]
    try:
        filesystem, path = url_to_fs(url)
    except ImportError:
        raise missing(url, f"{protocol}://", _PACKAGES.get(protocol, f"what fsspec wants for {protocol}")) from None
    except ValueError as error:
        raise DataError(f"{url}: {error}. Check the part before ://") from None
    return filesystem, str(path)


@contextlib.contextmanager
def _opened(place: Place, report: Report) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        if isinstance(place, Path):
            raw: Any = stack.enter_context(open(place, "rb", buffering=0))
        else:
            filesystem, path = filesystem_of(place)
            raw = stack.enter_context(filesystem.open(path, "rb"))
        counted = io.BufferedReader(_Counted(raw, report), 1 << 16)
        yield _decompressed(place, counted)


def _decompressed(place: Place, file: IO[bytes]) -> IO[bytes]:
    match suffixes(place)[1]:
        case ".gz":
            return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
        case ".bz2":
            return bz2.BZ2File(file)
        case ".xz":
            return lzma.LZMAFile(file)
        case ".zst":
            try:
                import zstandard
            except ImportError:
                raise missing(place, "zstd", "zstandard") from None
            return io.BufferedReader(_Zstd(file, zstandard), CHUNK)
        case _:
            return file


def _owner(place: Place) -> str:
    with contextlib.suppress(OSError, KeyError, ImportError):
        if isinstance(place, Path):
            import pwd

            status = place.stat()
            return f" (mode {stat.S_IMODE(status.st_mode):o}, owner {pwd.getpwuid(status.st_uid).pw_name})"
    return ""


class _Counted(io.RawIOBase):
    """A raw file whose bytes are counted as they are read, however often it jumps: never more than the file has."""

    def __init__(self, raw: Any, report: Report) -> None:
        self._raw, self._report = raw, report

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._raw.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def readinto(self, target: Any) -> int:
        data = self._raw.read(len(target)) or b""
        target[: len(data)] = data
        self._report.bytes += len(data)
        return len(data)


class _Zstd(io.RawIOBase):
    """Zstandard frames one after another; unlike the library's own reader it tells when the last one is cut off."""

    def __init__(self, file: IO[bytes], zstandard: Any) -> None:
        self._file, self._zstandard = file, zstandard
        self._frame: Any = None
        self._rest = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            # Little at a time: 4 KiB of zeros, well packed, become 100 MB.
            raw = self._rest or self._file.read(4096)
            self._rest = b""
            if not raw:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(raw)
            except self._zstandard.ZstdError as error:
                raise OSError(str(error)) from None
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
