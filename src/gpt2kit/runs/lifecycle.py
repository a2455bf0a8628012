"""Manage a run's folder during training: lock, status, log after a resume. Find the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from gpt2kit import files, yaml_reader
from gpt2kit.checkpoint import checkpoint, paths, validation
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

# The settings that name classes; elsewhere, text with a dot is a path or a number.
_NAMES_OF_CLASSES = ("class_path", "optimizer", "schedule", "callbacks", "logger", "plugins", "strategy", "profiler")
# Packages that every run imports.
_IMPORTED = ("gpt2kit.", "pytorch_lightning.", "torch.optim.")
_LARGEST_CONFIG = 1 << 20  # bytes; a larger file is no config of a run


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


def remove_leftovers_of_killed_runs(logs: Path) -> None:
    """Remove the temporary files of runs that were killed: a run without a checkpoint is never resumed."""
    for run in {path.parent.parent for path in logs.glob("*/checkpoints/.*.tmp")}:
        with contextlib.suppress(MachineError, OSError):  # a process trains in it, or the folder is read-only
            lock = claim(run)
            remove_leftovers(run)
            lock.release()


def rename_damaged_files(run: Path) -> None:
    """Rename files of a run that cannot be used, so that none of them stops the resume of a valid checkpoint."""
    readers: dict[str, Callable[[Path], object]] = {
        run_folder.METRICS: run_folder.read_metrics,
        run_folder.START: run_folder.read_starts,
        run_folder.STATUS: run_folder.read_status,
        run_folder.SAMPLES: lambda run: files.read_limited(run / run_folder.SAMPLES).decode(),
    }
    for name in (".lock", "hparams.yaml", *readers):  # Lightning's loggers write hparams.yaml
        path = run / name
        try:
            with run_folder.refuse_damaged(path):
                files.refuse_special(path, allow_link=name != ".lock")  # filelock refuses a link
                if name in readers and path.exists():
                    readers[name](run)
        except DataError as error:
            rename_damaged(path, str(error).rpartition(". ")[0])


def rename_damaged(path: Path, problem: str) -> None:
    """Rename a file that cannot be used to NAME.damaged; `problem` names it."""
    numbers = itertools.chain([""], itertools.count(2))
    candidates = (path.with_name(f"{path.name}.damaged{number}") for number in numbers)
    aside = next(candidate for candidate in candidates if not candidate.exists())
    with contextlib.suppress(FileNotFoundError):  # another machine has renamed it
        path.replace(aside)
    logger.warning(f"{problem}. It is renamed to {aside.name}, and the run continues without it")


def checkpoint_settings(file: Path) -> dict[str, Any]:
    """Return the settings of a run that its checkpoint stores; empty if they name classes that would be imported.

    Nothing that a checkpoint names is imported, so only classes of packages that every run imports are accepted.
    """
    metadata: Any = checkpoint.read(file, verify=False).get(checkpoint.KEY)
    if validation.structure_problem(metadata, {"settings": {"data": dict, "model": dict, "trainer": dict}}, ""):
        return {}
    settings: dict[str, Any] = metadata["settings"]
    return settings if all(name.startswith(_IMPORTED) for name in _class_names(settings)) else {}


def _class_names(value: object, name: str = "") -> Iterator[str]:
    """Yield the classes that settings name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _class_names(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _class_names(item, name)
    elif isinstance(value, str) and "." in value and name in _NAMES_OF_CLASSES:
        yield value


def set_aside(run: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which the resumed run trains and saves again."""
    stable = run / "checkpoints" / paths.STABLE
    if stable.exists() and not 0 <= checkpoint.step_in(stable) <= step:
        checkpoint.remove(stable)
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
    kept = []
    with run_folder.refuse_damaged(path):
        names, rows = run_folder.read_rows(path)
        for row in rows:
            with contextlib.suppress(ValueError):  # not a number
                if float(row["step"]) <= step:
                    kept.append(row)
        write_metrics(path, names, kept)


def copy_metrics(earlier: Path, run: Path, step: int, text: str = "") -> None:
    """Begin the log of a run with the rows of an earlier one up to `step`, unless the earlier log is damaged.

    `text` is the name that the only text of the earlier run has from now on.
    """
    try:
        names, rows = run_folder.read_rows(earlier / run_folder.METRICS)
        name = f"val_bpb/{text}"
        named = ({**row, name: row.get("val_bpb", "")} if text else row for row in rows)
        write_metrics(run / run_folder.METRICS, [*names, name] if text else names, named)
        truncate_metrics(run, step)
    except (OSError, ValueError, DataError) as error:
        (run / run_folder.METRICS).unlink(missing_ok=True)
        logger.warning(f"the curves begin with this stage, because the log of the run before cannot be read: {error}")


def write_metrics(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace metrics.csv, with the line endings of Lightning's logger."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())


def space_problem(run: Path, size: int) -> str:
    """Return a message if the disk has no space for a checkpoint of `size` bytes, else an empty string."""
    if not run.is_dir():
        raise MachineError(f"{run}: deleted or moved while the run trained in it, so nothing can be saved. Start again")
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
    if ckpt_path != "best" and path.is_dir():
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


def find_stage_start(name: str, logs: Path) -> Path:
    """Return the checkpoint from which another stage begins: a file, or of a run the one before its rate fell."""
    path = Path(paths.resolve(name, logs))
    if not path.is_dir():
        file = paths.find(path)
        checkpoint.check_resumable(file)
        return file
    stable = path / "checkpoints" / paths.STABLE
    with contextlib.suppress(CheckpointError):
        if stable.exists():
            checkpoint.check_resumable(stable)
            return stable
    newest = checkpoint.newest_valid(path)
    if newest is None:
        raise CheckpointError(f"--resume_with_new_text {name}: no valid checkpoint in {path}. Name another run")
    logger.warning(
        f"{path}: has no valid {paths.STABLE}, so the stage begins from {newest.name}, whose learning rate had fallen. "
        "The text of the run may be forgotten sooner"
    )
    return newest


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
    config = _read_config(run)
    if "save_every" not in config:  # it follows the sections, so the file is damaged
        with contextlib.suppress(CheckpointError):
            config = next((checkpoint_settings(file) for file in paths.checkpoints(run)), {})
    if not config:
        return ["it has no valid config.yaml"]
    now = _data_and_model(settings)
    before = rename(_data_and_model(config), now)
    names = (name for name in sorted({*before, *now}) if ".".join(name.split(".")[:2]) not in _CHANGEABLE)
    prefixes = tuple(f"{name}." for name in ignored)  # of the options of a class
    changes = [name for name in names if before.get(name) != now.get(name) and not f"{name}.".startswith(prefixes)]
    return [f"{name} {before.get(name)!s:.100}, now {now.get(name)!s:.100}" for name in changes]


def _read_config(run: Path) -> dict[str, Any]:
    """Return the content of a run's config.yaml; empty if it is missing or damaged."""
    try:
        config = yaml_reader.parse(files.read_limited(run / run_folder.CONFIG, _LARGEST_CONFIG).decode())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _data_and_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    return flatten({part: settings.get(part) or {} for part in ("data", "model")})
