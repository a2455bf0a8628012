"""The journal of a store that is being built: one line per finished shard, from which a killed build continues."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

from gpt2kit import files as durable
from gpt2kit.data.store import JOURNAL, MAX_BYTES, Shard, parse, shard_name


def read(folder: Path) -> list[Shard]:
    """Return the shards that an earlier build finished, and delete its temporary files."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink()  # the other build was killed, since this one holds the lock
    if not (folder / JOURNAL).is_file():
        return []
    shards: list[Shard] = []
    with contextlib.suppress(ValueError, TypeError):  # damaged; shards that follow are built again
        for line in durable.read_limited(folder / JOURNAL, MAX_BYTES).decode(errors="replace").splitlines():
            shard = parse(Shard, durable.parse_json(line))
            if shard.name != shard_name(len(shards)):
                break
            shards.append(shard)
    write(folder, shards)
    return shards


def write(folder: Path, shards: list[Shard]) -> None:
    """Record these shards, and no others, as finished."""
    durable.write_text(folder / JOURNAL, "".join(json.dumps(asdict(shard)) + "\n" for shard in shards))
