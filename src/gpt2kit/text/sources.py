"""Find files by paths, folders, patterns and URLs, and read their decompressed bytes. Knows nothing about text."""

from __future__ import annotations

import bz2
import contextlib
import errno
import fnmatch
import glob
import gzip
import hashlib
import itertools
import lzma
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tqdm.utils import CallbackIOWrapper

from gpt2kit import files as durable
from gpt2kit.errors import DataError
from gpt2kit.text import saved_dataset
from gpt2kit.text.read_report import ReadReport

# A local file, or the URL of a remote one.
PathOrURL = Path | str

# Bytes that are read at a time.
CHUNK = 1 << 18

# Maximum number of files and folders to look at for one folder or pattern; more would take minutes.
_MAX_ENTRIES = 1 << 20
_KERNEL_FOLDERS = ("/proc", "/sys", "/dev")

# Errors of the local machine: the text is not their cause, and another attempt does not fix them.
LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
HUB = "hf://datasets/"

# fsspec's file systems report a file's size, version and time under names that contain one of these words.
_VERSION_WORDS = ("size", "etag", "md5", "crc", "mtime", "modified", "updated", "created", "version", "commit", "oid")


def find_files(patterns: list[str]) -> list[PathOrURL]:
    """Return the files that paths, folders, patterns and URLs name, each once, in a fixed order."""
    seen = itertools.count()
    files: list[PathOrURL] = []
    for pattern in patterns:
        files += _find_remote(pattern) if "://" in pattern else _find_local(pattern, seen)
    return list(dict.fromkeys(files))


def suffixes(path: PathOrURL) -> tuple[str, str]:
    """Return the suffixes of the format and of the compression, such as `(".jsonl", ".gz")`; either may be empty."""
    name = Path(urlsplit(path).path if isinstance(path, str) else path).name.lower()
    stem, last = os.path.splitext(name)
    return (os.path.splitext(stem)[1], last) if last in COMPRESSIONS else (last, "")


def is_hub_dataset(path: PathOrURL) -> bool:
    """Return whether this is a dataset of the Hugging Face hub rather than a file in one."""
    return isinstance(path, str) and path.startswith(HUB) and urlsplit(path).path.count("/") <= 2


def size(path: PathOrURL) -> int:
    """Return the size of the file as stored, in bytes; 0 if it is unknown."""
    with translate_errors(path):
        if isinstance(path, Path):
            return path.stat().st_size
        if is_hub_dataset(path):
            return 0
        filesystem, remote_path = filesystem_of(path)
        return int(filesystem.info(remote_path).get("size") or 0)


def digests(paths: Sequence[PathOrURL], cache_dir: Path) -> list[str]:
    """Return the hash of each local file, cached in `cache_dir`, and the identity of each remote one."""
    local = [path for path in paths if isinstance(path, Path)]
    try:
        hashes = iter(durable.Digests(cache_dir / "digests.json").of(local))
    except OSError as error:
        with translate_errors(Path(error.filename or local[0])):
            raise
    return [next(hashes) if isinstance(path, Path) else remote_identity(path) for path in paths]


def refuse_changes(paths: Sequence[PathOrURL], before: Sequence[str], cache_dir: Path) -> None:
    """Raise unless the files still have these digests: what was computed from them is cached by their digests."""
    for path, old, new in zip(paths, before, digests(paths, cache_dir), strict=True):
        if old != new:
            raise DataError(f"{path}: changed while it was being read. Run the same command again")


def remote_identity(url: str) -> str:
    """Return a hash of the URL and of the version that the server reports: size, ETag or time."""
    with translate_errors(url):
        if is_hub_dataset(url):
            from huggingface_hub import HfApi

            version: object = HfApi().dataset_info(urlsplit(url).path.lstrip("/")).sha
        else:
            filesystem, path = filesystem_of(url)
            info = filesystem.info(path)
            names = [name for name in sorted(info) if any(word in name.lower() for word in _VERSION_WORDS)]
            version = {name: str(info[name]) for name in names} or filesystem.ukey(path)
    return hashlib.sha256(f"{url} {version}".encode()).hexdigest()


