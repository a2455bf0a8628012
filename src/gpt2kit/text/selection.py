"""Text that is read for one purpose: files, how they become documents, and which of the documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import PathOrURL
from gpt2kit.text.splits import SplitRange


class Selection(NamedTuple):
    """The documents of files, or those of one split."""

    paths: Sequence[PathOrURL]
    reader: Reader = Reader()
    split_range: SplitRange | None = None

    def read(self, report: ReadReport | None = None) -> Iterator[str]:
        """Yield the documents, as `Reader.read` does."""
        return self.reader.read(self.paths, report, self.split_range)
