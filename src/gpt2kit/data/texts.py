"""The texts of a run: one, or several with names and weights, and what is held out of them."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from gpt2kit.text import splits
from gpt2kit.text.reader import Reader, Selection
from gpt2kit.text.sources import PathOrURL, find_files
from gpt2kit.text.splits import Split, SplitRange
from gpt2kit.text.survey import Survey, survey

HELD_OUT_SPLITS: tuple[Split, Split] = ("valid", "test")
# A name is part of a metric's name and of an option's.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# What jsonargparse takes for the options of a class, and YAML for no text.
_RESERVED = ("class_path", "init_args", "dict_kwargs", "null", "true", "false", "yes", "no", "on", "off")


@dataclass(frozen=True)
class TextOptions:
    """One of several texts, in data.train_files, data.valid_files or data.test_files."""

    files: list[str] | str
    """Text files, folders, patterns or URLs."""
    weight: float = 1.0
    """How often a token is read, relative to those of the other texts. Only for training."""
    fraction: float | None = None
    """The fraction of all training blocks that are of this text; weights divide the others. 0: it is not trained on,
    and its held-out text is measured on. Only for training."""
    valid_fraction: float | None = None
    """Fraction to hold out for validation. Default: data.valid_fraction. Only for training."""
    test_fraction: float | None = None
    """Fraction to hold out for the test. Default: data.test_fraction. Only for training."""
    reader: Reader | None = None
    """How the files become documents. Default: as the training text of the same name, else data.reader."""


# A text: files, or several texts by their names.
TextFiles = list[str] | str | dict[str, TextOptions | list[str] | str]


def options_by_name(text: TextFiles | None) -> dict[str, TextOptions]:
    """Return the options of each text by its name. The name of the only one is empty."""
    if not isinstance(text, Mapping):
        return {"": TextOptions(text)} if text else {}
    return {name: _as_options(value) for name, value in text.items()}


def _as_options(value: Any) -> TextOptions:
    """Return options from files, or from a mapping, as in a parsed config."""
    if isinstance(value, TextOptions):
        return value
    if isinstance(value, str | list):
        return TextOptions(value)
    return TextOptions(*(value[field.name] for field in fields(TextOptions) if field.name != "reader"))


def is_name(name: object) -> bool:
    """Return whether a text may have this name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name.lower() not in _RESERVED


class Text:
    """A text: files, and how they become documents.

    Args:
        name: its name; empty if it is the only one.
        options: as the user gave them.
        reader: for texts without a reader of their own.
        cache_dir: for what is measured.
    """

    def __init__(self, name: str, options: TextOptions, reader: Reader, cache_dir: Path) -> None:
        self.name, self.weight, self.fraction = name, options.weight, options.fraction
        self.own_fractions = options.valid_fraction, options.test_fraction
        self.files = [options.files] if isinstance(options.files, str) else list(options.files)
        self.reader = options.reader or reader
        self._cache_dir = cache_dir

    @property
    def label(self) -> str:
        """Its name with a space before it, for messages; empty if it is the only one."""
        return f" {self.name}" if self.name else ""

    @property
    def part(self) -> float | dict[str, float]:
        """Its part of the training blocks, as checkpoints store it."""
        return self.weight if self.fraction is None else {"fraction": self.fraction}

    @functools.cached_property
    def paths(self) -> list[PathOrURL]:
        """The files, in the order of their documents."""
        return find_files(self.files)

    @functools.cached_property
    def survey(self) -> Survey:
        """The size of the text, held-out text included."""
        return survey(self.paths, self.reader, self._cache_dir)


