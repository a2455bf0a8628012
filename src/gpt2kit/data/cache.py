"""List, prune and verify the token stores in a folder."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2kit.data.index import INDEX, JOURNAL, Index, read_index
from gpt2kit.data.store import VERIFIED, find_damaged
from gpt2kit.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A store on disk."""

    folder: Path
    index: Index | None  # None if the store is incomplete or damaged
    bytes: int
    used: float  # the time when it was last opened or written

    @property
    def days(self) -> float:
        """Days since it was last opened or written."""
        return max(time.time() - self.used, 0) / 86400


def entries(cache_dir: Path) -> Iterator[Entry]:
    """Yield all stores, including incomplete ones, the most recently used first."""
    stores = []
    for folder in cache_dir.glob("*/"):
        stats = {}
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a build has just renamed it
                if path.is_file():
                    stats[path] = path.stat()
        if not any(path.name in (INDEX, JOURNAL) or path.suffix == ".bin" for path in stats):
            continue
        try:
            index = read_index(folder)
        except (FileNotFoundError, DataError):
            index = None
        size, used = sum(s.st_size for s in stats.values()), max(s.st_mtime for s in stats.values())
        stores.append(Entry(folder, index, size, used))
    yield from sorted(stores, key=lambda entry: -entry.used)


def table(stores: list[Entry], verify: bool) -> str:
    """Describe each store in one line; with `verify`, read all its files and compare their checksums."""
    lines = []
    for entry in stores:
        index = entry.index
        if index is None:
            status = "incomplete, or of another version; the command that built it completes or rebuilds it"
        else:
            damaged = []
            if verify:
                with contextlib.suppress(OSError):
                    (entry.folder / VERIFIED).unlink()  # then every file is read again
                damaged = find_damaged(entry.folder, index.shards)
            tokens, documents = (sum(getattr(s, name) for s in index.shards) for name in ("tokens", "documents"))
            first = index.sources[0].name if index.sources else "?"
            more = f" and {len(index.sources) - 1} more" if index.sources[1:] else ""
            status = f"{tokens:,} tokens, {documents:,} documents of {first}{more}"
            if damaged:
                status += f"; DAMAGED: {', '.join(damaged)}, rebuilt at the next use"
            elif verify:
                status += "; valid"
        lines.append(f"{entry.folder.name}  {entry.bytes / 1e6:10,.1f} MB  {entry.days:5.1f} days  {status}")
    return "\n".join(lines)


def remove(folder: Path) -> bool:
    """Delete a store, its index first, so that a killed deletion leaves no complete store.

    Return False if another process is building it.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder.with_suffix(".lock"), blocking=False):
            (folder / INDEX).unlink(missing_ok=True)
            shutil.rmtree(folder)
    except Timeout:
        logger.info(f"{folder.name}: another process is building it, so it is kept")
        return False
    folder.with_suffix(".lock").unlink(missing_ok=True)
    return True
