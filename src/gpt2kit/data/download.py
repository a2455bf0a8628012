"""Files of the web on the disk: whole and checked, or not there; what broke off goes on where it broke."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt2kit import __version__, files
from gpt2kit.data import fetching
from gpt2kit.errors import DataError

_CHUNK = 1 << 18
_SECONDS = 60
"""Without a byte, after which a connection is given up."""
_AGAIN = (408, 425, 429)
"""Answers that ask to come back later; others from 400 to 499 stay as they are."""


@dataclass(frozen=True)
class Remote:
    """A file at an address.

    Args:
        url: the address.
        name: what the file is to be called here.
        sha256: of its content, if it is known.
    """

    url: str
    name: str
    sha256: str | None = None


def fetch(remote: Remote, folder: Path) -> str:
    """Have the file in `folder`; its SHA-256. One that lies there is only compared.

    The environment's proxies are used. An earlier call that broke off, or was killed, is gone on with, unless the
    server says that the file is another one by now.
    """
    target = folder / remote.name
    if target.is_file():
        return _checked(remote, target, f"{target}: is there, but")
    folder.mkdir(parents=True, exist_ok=True)
    part = _Part(remote, folder)
    try:
        while not fetching.patiently(remote.url, part.more, "fetched"):
            pass
    except DataError as error:
        raise DataError(f"{error}. Without a network here, fetch it elsewhere, and put it at {target}") from None
    try:
        found = _checked(remote, part.path, f"{remote.url}: what came")
    except DataError:
        part.forget()
        raise
    files.sync_file(part.path)
    os.replace(part.path, target)
    files.sync_folder(folder)
    part.forget()
    return found


def read_json(url: str) -> Any:
    """A small JSON document of the web."""

    def read() -> Any:
        with _open(url, {}) as answer:
            return json.loads(answer.read())

    return fetching.patiently(url, read, "fetched")


def _checked(remote: Remote, path: Path, what: str) -> str:
    """The file's SHA-256, which must be the one that is known."""
    found = files.digest(path)
    if remote.sha256 not in (None, found):
        raise DataError(
            f"{what} has the SHA-256 {found}, not {remote.sha256}: damaged, or another text than was expected. "
            f"{'Delete it' if path.name == remote.name else 'It was not kept'}; run the same command again"
        )
    return found


class _Part:
    """What has come so far of a file, `.NAME.part`; beside it `.NAME.tag`, by which the server knows its version."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote = remote
        self.path = folder / f".{remote.name}.part"
        self._tag = folder / f".{remote.name}.tag"
        self._most = self._size()

    def forget(self) -> None:
        """Delete it."""
        self.path.unlink(missing_ok=True)
        self._tag.unlink(missing_ok=True)

    def more(self) -> bool:
        """Fetch what is missing; whether that is all. An error if nothing came: `patiently` counts those."""
        have, tag = self._size(), self._tag.read_text(encoding="utf-8") if self._tag.is_file() else ""
        asked = {}
        if have and (tag or self._remote.sha256):  # without either nobody would see that two versions are mixed
            asked = {"Range": f"bytes={have}-", **({"If-Range": tag} if tag else {})}
        try:
            answer = _open(self._remote.url, asked)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            self.forget()  # more than the server has
            raise ConnectionError("the file there is shorter than what had come of it") from None
        with answer:
            begin, total = _extent(answer, have)
            if begin != have or (total is not None and total < have):
                have = begin = 0
                if answer.status == 206:
                    self.forget()
                    raise ConnectionError("the server sent another part than it was asked for")
            _refuse_full_disk(self.path, (total or 0) - have)
            if not have:
                self.forget()  # before the new version's tag is there: bytes of two versions must not meet
            files.write_text(self._tag, _version(answer))
            broken = self._write(answer, have, total)
        size = self._size()
        if not broken and (total is None or size == total):
            return True
        if size > self._most:
            self._most = size
            return False
        whole = "?" if total is None else f"{total:,}"
        raise ConnectionError(f"broke off after {size:,} of {whole} bytes ({broken or 'end of data'})")

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def _write(self, answer: http.client.HTTPResponse, have: int, total: int | None) -> str:
        """Write what comes behind the first `have` bytes; why it broke off, if it did."""
        with (
            open(self.path, "ab" if have else "wb") as file,
            tqdm(
                total=total, initial=have, desc=self._remote.name, unit="B", unit_scale=True, leave=False, disable=None
            ) as bar,
        ):
            while True:
                try:
                    block = answer.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    return f"{type(error).__name__}: {error}"
                if not block:
                    return ""
                file.write(block)
                bar.update(len(block))


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The server's answer; one that will stay the same is an error that is not tried again."""
    request = urllib.request.Request(url, headers={"User-Agent": f"gpt2kit/{__version__}", **headers})
    try:
        found: http.client.HTTPResponse = urllib.request.build_opener().open(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if 400 <= error.code < 500 and error.code not in (*_AGAIN, 416):
            raise DataError(f"{url}: the server answers {error.code} {error.reason}. It may have moved") from None
        raise
    return found


def _extent(answer: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the bytes of an answer begin in the file, and the size of the whole, if the server says it."""
    if answer.status == 206:
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if place is None:
            return -1, None
        return int(place[1]), int(place[2]) if place[2].isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _version(answer: http.client.HTTPResponse) -> str:
    """What the server knows this version of the file by: its tag, unless that is only a likeness, or its time."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _refuse_full_disk(path: Path, needed: int) -> None:
    """Before hours of fetching, not at their end."""
    if needed > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:,.0f} MB are to come", str(path.parent))
