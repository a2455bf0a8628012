"""Manage a run's folder during training: lock, status, log after a resume. Find the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.checkpoint.paths import LOGS as LOGS
from gpt2kit.errors import CheckpointError, DataError, MachineError
from gpt2kit.runs import folder as run_folder

logger = logging.getLogger(__name__)

# (flat settings of an earlier run, current settings) -> settings of the earlier run under current names
Rename = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]
# Settings that may change from one start of a run to the next; all others of `data` and `model` identify a run.
_CHANGEABLE = {
    *("data.batch_size", "data.global_batch_size", "data.cache_dir", "data.seed", "data.num_workers"),
    *("model.optimizer", "model.schedule", "model.attention"),
}


def run_of(file: Path) -> Path | None:
    """Return the run folder of a checkpoint; None if the file is elsewhere."""
    return file.parent.parent if file.parent.name == "checkpoints" else None


def claim(run: Path) -> FileLock:
    """Lock the folder against other processes until this one ends, however it ends."""
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        holder = "another process"
        with contextlib.suppress(DataError):
            if status := run_folder.read_status(run):
                holder = f"process {status.get('pid')} on {status.get('host')}"
        raise MachineError(f"{run}: {holder} is training in this folder. Wait for it to end, or stop it") from None
    return lock


def write_status(run: Path, state: str, step: int, reason: str = "") -> None:
    """Replace status.json, which is valid at every moment."""
    newest = next(iter(paths.checkpoints(run)), None)
    status = {
        "state": state,
        "step": step,
        "last_checkpoint": str(newest.relative_to(run)) if newest else None,
        "reason": reason,
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }
    files.write_text(run / run_folder.STATUS, json.dumps(status, indent=1) + "\n")


def remove_leftovers(run: Path) -> None:
    """Remove what a killed save leaves: temporary files, and checksums without their checkpoint."""
    folder = run / "checkpoints"
    checksums = [path for path in folder.glob("*.ckpt.sha256") if not path.with_suffix("").exists()]
    for path in [*folder.glob(".*.tmp"), *run.glob(".*.tmp"), *checksums]:
        if path.is_file():
            path.unlink(missing_ok=True)


def set_aside(run: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which the resumed run trains and saves again."""
    for path in paths.checkpoints(run):
        if paths.step_of(path) > step:
            aside = path.with_name(f"{path.name}.aside")
            path.replace(aside)
            path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
            logger.info(f"resume: renamed {path.name} to {aside.name}")


def truncate_metrics(run: Path, step: int) -> None:
    """Drop the rows of metrics.csv after `step`, which the resumed run writes again."""
    path = run / run_folder.METRICS
    if not path.is_file():
        return
    with run_folder.refuse_damaged(path), path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        complete = run_folder.complete_rows(rows)
        write_metrics(path, rows.fieldnames or [], [row for row in complete if float(row["step"] or "nan") <= step])


def write_metrics(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace metrics.csv, with the line endings of Lightning's logger."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())


def space_problem(run: Path, size: int) -> str:
    """Return a message if the disk has no space for a checkpoint of `size` bytes, else an empty string."""
    free = shutil.disk_usage(run).free
    if free >= size:
        return ""
    return f"{run}: {free / 1e6:,.0f} MB free, a checkpoint needs {size / 1e6:,.0f} MB"


def find_resumable(
    ckpt_path: str,
    logs: Path,
    settings: Mapping[str, Any] | None,
    ignored: Collection[str] = (),
    rename: Rename = lambda earlier, _: earlier,
) -> Path:
    """Return the checkpoint to resume from: a file, or the newest valid one of a run, which may be named.

    `last` is the newest run in `logs` that has the same data and model settings, apart from those in `ignored`; if
    `settings` is None, the newest run. `best` is the best checkpoint of the same run. `rename` returns the flat
    settings of an earlier run under their current names.
    """
    if ckpt_path in paths.NEWEST:
        path = _newest_run(ckpt_path, logs, settings, ignored, rename)
    else:
        path = Path(paths.resolve(ckpt_path, logs))
    if ckpt_path != "best" and path.is_dir() and path.suffix != ".ckpt":
        newest = checkpoint.newest_valid(path)
        if newest is None:
            raise CheckpointError(
                f"--ckpt_path {ckpt_path}: no valid checkpoint to resume from in {path}. Name another run, or omit "
                "--ckpt_path to start a new one"
            )
        return newest
    file = paths.find(path)
    checkpoint.check_resumable(file)
    return file


def _newest_run(
    name: str, logs: Path, settings: Mapping[str, Any] | None, ignored: Collection[str], rename: Rename
) -> Path:
    """Return the newest run in a folder that has the same settings."""
    differences = ""
    for run in paths.runs(logs):
        changes = [] if settings is None else _differences(run, settings, ignored, rename)
        if not changes:
            return run
        differences = differences or f" with these settings; the newest, {run.name}, has {'; '.join(changes[:4])}"
    raise CheckpointError(
        f"--ckpt_path {name}: {logs} contains no run{differences}. Name a run, or omit --ckpt_path to start a new one"
    )


def flatten(settings: object, name: str = "") -> dict[str, Any]:
    """Return nested settings as `{"model.n_layer": 4}`."""
    if not isinstance(settings, Mapping):
        return {name: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{name}.{key}" if name else str(key))
    return flat


def _differences(run: Path, settings: Mapping[str, Any], ignored: Collection[str], rename: Rename) -> list[str]:
    """Return the data and model settings that differ between a run's config and `settings`."""
    import yaml

    try:
        config = yaml.safe_load((run / run_folder.CONFIG).read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        return ["it has no valid config.yaml"]
    now = _data_and_model(settings)
    before = rename(_data_and_model(config), now)
    names = (name for name in sorted({*before, *now}) if ".".join(name.split(".")[:2]) not in _CHANGEABLE)
    prefixes = tuple(f"{name}." for name in ignored)  # of the options of a class
    changes = [name for name in names if before.get(name) != now.get(name) and not f"{name}.".startswith(prefixes)]
    return [f"{name} {before.get(name)}, now {now.get(name)}" for name in changes]


def _data_and_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    return flatten({part: settings.get(part) or {} for part in ("data", "model")})
