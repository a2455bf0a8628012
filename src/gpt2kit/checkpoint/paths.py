"""Find runs and checkpoints by their paths and names, among them `last` and `best`. Opens no checkpoint. No torch."""

from __future__ import annotations

import math
import re
from datetime import datetime
from pathlib import Path

from gpt2kit import files
from gpt2kit.commands import command_name
from gpt2kit.errors import CheckpointError

LOGS = "lightning_logs"
START = "start.json"
# The newest checkpoint of a run before its learning rate falls, from which another stage begins.
STABLE = "stable.ckpt"
# Names of the newest run. Where a checkpoint is needed, both mean its best one; to resume, `last` means its newest one.
NEWEST = ("last", "best")
_NAME = re.compile(r"epoch=(\d+)-step=(\d+)(?:-val_loss=(\d+(?:\.\d+)?))?\.ckpt")
# A run's folder has at least one of these.
_FILES = (".lock", "checkpoints", "config.yaml", "metrics.csv", START)


def file_name(epoch: int, step: int, val_loss: float | None) -> str:
    """Return a file name that identifies the best and the newest checkpoint without opening any."""
    score = "" if val_loss is None or not math.isfinite(val_loss) else f"-val_loss={val_loss:.6f}"
    return f"epoch={epoch}-step={step}{score}.ckpt"


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run folder, newest first, by the step in their names."""
    paths = [path for path in (run / "checkpoints").glob("*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the optimizer step in a checkpoint's name; -1 for other names."""
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else -1


def best_of(paths: list[Path], k: int = 1) -> list[Path]:
    """Return the k checkpoints with the lowest validation loss in their names, best first; else the first path."""
    scored = [(float(match[3]), -step_of(p), p) for p in paths if (match := _NAME.fullmatch(p.name)) and match[3]]
    return [path for _, _, path in sorted(scored)[:k]] or paths[:1]


def runs(logs: Path = Path(LOGS)) -> list[Path]:
    """Return the run folders in a folder, the one that was started or resumed last first."""
    folders = [folder for folder in logs.glob("*") if any((folder / name).exists() for name in _FILES)]
    return sorted(folders, key=lambda run: (start_time(run), run.stat().st_mtime), reverse=True)  # times are in seconds


def start_time(run: Path) -> float:
    """Return the time of a run's last start, else of the last change to its folder."""
    try:
        started = files.parse_json(files.read_limited(run / START))[-1]["start"]["time"]
        return datetime.fromisoformat(started).timestamp()
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError):  # missing or damaged
        return run.stat().st_mtime


def resolve(path: str | Path, logs: Path = Path(LOGS)) -> str | Path:
    """Return the run folder that a name means; return a path unchanged.

    `last` and `best` are names, ./last is a path. Any other run in `logs` may be named where no such path exists.
    """
    if path in NEWEST:
        for run in runs(logs):
            return run
        raise CheckpointError(
            f"{path}: {logs} contains no run (current folder: {Path.cwd()}). Train one with {command_name('train')} "
            "TEXT, or name a path"
        )
    if isinstance(path, str) and path == Path(path).name and not Path(path).exists() and (logs / path).is_dir():
        return logs / path
    return path


def find(path: str | Path) -> Path:
    """Return the checkpoint file at a path, or the best checkpoint of the run folder there; a run may be named."""
    name, path = path, Path(resolve(path))
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint or run folder (current folder: {Path.cwd()}). Check the path"
        )
    best = best_of(checkpoints(path))
    if not best and name in NEWEST:
        raise CheckpointError(f"{name}: the newest run, {path}, has no checkpoint. Name another run")
    if not best:
        raise CheckpointError(
            f"{path}: contains no checkpoint. Name a run, such as `last`, or a Hugging Face folder, which has a "
            "config.json"
        )
    return best[0]
