"""Build a token store in parts, on any number of machines, and merge the parts by renaming their files.

Part i of n is a store of its own, made of a run of whole files of the text, about an n-th of their bytes. So no
document is in two parts, and the token files of all parts in order are a store of the whole text: its tokens and
documents are those of a single build, only the sizes of the files differ.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from gpt2kit import files as durable
from gpt2kit.data import build, cache
from gpt2kit.data.build import Corpus, Progress
from gpt2kit.data.store import JOURNAL, Damaged, Index, Shard, TokenStore, damaged, read_index, shard_name
from gpt2kit.errors import DataError, UserError
from gpt2kit.text import sources
from gpt2kit.text.reader import Split
from gpt2kit.text.sources import Report

_LAUNCHED = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


def numbers(part: str) -> tuple[int, int]:
    """Which part of how many: `3/16`, counted from 1; or `auto`, by the rank that torchrun or srun has given.

    Not by a SLURM array's: there, a part that is made again alone would take itself for all of them.
    """
    launched = next((pair for pair in _LAUNCHED if all(name in os.environ for name in pair)), None)
    if part == "auto" and launched is None:
        raise UserError("--part auto: not started by torchrun or srun. Say which part, such as 3/16")
    if part == "auto" and launched:
        rank, count = (int(os.environ[name]) for name in launched)
        return rank + 1, count
    words = part.split("/")
    if len(words) == 2 and all(word.isdecimal() for word in words) and 1 <= int(words[0]) <= int(words[1]):
        return int(words[0]), int(words[1])
    raise UserError(f"--part {part}: must be a part and their number, from 1/16 to 16/16, or auto")


def parts_of(corpus: Corpus, count: int) -> dict[int, Corpus]:
    """Return the text of each part that has any, by its number. The only part of one is the corpus itself."""
    if count == 1:
        return {1: corpus}
    if corpus.reader.max_documents is not None:
        raise UserError("reader.max_documents: counts over all files, so not with --part. Leave it out")
    sizes = [sources.size(path) for path in corpus.paths]
    if not any(sizes):
        sizes = [1] * len(sizes)
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    of = np.minimum(middles * count // sum(sizes), count - 1).astype(int) + 1
    parts: dict[int, Corpus] = {}
    for number in np.unique(of).tolist():
        own = [path for path, part in zip(corpus.paths, of.tolist(), strict=True) if part == number]
        parts[number] = replace(corpus, paths=own, part=f"{number}/{count}", leading_eos=not parts)
    return parts


def build_each(corpora: Mapping[Split, Corpus], number: int, count: int, cache_dir: Path) -> list[str]:
    """Build one part of some splits' stores; a line for each."""
    lines = []
    for split, corpus in corpora.items():
        if part := parts_of(corpus, count).get(number):
            store = build.open_with_bar(part, cache_dir, f"{split} text, part {number}")
            lines.append(f"{split} text: part {number} of {count}: {len(part.paths)} files, {store.tokens:,} tokens")
        else:
            lines.append(f"{split} text: no file is left for part {number} of {count}")
    return lines


def merge_each(corpora: Mapping[Split, Corpus], count: int, cache_dir: Path) -> list[str]:
    """Make some splits' stores of their parts; a line for each."""
    stores = {split: merge(corpus, count, cache_dir, f"{split} text") for split, corpus in corpora.items()}
    return [f"{split} text: {store.documents:,} documents, {store.tokens:,} tokens" for split, store in stores.items()]


def merge(corpus: Corpus, count: int, cache_dir: Path, what: str = "text") -> TokenStore:
    """Make the store of a corpus from its parts, all of which must be finished, and delete what is left of them.

    The parts' indexes stay until that of the store is written. So a merge that was killed is continued by the next one:
    a file that is no longer in its part has been moved already.
    """
    parts = parts_of(corpus, count)
    folders = {number: cache_dir / part.key(cache_dir) for number, part in parts.items()}

    def join(folder: Path, corpus: Corpus, progress: Progress) -> tuple[list[str], list[Shard]]:
        return _join(folders, count, folder, corpus)

    store = build.open_with_bar(corpus, cache_dir, what, join)
    for folder in folders.values():
        if folder != store.folder and folder.is_dir():
            cache.remove(folder)
    return store


def _join(parts: Mapping[int, Path], count: int, folder: Path, corpus: Corpus) -> tuple[list[str], list[Shard]]:
    """Move the parts' token files into one folder, numbered in order; return notes for people and the files."""
    indexes = _read_indexes(parts, count)
    report = _report(indexes.values(), corpus)
    build.refuse_empty([shard for index in indexes.values() for shard in index.shards], corpus, report)
    if folder.is_dir():
        build.clear_journal(folder)  # of a single build that was killed: its files are replaced now
    shards: list[Shard] = []
    part_of: dict[str, int] = {}
    for number, index in indexes.items():
        for shard in index.shards:
            renamed = replace(shard, name=shard_name(len(shards)))
            _move(parts[number] / shard.name, folder / renamed.name)
            _move(parts[number] / shard.documents_name, folder / renamed.documents_name)
            shards.append(renamed)
            part_of[renamed.name] = number
    for path in folder.glob("0*"):
        if path.with_suffix(".bin").name not in part_of:
            path.unlink()  # of that single build, which had more files
    if broken := sorted({part_of[name] for name in damaged(folder, shards)}):
        raise DataError(
            f"--merge {count}: missing or damaged files of part {', '.join(map(str, broken))} in {folder}. Run --part "
            f"{broken[0]}/{count} again"
        )
    durable.write_text(folder / JOURNAL, "".join(json.dumps(asdict(shard)) + "\n" for shard in shards))
    return report.lines(), shards


def _read_indexes(parts: Mapping[int, Path], count: int) -> dict[int, Index]:
    indexes: dict[int, Index] = {}
    for number, folder in parts.items():
        try:
            indexes[number] = read_index(folder)
        except (FileNotFoundError, Damaged):
            continue
    if missing := [number for number in parts if number not in indexes]:
        raise DataError(
            f"--merge {count}: not finished in {next(iter(parts.values())).parent}: part "
            f"{', '.join(map(str, missing))} (or they were made of another text, by other options or for another "
            f"number of parts). Run --part {missing[0]}/{count} again"
        )
    return indexes


def _move(source: Path, target: Path) -> None:
    """Rename a file, or copy it to another disk; nothing if an earlier merge has done so."""
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with durable.replacing(target) as temporary:
            shutil.copyfile(source, temporary)


def _report(indexes: Iterable[Index], corpus: Corpus) -> Report:
    """What all parts have met together, judged as one reading."""
    whole = Report(corpus.reader.bad_share)
    for index in indexes:
        met = json.loads(index.notes[0])
        whole.records += met["records"]
        whole.bad += met["bad"]
        for what, (times, first) in met["met"].items():
            whole.note(what, first, times)
    whole.finish()
    return whole
