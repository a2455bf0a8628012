"""Where a build of a token store keeps what it has finished."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from gpt2kit import files as durable
from gpt2kit.data.store import INDEX, JOURNAL, Index, Shard, damaged


class Shelf:
    """Where a build keeps what it has finished: in the folder that it writes into. `uploading` sends it elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def broken(self, recorded: list[Shard]) -> set[str]:
        """Names of those finished files that are gone or damaged."""
        return set(damaged(self.folder, recorded))

    def keep(self, shard: Shard) -> None:
        """Called when a token file and the file beside it are written."""

    def note(self, shard: Shard) -> None:
        """Add a file that is kept to the journal."""
        with open(self.folder / JOURNAL, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(asdict(shard)) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def unnote(self) -> None:
        """Empty the journal: nothing counts as finished."""
        durable.write_text(self.folder / JOURNAL, "")

    def finish(self, index: Index) -> None:
        """Write the index: the store is complete."""
        durable.write_text(self.folder / INDEX, index.to_json())

    def discard(self) -> None:
        """Delete all that is finished."""
        shutil.rmtree(self.folder)