def read_chunks(path: PathOrURL, report: ReadReport) -> Iterator[bytes]:
    """Yield the decompressed bytes, CHUNK at a time, so that pieces do not depend on how a server sends them."""
    rest = b""
    with translate_errors(path), _open(path, report) as file:
        for data in _decompress(path, file):
            rest += data
            end = len(rest) // CHUNK * CHUNK
            for start in range(0, end, CHUNK):
                yield rest[start : start + CHUNK]
            rest = rest[end:]
    if rest:
        yield rest


@contextlib.contextmanager
def open_seekable(path: PathOrURL, report: ReadReport) -> Iterator[IO[bytes]]:
    """Open the decompressed file for a reader that seeks, as a temporary copy if needed."""
    with translate_errors(path), _open(path, report) as file:
        if not suffixes(path)[1] and file.seekable():
            yield file
        else:
            with tempfile.TemporaryFile() as copy:
                copy.writelines(_decompress(path, file))
                copy.seek(0)
                yield copy


@contextlib.contextmanager
def translate_errors(path: PathOrURL) -> Iterator[None]:
    """Turn errors of the file system, a server or a decompressor into a DataError that names the file."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: not found, or deleted while in use. Restore it, or remove it from the list") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it{_owner(path)}. Change its permissions") from None
    except EOFError:
        raise DataError(f"{path}: the compressed data ends early. Download or copy the file again") from None
    except (zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: damaged compressed data ({error}). Download or copy the file again") from None
    except OSError as error:
        if error.errno in LOCAL_ERRORS:
            raise
        if error.errno is None and suffixes(path)[1]:  # gzip and bz2 raise an OSError without a number
            raise DataError(f"{path}: damaged compressed data ({error}). Download or copy the file again") from None
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Check the file and its disk") from None
    except Exception as error:  # each kind of server has its own errors
        if isinstance(path, Path):
            raise
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"{path}: cannot be read ({reason}). Check the URL, the network and your credentials") from None


def missing_package(path: PathOrURL, what: str, package: str) -> DataError:
    """Return the error for a package that is not installed."""
    return DataError(f"{path}: {what} needs a package that is not installed. Run: pip install {package}")


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url}: a package is not installed. {error}") from None
    except ValueError as error:
        raise DataError(f"{url}: {error}. Check the part before ://") from None
    return filesystem, str(path)


def _find_local(pattern: str, seen: Iterator[int]) -> list[Path]:
    path = Path(pattern)
    if "\0" in pattern:
        raise DataError(f"{pattern!r:.100}: no file has a NUL character in its name. Check the path")
    with translate_errors(path):
        if path.is_dir():
            files = _expand(pattern, path, ("**",), seen)
            if not files:
                raise DataError(f"{pattern}: no files in this folder. Put text files there, or name another folder")
        elif path.is_file():
            files = [path]
        elif path.exists():
            raise DataError(f"{pattern}: not a regular file. Name a text file, a folder or a pattern")
        elif path.is_symlink():
            raise DataError(f"{pattern}: a broken or circular symbolic link. Name the file itself")
        else:
            start = Path(path.anchor)
            files = _expand(pattern, start, path.parts[len(start.parts) :], seen) if glob.has_magic(pattern) else []
            if not files:
                reason = "no file matches" if glob.has_magic(pattern) else "no such file or folder"
                raise DataError(f"{pattern}: {reason} (current folder: {Path.cwd()}). Check the path")
        for file in files:
            _refuse_kernel_file(file)
    is_saved_dataset = any(file.name in saved_dataset.METADATA for file in files)
    return saved_dataset.skip_metadata(pattern, files) if is_saved_dataset else files


def _expand(pattern: str, start: Path, parts: tuple[str, ...], seen: Iterator[int]) -> list[Path]:
    """Return the files below a folder that match the parts of a pattern, as `glob.glob` does, but with a limit.

    `**` does not follow links to folders, which may form loops. `seen` counts the entries of all patterns.
    """

    def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as all_:
            for entry in all_:
                if next(seen) >= _MAX_ENTRIES:
                    raise DataError(f"{pattern}: more than {_MAX_ENTRIES:,} files to look at. Name a folder below it")
                yield entry

    def expand(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        if not parts:
            yield folder
            return
        part, rest = parts[0], parts[1:]
        if not glob.has_magic(part):
            yield from expand(folder / part, rest)
            return
        if part == "**" and rest:
            yield from expand(folder, rest)
        for entry in entries(folder):
            path = folder / entry.name
            if entry.name.startswith(".") and not part.startswith("."):
                continue
            if part != "**":
                if fnmatch.fnmatch(entry.name, part):
                    yield from expand(path, rest)
            elif entry.is_dir(follow_symlinks=False):
                if str(path) not in _KERNEL_FOLDERS:
                    yield from expand(path, parts)
            elif not rest:
                yield path

    try:
        return sorted({path for path in expand(start, parts) if path.is_file()})
    except RecursionError:
        raise DataError(f"{pattern}: the folders are nested too deeply. Name one below it") from None


def _refuse_kernel_file(file: Path) -> None:
    """Raise if this is a file of the kernel, such as /proc/kmsg: it has no size, and reading it may wait forever."""
    if file.stat().st_size == 0 and any(file.resolve().is_relative_to(folder) for folder in _KERNEL_FOLDERS):
        raise DataError(f"{file}: a system file, not a text file. Name a text file, a folder or a pattern")


def _find_remote(pattern: str) -> list[str]:
    if is_hub_dataset(pattern) or pattern.startswith(("http://", "https://")):
        return [pattern]  # a web server lists no folders, and ? is part of the address
    with translate_errors(pattern):
        filesystem, path = filesystem_of(pattern)
        if glob.has_magic(path):
            files = [p for p in filesystem.glob(path) if filesystem.isfile(p)]
        elif filesystem.isdir(path):
            names = {p: p[len(path) :].split("/") for p in filesystem.find(path)}
            files = [p for p, parts in names.items() if not any(part.startswith(".") for part in parts)]
        else:
            files = [path] if filesystem.exists(path) else []
        if not files:
            raise DataError(f"{pattern}: no such file, or no file matches. Check the URL")
        if pattern.startswith(("file:", "local:")):
            for file in files:
                _refuse_kernel_file(Path(file))
        return sorted(str(filesystem.unstrip_protocol(p)) for p in files)


def _owner(path: PathOrURL) -> str:
    with contextlib.suppress(OSError, KeyError, NotImplementedError):  # NotImplementedError on Windows
        if isinstance(path, Path):
            return f" (mode {stat.S_IMODE(path.stat().st_mode):o}, owner {path.owner()})"
    return ""


@contextlib.contextmanager
def _open(path: PathOrURL, report: ReadReport) -> Iterator[Any]:
    """Open the file as stored, and count the bytes that are read from it."""

    def count(number: int) -> None:
        report.bytes += number

    if isinstance(path, Path):
        raw: Any = open(path, "rb")  # noqa: SIM115  closed below
    else:
        filesystem, remote_path = filesystem_of(path)
        raw = filesystem.open(remote_path, "rb")
    with raw:
        yield CallbackIOWrapper(count, raw, "read")


def _decompress(path: PathOrURL, file: Any) -> Iterator[bytes]:
    suffix = suffixes(path)[1]
    if suffix == ".zst":
        yield from _decompress_zstd(path, file)
        return
    if suffix:
        openers: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        file = openers[suffix](file)
    while chunk := file.read(CHUNK):
        yield chunk


def _decompress_zstd(path: PathOrURL, file: Any) -> Iterator[bytes]:
    """Decompress consecutive frames. The library's own reader does not report a truncated last frame."""
    try:
        import zstandard
    except ImportError:
        raise missing_package(path, "zstd", "zstandard") from None
    frame, rest = None, b""
    while data := rest or file.read(4096):  # 4 KiB can decompress to 100 MB of zeros
        frame = frame or zstandard.ZstdDecompressor().decompressobj()
        try:
            yield frame.decompress(data)
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from None
        rest = frame.unused_data
        if frame.eof:
            frame = None
    if frame:
        raise EOFError
