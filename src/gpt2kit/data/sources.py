"""The sources of a run's text: named texts, each with its files, its reader and a weight."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from gpt2kit.text import splits
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import PathOrURL, find_files
from gpt2kit.text.survey import Survey, survey

# A name is part of a metric's name and of an option's.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class TextSource:
    """One of several texts, in data.train_files, data.valid_files or data.test_files."""

    files: list[str] | str
    """Text files, folders, patterns or URLs."""
    weight: float = 1.0
    """How often a token is read, relative to those of the other sources. Only for training."""
    reader: Reader | None = None
    """How the files become documents. Default: as the training text of the same name, else data.reader."""


# A text: files, or several texts by their names.
TextFiles = list[str] | str | dict[str, TextSource | list[str] | str]


def as_sources(text: TextFiles | None) -> dict[str, TextSource]:
    """Return the sources of a text by their names. The name of the only one is empty."""
    if not isinstance(text, Mapping):
        return {"": TextSource(text)} if text else {}
    return {name: _as_source(source) for name, source in text.items()}


def _as_source(value: Any) -> TextSource:
    """Return a source from files, or from options that are not a TextSource yet, as in a parsed config."""
    if isinstance(value, TextSource):
        return value
    if isinstance(value, str | list):
        return TextSource(value)
    return TextSource(value["files"], value["weight"])


def is_name(name: str) -> bool:
    """Return whether a source may have this name."""
    return _NAME.fullmatch(name) is not None


class Source:
    """A source with its files.

    Args:
        name: its name; empty if it is the only one.
        options: as the user gave them.
        reader: the reader of sources without their own.
        cache_dir: for what is measured.
    """

    def __init__(self, name: str, options: TextSource, reader: Reader, cache_dir: Path) -> None:
        self.name, self.weight = name, options.weight
        self.files = [options.files] if isinstance(options.files, str) else list(options.files)
        self.reader = options.reader or reader
        self._cache_dir = cache_dir

    @property
    def label(self) -> str:
        """Its name for messages, with a space before it."""
        return f" {self.name}" if self.name else ""

    @functools.cached_property
    def paths(self) -> list[PathOrURL]:
        """The files, in the order of their documents."""
        return find_files(self.files)

    @functools.cached_property
    def survey(self) -> Survey:
        """The size of the text, held-out text included."""
        return survey(self.paths, self.reader, self._cache_dir)

    def longest_held_out_whole(self, fractions: tuple[float, float]) -> int | None:
        """Return the characters of the longest document that is held out whole; see `splits`."""
        if self.reader.loss_on:
            return None  # a part of a document could be all context, or lack its context
        text, smallest = self.survey, min(fraction for fraction in fractions if fraction)
        return splits.longest_held_out_whole(text.documents, text.characters, text.longest, smallest)


def total(surveys: Iterable[Survey]) -> Survey:
    """Return the size of several texts together."""
    documents, size, characters, longest = zip(*(astuple(each) for each in surveys), strict=True)
    return Survey(sum(documents), sum(size), sum(characters), max(longest))
