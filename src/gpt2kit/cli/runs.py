"""Implements `gpt2kit runs`: a table of the runs in a folder. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from gpt2kit.checkpoint import paths
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import UserError
from gpt2kit.runs import folder

_STATES = {"done": "finished", "failed": "failed", "stopped": "interrupted"}
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def runs(logs: Positional[Path] = Path(paths.LOGS)) -> None:
    """List the runs in a folder, the newest first: state, step, best validation, size on disk, time since the start.

    Args:
        logs: Folder of the runs.
    """
    folders = paths.runs(logs)
    if not folders:
        print(f"{logs}: no runs (current folder: {Path.cwd()}). Train one with gpt2kit train TEXT")
        return
    head = ["run", "state", "step", "bits per byte", "size", "started"]
    print(format_table([head, *(describe(run) for run in folders)]))


def describe(run: Path) -> list[str]:
    """Return the cells of a run's row. A damaged file leaves its cells empty."""
    status: dict[str, object] = {}
    bits: float | None = None
    with contextlib.suppress(UserError):
        status = folder.read_status(run)
    with contextlib.suppress(UserError):
        # At step 0 the weights are those that the run started with.
        bits = min((value for step, value in folder.read_metrics(run).get("val_bpb", {}).items() if step), default=None)
    step = status.get("step")
    if not isinstance(step, int):
        step = max([paths.step_of(path) for path in paths.checkpoints(run)], default=0)
    return [
        " ".join(run.name.split()),
        state(run, status.get("state")),
        f"{step}",
        "" if bits is None else f"{bits:.4f}",
        f"{folder_size(run) / 1e6:,.1f} MB",
        f"{format_age(time.time() - paths.start_time(run))} ago",
    ]


def folder_size(folder: Path) -> int:
    """Return the bytes of the files in a folder. A run that is training may delete some of them meanwhile."""
    size, folders = 0, [str(folder)]
    while folders:  # not rglob, which recurses
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    size += entry.stat().st_size if entry.is_file() else 0
    return size


def state(run: Path, recorded: object) -> str:
    """Return the state of a run: finished, failed, interrupted, training or unknown."""
    if isinstance(recorded, str) and recorded in _STATES:
        return _STATES[recorded]
    try:
        return "training" if folder.is_locked(run) else "interrupted"
    except (OSError, ValueError):  # no permission to read it, or no regular file
        return "unknown"


def format_age(seconds: float) -> str:
    """Return a duration in its largest unit."""
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), _UNITS[-1])
    return f"{max(seconds, 0) // size:.0f} {unit}"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
