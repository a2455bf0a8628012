"""Implements `cache.py`: list, prune and verify the stores of tokenized text."""

from __future__ import annotations

from pathlib import Path

from gpt2kit.data.cache import entries, remove, table
from gpt2kit.errors import UserError


def manage(
    cache_dir: Path = Path(".cache/gpt2kit"),
    prune: list[str] = [],  # noqa: B006
    unused_for: float | None = None,
    verify: bool = False,
) -> None:
    """List the stores of tokenized text; prune or verify them. A pruned one is built again when it is needed.

    Args:
        cache_dir: where they lie; the trainer's data.cache_dir.
        prune: delete these, by the beginnings of their names; `all` for all.
        unused_for: delete those that were not opened for so many days.
        verify: read every file again and compare its checksum.
    """
    found = list(entries(cache_dir))
    if unused_for is not None and unused_for < 0:
        raise UserError(f"--unused_for {unused_for}: days, must not be negative")
    for name in prune:
        if name != "all" and sum(entry.folder.name.startswith(name) for entry in found) != 1:
            raise UserError(f"--prune {name}: not the beginning of one store's name in {cache_dir}. See the list")
    doomed = [
        entry
        for entry in found
        if any(name == "all" or entry.folder.name.startswith(name) for name in prune)
        or (unused_for is not None and entry.days >= unused_for)
    ]
    gone = [entry for entry in doomed if remove(entry.folder)]
    if doomed:
        print(f"{len(gone)} stores deleted, {sum(entry.bytes for entry in gone) / 1e6:,.1f} MB")
    print(table([entry for entry in found if entry not in gone], verify) or f"{cache_dir}: no stores")
