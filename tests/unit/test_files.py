"""Durable writes, and reading files that may be hostile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt2kit import files


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            files.read_limited(path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert files.read_limited(tmp_path / "link") == b"text"
    with pytest.raises(ValueError, match="a symbolic link"):
        files.refuse_special(tmp_path / "link", allow_link=False)
    with pytest.raises(ValueError, match="too large"):
        files.read_limited(tmp_path / "file", max_bytes=3)
