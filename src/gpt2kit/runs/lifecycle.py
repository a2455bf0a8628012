"""A run's folder: who holds it, what state it is in, its log cut back to where a resumed run goes on, and which run
`--ckpt_path last` means."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import socket
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint
from gpt2kit.errors import CheckpointError, MachineError
from gpt2kit.runs import folder as run_folder

LOGS = "lightning_logs"
_FREE_TO_CHANGE = {
    "data": {"batch_size", "global_batch", "cache_dir", "seed", "num_workers"},
    "model": {"optimizer", "schedule", "attention"},
}
"""Settings in which two starts of one run may differ; all others of `data` and `model` tell runs apart."""


def run_of(file: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None for one that was taken elsewhere."""
    return file.parent.parent if file.parent.name == "checkpoints" else None


def claim(run: Path) -> FileLock:
    """Keep every other process out of the folder until this one ends, however it ends."""
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        holder = run_folder.status(run)
        who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
        raise MachineError(f"{run}: {who} is training in this folder. Wait for it to end, or stop it") from None
    return lock


def write_status(run: Path, state: str, step: int, reason: str = "") -> None:
    """Say in status.json, valid at every moment, how the run stands."""
    newest = next(iter(checkpoint.checkpoints(run)), None)
    status = {
        "state": state,
        "step": step,
        "last_checkpoint": str(newest.relative_to(run)) if newest else None,
        "reason": reason,
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }
    files.write_text(run / run_folder.STATUS, json.dumps(status, indent=1) + "\n")


def clean(run: Path) -> None:
    """Remove what a killed save has left: temporary files, and checksums without their checkpoint."""
    folder = run / "checkpoints"
    for orphan in [*folder.glob(".*.tmp"), *run.glob(".*.tmp")]:
        if orphan.is_file():
            orphan.unlink(missing_ok=True)
    for sidecar in folder.glob("*.ckpt.sha256"):
        if not sidecar.with_suffix("").exists():
            sidecar.unlink(missing_ok=True)


def set_aside(run: Path, step: int) -> None:
    """Rename checkpoints after `step`, damaged or of a way not taken: the resumed run saves these steps itself."""
    for path in checkpoint.checkpoints(run):
        if checkpoint.step_of(path) > step:
            aside = path.with_name(f"{path.name}.aside")
            path.replace(aside)
            path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
            print(f"resume: {path.name} is set aside as {aside.name}", file=sys.stderr)


def cut_back(run: Path, step: int) -> None:
    """Drop the rows of metrics.csv after `step`: the resumed run will write them again."""
    path = run / run_folder.METRICS
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or [])
        kept = [row for row in reader if _number(row.get("step")) <= step and None not in row.values()]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    files.write_text(path, text.getvalue())


def missing_space(run: Path, needed: int) -> str:
    """Empty if the disk has room for a checkpoint of `needed` bytes, else the complaint."""
    free = shutil.disk_usage(run).free
    if free >= needed:
        return ""
    return f"{run}: {free / 1e6:,.0f} MB free, a checkpoint needs {needed / 1e6:,.0f} MB"


def resumable(ckpt_path: str, runs: Path, wanted: Mapping[str, Any] | None, unsaid: Collection[str] = ()) -> Path:
    """The checkpoint to go on from: a file, the newest sound one of a run folder, or, for `last`, that of the newest
    run whose data and model settings are `wanted` (None: of the newest run; but for those that are `unsaid`)."""
    if ckpt_path != "last":
        given = Path(ckpt_path)
        if given.is_file() or (given.suffix == ".ckpt" and given.is_dir()):
            checkpoint.check_resumable(given)
            return given
        if not given.is_dir():
            raise CheckpointError(
                f"{given}: no such checkpoint or run folder (looked from {Path.cwd()}). Check the path"
            )
        folders = [given]
    else:
        folders = sorted(runs.glob("version_*"), key=lambda run: (_version(run), run.name), reverse=True)
    differences = ""
    for folder in folders:
        newest = checkpoint.newest_valid(folder)
        if newest is None:
            continue
        other = [] if wanted is None or ckpt_path != "last" else _differences(folder, wanted, unsaid)
        if not other:
            return newest
        differences = differences or f"; the newest, {folder.name}, has other settings: {'; '.join(other[:4])}"
    where = folders[0] if len(folders) == 1 else runs
    raise CheckpointError(
        f"--ckpt_path {ckpt_path}: no sound checkpoint under {where} to go on from{differences}. "
        "Name a run folder, or leave --ckpt_path out to start anew"
    )


def flat(settings: object, name: str = "") -> dict[str, Any]:
    """Nested settings as `{"model.n_layer": 4}`."""
    if not isinstance(settings, Mapping):
        return {name: settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{name}.{key}" if name else str(key))
    return found


def _differences(run: Path, wanted: Mapping[str, Any], unsaid: Collection[str]) -> list[str]:
    """In what a run's own config is another run than `wanted`."""
    import yaml

    try:
        theirs = yaml.safe_load((run / run_folder.CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return ["it has no config.yaml"]
    if not isinstance(theirs, dict):
        return ["its config.yaml is damaged"]
    found = []
    for part, free in _FREE_TO_CHANGE.items():
        one, other = (
            flat({name: value for name, value in dict(of.get(part) or {}).items() if name not in free})
            for of in (theirs, wanted)
        )
        keys = [k for k in sorted(set(one) | set(other)) if f"{part}.{k}" not in unsaid]
        found += [f"{part}.{k} {one.get(k)}, now {other.get(k)}" for k in keys if one.get(k) != other.get(k)]
    return found


def _version(run: Path) -> int:
    number = run.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