class Texts:
    """The texts of each split. Held-out text is a part of each training text.

    Args:
        files: the user's files of each split.
        reader: for texts without a reader of their own.
        fractions: of the training text, held out for validation and for the test. None: by its size, both.
        block_size: the least that is held out, in tokens.
        seed: decides which documents are held out.
        cache_dir: for what is measured.
    """

    def __init__(
        self,
        files: Mapping[Split, TextFiles | None],
        reader: Reader,
        fractions: tuple[float, float] | None,
        block_size: int,
        seed: int,
        cache_dir: Path,
    ) -> None:
        self.is_automatic = fractions is None
        self._fractions, self._block_size, self._seed = fractions, block_size, seed
        readers: dict[str, Reader] = {}
        self._texts: dict[Split, list[Text]] = {}
        for split, text in files.items():
            own = options_by_name(text).items()
            self._texts[split] = [Text(name, each, readers.get(name, reader), cache_dir) for name, each in own]
            readers = readers or {each.name: each.reader for each in self._texts[split]}  # of the training texts
        for number, split in enumerate(HELD_OUT_SPLITS):
            default = fractions[number] if fractions else 1.0
            fractions_of_texts = (text.own_fractions[number] for text in self._texts["train"])
            is_held_out = [bool(default if fraction is None else fraction) for fraction in fractions_of_texts]
            self._texts[split] += itertools.compress(self._texts["train"], is_held_out)
        # The characters of the longest document of a text that is held out whole, where a resumed run decides it.
        self.longest_held_out_whole: dict[str, int | None] = {}

    def of(self, split: Split) -> list[Text]:
        """Return the texts of a split."""
        return self._texts[split]

    @functools.cached_property
    def files(self) -> dict[Split, list[str]]:
        """The files of each split, as the user gave them."""
        return {split: [file for text in texts for file in text.files] for split, texts in self._texts.items()}

    def find_files(self) -> None:
        """Report a wrong path in any split before a tokenizer is trained or text read."""
        for text in itertools.chain(*self._texts.values()):
            _ = text.paths

    @functools.cached_property
    def survey(self) -> Survey:
        """The size of the training files, held-out text included."""
        self.find_files()
        documents, size, characters, longest = zip(*(astuple(text.survey) for text in self.of("train")), strict=True)
        return Survey(sum(documents), sum(size), sum(characters), max(longest))

    @functools.cached_property
    def fractions(self) -> tuple[float, float]:
        """The fractions of training texts without their own that are held out for validation and for the test."""
        if self._fractions is not None:
            return self._fractions
        size = sum(text.survey.bytes for text in self.of("train") if None in text.own_fractions)
        fraction = splits.automatic_fraction(size, self._block_size)
        return fraction, fraction

    def fractions_of(self, text: Text) -> tuple[float, float]:
        """Return the fractions of a training text that are held out for validation and for the test."""
        valid, test = text.own_fractions
        return self.fractions[0] if valid is None else valid, self.fractions[1] if test is None else test

    def bytes_to_train_on(self) -> float:
        """Return about how many bytes of the training texts are not held out."""
        return sum(text.survey.bytes * (1 - sum(self.fractions_of(text))) for text in self.of("train"))

    def split_ranges(self, text: Text) -> dict[Split, SplitRange]:
        """Return the range of each split of a training text; empty if nothing is held out of a text."""
        if text not in self.of("train") or not any(self.fractions_of(text)):
            return {}
        if text.name not in self.longest_held_out_whole:
            self.longest_held_out_whole[text.name] = self._longest_held_out_whole(text)
        return splits.split_ranges(*self.fractions_of(text), self._seed, self.longest_held_out_whole[text.name])

    def _longest_held_out_whole(self, text: Text) -> int | None:
        if text.reader.loss_on:
            return None  # a part of a document could be all context, or lack its context
        size, smallest = text.survey, min(fraction for fraction in self.fractions_of(text) if fraction)
        return splits.longest_held_out_whole(size.documents, size.characters, size.longest, smallest)

    def selection(self, text: Text, split: Split) -> Selection:
        """Return the documents of a split of a text."""
        return Selection(text.paths, text.reader, self.split_ranges(text).get(split))
