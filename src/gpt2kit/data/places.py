"""Where token stores lie, here or at a URL: opened, built and deleted there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from gpt2kit.data import build, cache, uploading
from gpt2kit.data.build import Corpus, Make
from gpt2kit.data.remote import StreamedStore
from gpt2kit.data.store import TokenStore


@dataclass(frozen=True)
class Where:
    """Where stores lie: in a folder, or, when streamed, at a URL."""

    cache_dir: Path
    streamed_from: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        return self.streamed_from or str(self.cache_dir)

    def open_or_build(self, corpus: Corpus, what: str, make: Make | None = None) -> TokenStore:
        """The store of a corpus; made now if it is not there, with a progress bar if there is a terminal.

        Args:
            corpus: the text, and how it becomes tokens.
            what: it is, for people.
            make: writes the token files; by default from the text.
        """
        with tqdm(desc=f"tokenizing {what}", unit="B", unit_scale=True, leave=False, delay=1, disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total or None
                bar.update(done - bar.n)

            if self.streamed_from is not None:
                return uploading.open_or_build(corpus, self.streamed_from, self.cache_dir, progress, make)
            return build.open_or_build(corpus, self.cache_dir, progress, make)

    def opened(self, corpus: Corpus) -> TokenStore | None:
        """The store of a corpus, if it is there."""
        key = corpus.key(self.cache_dir)
        try:
            if self.streamed_from is not None:
                return StreamedStore(f"{self.streamed_from.rstrip('/')}/{key}", self.cache_dir)
            return TokenStore(self.cache_dir / key)
        except FileNotFoundError:
            return None

    def delete(self, store: TokenStore) -> None:
        """Delete a store."""
        if isinstance(store, StreamedStore):
            uploading.delete(store.place)
        else:
            store.close()
            cache.remove(store.folder)
