"""Implements `gpt2kit cache`: list, prune and verify the stores of tokenized text."""

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
    """List, prune or verify the stores of tokenized text. A pruned store is built again when it is needed.

    Args:
        cache_dir: Folder of the stores, data.cache_dir of trainer.py.
        prune: Delete the stores whose names begin with these; `all` deletes every store.
        unused_for: Delete the stores that were not opened for this number of days.
        verify: Read every file again and compare its checksum.
    """
    stores = list(entries(cache_dir))
    if unused_for is not None and unused_for < 0:
        raise UserError(f"--unused_for {unused_for}: must not be negative")
    for name in prune:
        if name != "all" and sum(entry.folder.name.startswith(name) for entry in stores) != 1:
            raise UserError(
                f"--prune {name}: must be the beginning of the name of one store in {cache_dir}. Omit --prune to list "
                "the stores"
            )
    selected = [
        entry
        for entry in stores
        if any(name == "all" or entry.folder.name.startswith(name) for name in prune)
        or (unused_for is not None and entry.days >= unused_for)
    ]
    deleted = [entry for entry in selected if remove(entry.folder)]
    if selected:
        print(f"{len(deleted)} stores deleted, {sum(entry.bytes for entry in deleted) / 1e6:,.1f} MB")
    print(table([entry for entry in stores if entry not in deleted], verify) or f"{cache_dir}: no stores")
