"""Builds token stores elsewhere: each finished file is sent to a URL, or another folder, and deleted here."""

from __future__ import annotations

import contextlib
from pathlib import Path

from filelock import FileLock

from gpt2kit.data import build
from gpt2kit.data.build import Corpus, Make, Progress
from gpt2kit.data.fetching import FULL, claimed, patiently
from gpt2kit.data.remote import SCRATCH, StreamedStore
from gpt2kit.data.shelf import Shelf
from gpt2kit.data.store import INDEX, JOURNAL, Index, Shard, opened
from gpt2kit.errors import DataError
from gpt2kit.text import sources


def open_or_build(
    corpus: Corpus,
    cache_dir: str,
    scratch: Path = SCRATCH,
    progress: Progress = lambda done, total: None,
    make: Make | None = None,
) -> StreamedStore:
    """The store of a corpus; built now if it does not exist there.

    Args:
        corpus: the text, and how it becomes tokens.
        cache_dir: a URL or folder where stores lie, each in a folder named by the content it was made from.
        scratch: a local folder for what is being read or built, and for the hashes of texts.
        progress: told how far the reading is.
        make: writes the token files; by default from the text.
    """
    key = corpus.key(scratch)
    place = f"{cache_dir.rstrip('/')}/{key}"
    if found := opened(lambda: StreamedStore(place, scratch)):
        return found
    scratch.mkdir(parents=True, exist_ok=True)
    with FileLock(scratch / f"{key}.lock"):
        if found := opened(lambda: StreamedStore(place, scratch), "it is made again from the text"):
            return found
        folder, release = claimed(scratch / "streamed", f"{key}-building")
        try:
            build.build(corpus, Upload(place, folder, corpus), scratch, progress, make)
        finally:
            release()
    return StreamedStore(place, scratch)


def delete(place: str) -> None:
    """Delete a store, its index first, so that what is left is never taken for a whole one."""
    filesystem, root = sources.filesystem_of(place)
    patiently(place, lambda: filesystem.rm_file(f"{root}/{INDEX}"), "deleted")
    patiently(place, lambda: filesystem.rm(root, recursive=True), "deleted")


class Upload(Shelf):
    """Sends what a build has finished to its place, and deletes it here; goes on behind what is there already.

    Args:
        place: the URL or folder of the store.
        folder: an empty local one.
        corpus: what it is built from.
    """

    def __init__(self, place: str, folder: Path, corpus: Corpus) -> None:
        super().__init__(folder)
        self.place, self._token_bytes = place, corpus.dtype.itemsize
        self._filesystem, self._root = sources.filesystem_of(place)
        if place.startswith(("http://", "https://")):
            raise self._read_only("a web server only gives")
        with contextlib.suppress(FileNotFoundError):
            self._journaled()
        (folder / JOURNAL).touch()
        try:  # the journal first: whether the place can be written to shows before hours of work
            patiently(place, lambda: self._filesystem.makedirs(self._root, exist_ok=True), "written")
            self._send(JOURNAL)
        except (DataError, NotImplementedError, OSError) as error:
            if getattr(error, "errno", None) in FULL:
                raise
            raise self._read_only(str(error) or "it knows no writing") from None

    def __str__(self) -> str:
        return self.place

    def broken(self, recorded: list[Shard]) -> set[str]:
        """Names of those finished files that are gone, or of another size."""
        self._filesystem.invalidate_cache()
        with sources.reading(self.place):
            there = {info["name"].rsplit("/", 1)[-1]: info["size"] for info in self._filesystem.ls(self._root, True)}
        return {
            shard.name
            for shard in recorded
            if there.get(shard.name) != shard.tokens * self._token_bytes or shard.documents_name not in there
        }

    def keep(self, shard: Shard) -> None:
        """Send both files, and delete them here."""
        for name in (shard.name, shard.documents_name):
            self._send(name)
            (self.folder / name).unlink()

    def note(self, shard: Shard) -> None:
        """Add to the journal, there, too."""
        super().note(shard)
        self._send(JOURNAL)

    def unnote(self) -> None:
        """Empty the journal, there, too."""
        super().unnote()
        self._send(JOURNAL)

    def finish(self, index: Index) -> None:
        """Send the index: the store is complete."""
        super().finish(index)
        self._send(INDEX)

    def discard(self) -> None:
        """Delete all that is finished, there, too."""
        super().discard()
        patiently(self.place, lambda: self._filesystem.rm(self._root, recursive=True), "deleted")

    def _journaled(self) -> None:
        source, target = f"{self._root}/{JOURNAL}", str(self.folder / JOURNAL)
        patiently(f"{self.place}/{JOURNAL}", lambda: self._filesystem.get_file(source, target))

    def _send(self, name: str) -> None:
        source, target = str(self.folder / name), f"{self._root}/{name}"
        patiently(f"{self.place}/{name}", lambda: self._filesystem.put_file(source, target), "written")

    def _read_only(self, why: str) -> DataError:
        return DataError(
            f"{self.place}: no finished store of this text, and it cannot be built there ({why}). Name a "
            "data.cache_dir that can be written to, or build it locally, without streaming, and copy its folder there"
        )
