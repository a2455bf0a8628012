"""Measure a text in one pass: how much there is, in how many documents. The result is cached by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from gpt2kit import files as durable
from gpt2kit.text import sources
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.reader import Reader, document_identity
from gpt2kit.text.sources import PathOrURL
from gpt2kit.text.splits import UnfinishedPiece

# Part of the cache key. Raise it when a survey has other fields.
_FORMAT = 2


@dataclass(frozen=True)
class Survey:
    """The size of a text."""

    documents: int = 0
    bytes: int = 0  # as UTF-8
    characters: int = 0
    longest: int = 0  # characters of the longest document


def survey(paths: Sequence[PathOrURL], reader: Reader, cache_dir: Path) -> Survey:
    """Read a text and return its size; raise if it has no documents. While one process reads it, others wait."""
    from filelock import FileLock

    digests = sources.digests(paths, cache_dir)
    content = {
        "format": _FORMAT,
        "reader": document_identity(reader.identity()),
        "files": digests,
        "formats": [sources.suffixes(path) for path in paths],
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    file = cache_dir / "surveys" / f"{key}.json"
    if (saved := _read(file)) is not None:
        return saved
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if (saved := _read(file)) is not None:
            return saved
        result = measure(paths, reader)
        sources.refuse_changes(paths, digests, cache_dir)
        durable.write_text(file, json.dumps(asdict(result)))
    return result


def _read(file: Path) -> Survey | None:
    """Return a cached survey; None if it is missing or damaged."""
    try:
        saved = Survey(**durable.parse_json(durable.read_limited(file)))
    except (OSError, ValueError, TypeError):
        return None
    return saved if all(type(count) is int and count >= 0 for count in vars(saved).values()) else None


def measure(paths: Sequence[PathOrURL], reader: Reader) -> Survey:
    """Read a text and return its size; raise if it has no documents."""
    report, documents, total, characters, longest, start = ReadReport(), 0, 0, 0, 0, 0
    size = sum(sources.size(path) for path in paths)
    with tqdm(
        desc="measuring text", total=size or None, unit="B", unit_scale=True, leave=False, delay=1, disable=None
    ) as bar:
        for piece in reader.read(paths, report):
            total += len(piece.encode("utf-8", "surrogatepass"))
            characters += len(piece)
            if not isinstance(piece, UnfinishedPiece):
                documents += 1
                longest = max(longest, characters - start)
                start = characters
            bar.update(min(report.bytes, size or report.bytes) - bar.n)
    if not documents:
        raise report.no_text(paths)
    return Survey(documents, total, characters, longest)
