"""Files of torch.save that are larger inside than outside, damaged, or no files at all."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt2kit.checkpoint import archive
from gpt2kit.errors import CheckpointError


def pack(path: Path, pickled: bytes | None = None, compression: int = zipfile.ZIP_STORED, name: str = "") -> None:
    """Write a file of torch.save again, with another pickle or compression, or another name of the pickle."""
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for record, content in records.items():
            is_pickle = pickled is not None and record.endswith("data.pkl")
            new.writestr(record.replace("data.pkl", name or "data.pkl"), pickled if is_pickle else content)


def with_pickle(pickled: bytes) -> Callable[[Path], None]:
    return lambda path: pack(path, pickled)


def pack_twice(path: Path) -> None:
    """Write a file with two directories: torch reads the one whose position is stored, Python the one at the end."""
    pack(path, NESTED)
    hostile = path.read_bytes()
    pack(path)
    harmless = path.read_bytes()
    (size, start), (_, own_start) = (struct.unpack("<II", raw[-10:-2]) for raw in (hostile, harmless))
    first = hostile[:start] + harmless[:own_start]
    directory, entries = hostile[start:-22], []
    for entry in harmless[own_start:-22].split(b"PK\1\2")[1:]:  # Python adds the distance of the directories
        (offset,) = struct.unpack("<I", entry[38:42])
        entries.append(b"PK\1\2" + entry[:38] + struct.pack("<I", offset + start - size) + entry[42:])
    end = hostile[-22:-6] + struct.pack("<IH", len(first), 0)
    path.write_bytes(first + directory + b"".join(entries) + end)


NESTED = b"\x80\x02}(K\x01" + b"".join(b"](" for _ in range(100)) + b"e" * 100 + b"u."
# a tuple of two equal tuples, 60 times, from memo 1
TUPLES = b"K\x01q\x010" + b"h\x01h\x01\x86q\x010" * 60
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "compressed": (lambda path: pack(path, compression=zipfile.ZIP_DEFLATED), "packed again, with compression"),
    "nested tuples as a key": (with_pickle(b"\x80\x02}(" + TUPLES + b"h\x01K\x01u."), "too many objects"),
    "nested lists": (with_pickle(NESTED), "too many objects in nested containers"),
    "another case of a name": (lambda path: pack(path, NESTED, name="DATA.pkl"), "too many objects"),
    "two directories": (pack_twice, "something after its directory"),
    "a list that contains itself": (with_pickle(b"\x80\x02}q\x01(K\x01h\x01u."), "too many objects"),
    "a size instead of bytes": (
        with_pickle(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + struct.pack("<q", 1 << 40)[:6] + b"\x85R."),
        "contains builtins bytearray",
    ),
    "a huge integer": (with_pickle(b"\x80\x02}(K\x01\x8a\xff" + b"\x7f" * 255 + b"u."), "more than 64 bits"),
    "one storage for many tensors": (
        lambda path: torch.save(dict.fromkeys(range(50), torch.zeros(9999)), path),
        "its tensors are larger than the file",
    ),
    "an empty file": (lambda path: path.touch(), "not a readable file of tensors"),
    "a text": (lambda path: path.write_text("hello\n" * 99), "not a readable file of tensors"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("allow_legacy", [False, True])
def test_a_hostile_file_is_refused_in_one_line(case: str, allow_legacy: bool, tmp_path: Path) -> None:
    make, message = HOSTILE[case]
    make(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=message) as raised:
        archive.load(tmp_path / "x.ckpt", allow_legacy)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_legacy_file_of_nested_lists_is_refused(tmp_path: Path) -> None:
    nested: object = 1
    for _ in range(40):
        nested = [nested, nested]
    torch.save({"a": nested}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="too many objects"):
        archive.load(tmp_path / "x.bin", allow_legacy=True)
