"""Leave near duplicates out of training texts (`reader.drop_near_duplicates`): search once, cache the result.

Documents of validation and test texts come first and always stay. Then come the training texts in their order; of
several near copies the first stays. The result depends on the texts, how they are read and split, and the thresholds,
and on nothing else: every rank, every part of a store and every start of a run leaves out the same documents.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gpt2kit import files as durable
from gpt2kit.commands import reader_option
from gpt2kit.data import minhash
from gpt2kit.data.texts import HELD_OUT_SPLITS, Texts
from gpt2kit.errors import DataError
from gpt2kit.text import sources
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.reader import Selection, document_identity, read_rest

# Part of the cache key. Raise it when a search has another result.
_FORMAT = 1
_MAX_BYTES = 1 << 28  # of a cached result, which has about 8 bytes per document that is left out


@dataclass(frozen=True)
class LeftOut:
    """The documents of a text that are left out as near duplicates."""

    numbers: Sequence[Sequence[int]]  # for each file, in order; its first document of the split is 0
    documents: int  # of the split, with those that are left out
    of_held_out: int  # documents that are left out as near copies of validation or test documents
    threshold: float

    @property
    def count(self) -> int:
        """How many documents are left out."""
        return sum(map(len, self.numbers))

    @property
    def digest(self) -> str:
        """A hash for the cache key of a store."""
        return hashlib.sha256(json.dumps([self.threshold, self.numbers]).encode()).hexdigest()

    @property
    def note(self) -> str:
        """A line for the user."""
        if not self.count:
            return "no near duplicates found"
        held_out = f"; copies of held-out documents: {self.of_held_out:,}" if self.of_held_out else ""
        return f"{self.count:,} near duplicates left out ({self.count / self.documents:.1%}){held_out}"

    def of_files(self, positions: Iterable[int]) -> LeftOut:
        """Return what is left out of some of the files."""
        return LeftOut([self.numbers[n] for n in positions], self.documents, self.of_held_out, self.threshold)

    def drop(self, pieces: Iterator[str], report: ReadReport) -> Iterator[str]:
        """Yield the pieces of the documents that stay. `report` is the one that `pieces` fills."""
        file, number = -1, 0
        for first in pieces:
            number += 1
            if file != len(report.pieces) - 1:  # the first document of another file
                file, number = len(report.pieces) - 1, 0
                dropped = iter(self.numbers[file])
                next_dropped = next(dropped, -1)
            if number == next_dropped:
                next_dropped = next(dropped, -1)
                report.pieces[-1] -= 1 + sum(1 for _ in read_rest(first, pieces))  # only pieces in the store count
            else:
                yield first
                yield from read_rest(first, pieces)


@dataclass
class _Text:
    """One text to search."""

    name: str
    selection: Selection
    threshold: float | None  # None: all documents stay
    is_held_out: bool


def find(texts: Texts, cache_dir: Path, streamed_from: str | None = None) -> dict[str, LeftOut]:
    """Return what is left out of each training text whose reader has the option, by its name.

    While one process searches, others wait. The result is cached by content. With streaming, it is read from the URL
    where the cache was copied to.
    """
    searched = _texts_to_search(texts)
    from filelock import FileLock

    paths = [path for text in searched for path in text.selection.paths]
    digests = sources.digests(paths, cache_dir)
    name = f"near_duplicates/{_key(searched, digests)}.json"
    if streamed_from is not None:
        return _fetch(f"{streamed_from}/{name}", searched)
    file = cache_dir / name
    if (saved := _read(file, searched)) is not None:
        return saved
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if (saved := _read(file, searched)) is not None:
            return saved
        result = _search(searched)
        sources.refuse_changes(paths, digests, cache_dir)
        durable.write_text(file, json.dumps({name: vars(left_out) for name, left_out in result.items()}))
    return result


def _texts_to_search(texts: Texts) -> list[_Text]:
    """Return the texts that are trained or measured on: the held-out ones first."""
    held_out = ((text, split) for split in HELD_OUT_SPLITS for text in texts.of(split))
    training = ((text, texts.selection(text, "train")) for text in texts.of("train") if text.fraction != 0)
    return [
        *(_Text(text.name, texts.selection(text, split), None, True) for text, split in held_out),
        *(_Text(text.name, selection, text.reader.drop_near_duplicates, False) for text, selection in training),
    ]


def _key(texts: Sequence[_Text], digests: Sequence[str]) -> str:
    """Return a hash of what decides the result."""
    how = [
        {
            "name": text.name if text.threshold else None,
            "threshold": text.threshold and float(text.threshold),
            "reader": document_identity(text.selection.reader.identity()),
            "formats": [sources.suffixes(path) for path in text.selection.paths],
            "share": asdict(text.selection.split_range) if text.selection.split_range else None,
        }
        for text in texts
    ]
    content = {"format": _FORMAT, "texts": how, "files": digests}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _read(file: Path, texts: Sequence[_Text]) -> dict[str, LeftOut] | None:
    """Return a cached result; None if it is missing or damaged."""
    try:
        return _parse(durable.read_limited(file, _MAX_BYTES), texts)
    except (OSError, ValueError):
        return None


def _fetch(location: str, texts: Sequence[_Text]) -> dict[str, LeftOut]:
    """Return the result that was built with the stores at a URL."""
    with sources.translate_errors(location):
        filesystem, path = sources.filesystem_of(location)
        if not filesystem.exists(path):
            raise DataError(
                f"{location}: not found. With {reader_option('drop_near_duplicates')} and data.streaming, the folder "
                "near_duplicates of the local cache must be at the URL, too. Build the store with the same options "
                "and --part 1/1, and copy all of data.cache_dir"
            )
        try:
            return _parse(filesystem.cat_file(path, 0, _MAX_BYTES), texts)
        except ValueError as error:
            raise DataError(f"{location}: damaged ({error}). Copy it again") from None


def _parse(raw: bytes, texts: Sequence[_Text]) -> dict[str, LeftOut]:
    """Return the result in a file; raise ValueError unless it is one of these texts."""
    files = {text.name: len(text.selection.paths) for text in texts if text.threshold}
    try:
        result = {name: LeftOut(**values) for name, values in durable.parse_json(raw.decode()).items()}
        is_valid = {name: len(left_out.numbers) for name, left_out in result.items()} == files
        for left_out in result.values():
            numbers = itertools.chain.from_iterable(left_out.numbers)
            is_valid &= all(type(number) is int for number in numbers)
            is_valid &= 0 <= left_out.of_held_out <= left_out.count <= left_out.documents
    except (TypeError, AttributeError) as error:
        raise ValueError(error) from None
    if not is_valid:
        raise ValueError("not a list of near duplicates")
    return result


def _search(texts: Sequence[_Text]) -> dict[str, LeftOut]:
    """Read all texts, and return what is left out of each one with a threshold."""
    sketcher = minhash.Sketcher(min(text.threshold for text in texts if text.threshold))
    counts = [_sketch(text.selection, sketcher) for text in texts]  # documents of each file of each text
    documents = [sum(files) for files in counts]
    thresholds = np.repeat(np.array([text.threshold or np.inf for text in texts]), documents)
    copy_of = minhash.find_copies(sketcher.signatures(), thresholds)
    held_out = sum(itertools.compress(documents, [text.is_held_out for text in texts]))
    copies = np.split(copy_of, np.cumsum(documents)[:-1])
    return {
        text.name: _left_out(text, files, own, held_out)
        for text, files, own in zip(texts, counts, copies, strict=True)
        if text.threshold
    }


def _left_out(text: _Text, counts: Sequence[int], copy_of: NDArray[np.int32], held_out: int) -> LeftOut:
    """Return what is left out of a text with these documents per file; raise if nothing stays."""
    is_copy = copy_of >= 0
    if len(is_copy) and is_copy.all():
        raise DataError(
            f"{text.selection.paths[0]}: nothing is left to train on, because every document is a near copy of a "
            f"validation or test document or of one in another text. Give other validation text, or increase "
            f"{reader_option('drop_near_duplicates')}"
        )
    files = np.split(is_copy, np.cumsum(counts)[:-1])
    numbers = [np.flatnonzero(flags).tolist() for flags in files]
    of_held_out = int(np.count_nonzero(copy_of[is_copy] < held_out))
    return LeftOut(numbers, len(copy_of), of_held_out, float(text.threshold or 0))


def _sketch(selection: Selection, sketcher: minhash.Sketcher) -> list[int]:
    """Add the documents of a text to the sketcher; return how many each file has."""
    counts = [0] * len(selection.paths)
    report = ReadReport()
    size = sum(sources.size(path) for path in selection.paths)
    name = "searching near duplicates"
    with tqdm(desc=name, total=size or None, unit="B", unit_scale=True, leave=False, delay=1, disable=None) as bar:
        pieces = selection.read(report)
        for first in pieces:
            counts[len(report.pieces) - 1] += 1
            sketcher.add(itertools.chain([first], read_rest(first, pieces)))
            bar.update(min(report.bytes, size or report.bytes) - bar.n)
    return counts
