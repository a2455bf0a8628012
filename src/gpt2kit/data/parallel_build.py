"""Build a token store in parts, on any number of machines, and merge the parts by renaming their files.

Part i of n is a separate store of consecutive files of the text, with about an n-th of its bytes. So no document is in
two parts, and the shards of all parts in order are a store of the complete text. It has the tokens and documents of a
single build; only the sizes of the shards differ.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt2kit import files as durable
from gpt2kit.data import build, cache
from gpt2kit.data.build import Corpus, Progress
from gpt2kit.data.index import Damaged, Index, read_index, shard_name, write_journal
from gpt2kit.data.store import TokenStore, find_damaged
from gpt2kit.errors import DataError, UserError
from gpt2kit.text import sources
from gpt2kit.text.read_report import ReadReport

_LAUNCHER_VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


def parse_part(part: str) -> tuple[int, int]:
    """Parse `3/16`, or for `auto` the launcher's ranks: return the number of a part, from 1, and the number of parts.

    `auto` does not support SLURM arrays: if one task of an array is run again, SLURM reports an array of one task.
    """
    if part == "auto":
        for names in _LAUNCHER_VARIABLES:
            rank, world_size = (os.environ.get(name, "") for name in names)
            if rank.isdecimal() and world_size.isdecimal():
                return int(rank) + 1, int(world_size)
        raise UserError("--part auto: not started by torchrun or srun. Give the part, such as 3/16")
    number, _, count = part.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise UserError(f"--part {part}: must be a part and the number of parts, such as 3/16, or auto")


def split_corpus(corpus: Corpus, count: int) -> dict[int, Corpus]:
    """Return the parts that have files, by their numbers. If `count` is 1, the part is the corpus itself."""
    if count == 1:
        return {1: corpus}
    if corpus.reader.max_documents is not None:
        raise UserError("reader.max_documents: not supported with --part, because it counts over all files. Omit it")
    sizes = [sources.size(path) for path in corpus.paths]
    if not any(sizes):
        sizes = [1] * len(sizes)
    # A file belongs to the part that its middle byte is in.
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    owners = np.minimum(middles * count // sum(sizes), count - 1).astype(int) + 1
    parts: dict[int, Corpus] = {}
    for number in np.unique(owners).tolist():
        own = np.flatnonzero(owners == number).tolist()
        paths, left_out = [corpus.paths[n] for n in own], corpus.left_out and corpus.left_out.of_files(own)
        parts[number] = replace(corpus, paths=paths, part=f"{number}/{count}", leading_eos=not parts, left_out=left_out)
    return parts


def build_each(corpora: Mapping[str, Corpus], number: int, count: int, cache_dir: Path) -> list[str]:
    """Build one part of the store of each text, by its name; return a line for each."""
    lines = []
    for name, corpus in corpora.items():
        if part := split_corpus(corpus, count).get(number):
            store = build.open_with_bar(part, cache_dir, f"{name}, part {number}")
            lines.append(f"{name}: part {number} of {count}: {len(part.paths)} files, {store.tokens:,} tokens")
        else:
            lines.append(f"{name}: part {number} of {count}: no files")
    return lines


def merge_each(corpora: Mapping[str, Corpus], count: int, cache_dir: Path) -> list[str]:
    """Merge the parts of the store of each text, by its name; return a line for each."""
    stores = {name: merge(corpus, count, cache_dir, name) for name, corpus in corpora.items()}
    return [f"{name}: {store.documents:,} documents, {store.tokens:,} tokens" for name, store in stores.items()]


def merge(corpus: Corpus, count: int, cache_dir: Path, what: str = "text") -> TokenStore:
    """Merge the parts of a corpus, all of which must be complete, into its store, and delete the parts.

    The parts' indexes are kept until the store's index is written. So a merge continues one that was killed: a file
    that is no longer in its part has been moved already.
    """
    parts = split_corpus(corpus, count)
    folders = {number: cache_dir / part.key(part.digests(cache_dir)) for number, part in parts.items()}

    def join(folder: Path, corpus: Corpus, progress: Progress) -> Index:
        return _join(folders, count, folder, corpus)

    store = build.open_with_bar(corpus, cache_dir, what, join)
    for folder in folders.values():
        if folder != store.folder and folder.is_dir():
            cache.remove(folder)
    return store


def _join(parts: Mapping[int, Path], count: int, folder: Path, corpus: Corpus) -> Index:
    """Move the parts' shards into one folder, numbered in order, and return the index."""
    indexes = _read_indexes(parts, count)
    report = _merge_reports(indexes.values(), corpus)
    origins = [(number, shard) for number, index in indexes.items() for shard in index.shards]
    build.refuse_empty([shard for _, shard in origins], corpus, report)
    folder.mkdir(exist_ok=True)
    write_journal(folder, [])  # a single build may have been killed here; its files are replaced
    shards = [replace(shard, name=shard_name(number)) for number, (_, shard) in enumerate(origins)]
    for (number, old), new in zip(origins, shards, strict=True):
        _move(parts[number] / old.name, folder / new.name)
        _move(parts[number] / old.doc_name, folder / new.doc_name)
    for path in {*folder.glob("0*")} - {folder / name for shard in shards for name in (shard.name, shard.doc_name)}:
        path.unlink()  # of a single build with more shards
    names = find_damaged(folder, shards)
    broken = sorted({number for (number, _), shard in zip(origins, shards, strict=True) if shard.name in names})
    if broken:
        raise DataError(
            f"--merge {count}: missing or damaged files of part {', '.join(map(str, broken))} in {folder}. Run --part "
            f"{broken[0]}/{count} again"
        )
    write_journal(folder, shards)
    return corpus.index([source for index in indexes.values() for source in index.sources], report.lines(), shards)


def _read_indexes(parts: Mapping[int, Path], count: int) -> dict[int, Index]:
    indexes: dict[int, Index] = {}
    for number, folder in parts.items():
        with contextlib.suppress(FileNotFoundError, Damaged):
            indexes[number] = read_index(folder)
    if missing := [number for number in parts if number not in indexes]:
        raise DataError(
            f"--merge {count}: incomplete in {next(iter(parts.values())).parent}: part "
            f"{', '.join(map(str, missing))} (or built from another text, with other options or for another number of "
            f"parts). Run --part {missing[0]}/{count} again"
        )
    return indexes


def _move(source: Path, target: Path) -> None:
    """Move a file, by a copy if it is on another disk; do nothing if an earlier merge has moved it."""
    if not source.exists():
        return
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with durable.replacing(target) as temporary:
            shutil.copyfile(source, temporary)


def _merge_reports(indexes: Iterable[Index], corpus: Corpus) -> ReadReport:
    """Join the reports of all parts, and check the bad records as those of one text."""
    report = ReadReport(corpus.reader.max_bad_fraction)
    for index in indexes:
        try:
            part = durable.parse_json(index.notes[0])
            report.records += part["records"]
            report.bad += part["bad"]
            for what, (number, first) in part["met"].items():
                report.note(what, first, number)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"--merge: the index of a part is damaged ({error}). Run its --part again") from None
    report.check_bad_fraction()
    return report
