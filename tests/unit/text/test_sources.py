"""Files are found once, in a fixed order, on disks and servers; their bytes are decompressed and counted as stored."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpt2kit.errors import DataError
from gpt2kit.text import sources
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import find_files, read_chunks

TEXT = b"".join(b"line %d of a text that is packed\n" % n for n in range(20_000))


def zstd(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").compress(data))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


@pytest.fixture
def memory() -> Iterator[str]:
    """A remote folder in memory."""
    import fsspec

    files = fsspec.filesystem("memory")
    for name, content in {"t/b.txt": b"b\n", "t/sub/a.jsonl": b'{"text": "a"}\n', "t/.hidden/c.txt": b"c\n"}.items():
        files.pipe(f"/{name}", content)
    yield "memory://t"
    files.rm("/t", recursive=True)


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_are_decompressed_and_counted_as_stored(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(PACKERS[suffix](TEXT) + PACKERS[suffix](b"a second stream\n"))
    report = ReadReport()
    assert b"".join(read_chunks(path, report)) == TEXT + b"a second stream\n"
    assert report.bytes == path.stat().st_size == sources.size(path)


@pytest.mark.parametrize("suffix", PACKERS)
def test_truncated_and_damaged_compressed_files_are_reported(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt.{suffix}"
    packed = PACKERS[suffix](TEXT)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=rf"a\.txt\.{suffix}: the compressed data ends early"):
        list(read_chunks(path, ReadReport()))
    path.write_bytes(b"not compressed, but as long as a header")
    with pytest.raises(DataError, match=rf"a\.txt\.{suffix}: damaged compressed data"):
        list(read_chunks(path, ReadReport()))


def test_a_compressed_parquet_file_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert list(Reader().read([tmp_path / "b.parquet.gz"])) == ["a", "b"]


def test_remote_files_are_found_read_and_identified(memory: str) -> None:
    import fsspec

    urls = find_files([memory, f"{memory}/*.txt"])
    assert urls == ["memory:///t/b.txt", "memory:///t/sub/a.jsonl"]
    report = ReadReport()
    assert list(Reader("line").read(urls, report)) == ["b", "a"]
    assert report.bytes == sum(sources.size(url) for url in urls)
    before = sources.remote_identity(str(urls[0]))
    assert before == sources.remote_identity(str(urls[0]))
    fsspec.filesystem("memory").pipe("/t/b.txt", b"other\n")
    assert before != sources.remote_identity(str(urls[0]))
    for missing in ("/none.txt", "/*.none"):
        with pytest.raises(DataError, match="no such file, or no file matches"):
            find_files([memory + missing])


def test_files_of_a_web_server_are_read(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT))

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert b"".join(read_chunks(f"{url}/a.txt.gz?download=1", ReadReport())) == TEXT
        assert sources.remote_identity(f"{url}/a.txt.gz") == sources.remote_identity(f"{url}/a.txt.gz")
        with pytest.raises(DataError, match=r"none\.txt: not found"):
            list(read_chunks(f"{url}/none.txt", ReadReport()))
        server.shutdown()


def test_unknown_protocols_and_missing_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"s3://bucket/a\.txt: a package is not installed\. Install s3fs"):
        find_files(["s3://bucket/a.txt"])
    with pytest.raises(DataError, match="Protocol not known: nowhere"):
        find_files(["nowhere://a.txt"])


def test_suffixes_and_hub_datasets_are_recognized_by_name() -> None:
    assert sources.suffixes(Path("a.JSONL.gz")) == (".jsonl", ".gz")
    assert sources.suffixes("https://host/a.csv?x=.gz") == (".csv", "")
    assert sources.suffixes(Path("folder.gz/a")) == ("", "")
    assert sources.is_hub_dataset("hf://datasets/me/poems?split=train")
    assert not sources.is_hub_dataset("hf://datasets/me/poems/data/a.parquet")


def test_circular_links_and_pipes_in_a_folder_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "sub" / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "pipe")
    assert [Path(path).name for path in find_files([str(tmp_path)])] == ["a.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("name", ["/proc/version", "link.txt", "*.txt", "file:///proc/version"])
def test_files_of_the_system_are_refused(name: str, inside: Path) -> None:
    """Reading /proc/kmsg would wait forever."""
    (inside / "link.txt").symlink_to("/proc/version")
    with pytest.raises(DataError, match="a system file, not a text file"):
        sources.find_files([name])


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "x" * 5000 + "/*"])
def test_a_name_that_no_file_can_have_is_refused(name: str, inside: Path) -> None:
    with pytest.raises(DataError):
        sources.find_files([name])


@pytest.mark.parametrize("pattern", ["**/*.txt", "*/**/b.txt", "**", "a", "a/*", "*/[b].txt"])
def test_patterns_match_as_in_a_shell_but_loops_of_links_are_not_followed(pattern: str, inside: Path) -> None:
    for name in ("a/b.txt", "a/deep/b.txt", ".hidden/b.txt", "a/.b.txt"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_text("text")
    expected = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
    for number in range(3):  # glob.glob would visit 3^40 folders
        (inside / f"a/loop{number}").symlink_to(".")
    assert sources.find_files([pattern]) == (expected or [Path("a/b.txt"), Path("a/deep/b.txt")])
