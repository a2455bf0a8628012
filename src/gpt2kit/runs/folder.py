"""Read a run's folder without torch: metrics, starts, status.

The files may be damaged, so code that uses their content runs under `refuse_damaged`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from gpt2kit import files
from gpt2kit.checkpoint import paths
from gpt2kit.checkpoint.paths import START as START
from gpt2kit.errors import DataError, UserError, first_line

METRICS, CONFIG = "metrics.csv", "config.yaml"
STATUS, SAMPLES, TEST = "status.json", "samples.md", "test.json"
# The heading of a section of samples.md.
SECTION = re.compile(r"^## step (\d+)", re.MULTILINE)

# A metric over the run: its value at each optimizer step, ascending.
Series = dict[int, float]
Content = TypeVar("Content", list[Any], dict[str, Any])

# Maximum size of metrics.csv in bytes: that of about a million log steps, which are read in less than a minute.
_MAX_METRICS = 1 << 26
# matplotlib cannot place ticks between numbers near the largest float.
_TOO_LARGE = 1e100


@dataclass
class Run:
    """The metrics and the starts of a run."""

    folder: Path
    series: dict[str, Series]  # the columns of metrics.csv
    starts: list[dict[str, Any]]  # facts about the first start and each resume, from start.json

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def metric(self, name: str) -> Series:
        """Return a metric without NaN, Inf and numbers too large to draw; empty if it was not logged."""
        series = self.series.get(name, {})
        return {step: value for step, value in series.items() if abs(step) < _TOO_LARGE and abs(value) < _TOO_LARGE}

    def facts(self, part: str, start: int = -1) -> dict[str, Any]:
        """Return a part of what start.json contains about a start, by default the newest one."""
        with refuse_damaged(self.folder / START):
            return dict(self.starts[start].get(part) or {}) if self.starts else {}


def read_run(folder: str | Path) -> Run:
    """Read the run in a folder; `last` is the newest run."""
    path = Path(paths.resolve(folder))
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder (current folder: {Path.cwd()}). Check the path")
    return Run(path, read_metrics(path), read_starts(path))


def read_metrics(folder: Path) -> dict[str, Series]:
    """Read the columns of metrics.csv, except `step`.

    If a step was logged twice, before and after a resume, the last entry counts. So a resumed run is one line.
    """
    path = folder / METRICS
    if not path.exists():
        raise UserError(f"{path}: not found, so there is nothing to draw. Name a run folder that has it")
    with refuse_damaged(path):
        names, rows = read_rows(path)
        series: dict[str, Series] = {name: {} for name in names}
        if "step" not in series:
            raise DataError(f"{path}: no column `step`, so it is not the log of a run. Name a run folder")
        for row in rows:
            with contextlib.suppress(ValueError, OverflowError):
                step = int(float(row.pop("step")))
                for name, cell in row.items():
                    if cell:
                        series[name][step] = float(cell)
    return {name: dict(sorted(values.items())) for name, values in series.items() if name and values}


def last_value(folder: Path | None, metric: str, step: object) -> float | None:
    """Return the last value of a metric up to a step; None without one, or if the log cannot be read."""
    try:
        series = read_metrics(folder).get(metric, {}) if folder else {}
    except (OSError, UserError):
        return None
    values = [value for logged, value in series.items() if isinstance(step, int) and logged <= step]
    return values[-1] if values else None


def read_rows(path: Path) -> tuple[Sequence[str], Iterator[dict[str, str]]]:
    """Return the columns of metrics.csv, and its rows without those that a kill has left incomplete."""
    text = io.TextIOWrapper(io.BytesIO(files.read_limited(path, _MAX_METRICS)), encoding="utf-8", newline="")
    rows = csv.DictReader(text)
    return rows.fieldnames or (), (row for row in rows if None not in row and None not in row.values())


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Read the facts about each start; empty for a run without start.json."""
    starts: list[dict[str, Any]] = read_json(folder / START, list)
    with refuse_damaged(folder / START):  # here rather than in the middle of a resume or a report
        for start in starts:
            dict(start.get("loggers", {}))
            [(value, reason) for value, reason in start.get("start", {}).get("chosen", {}).values()]
    return starts


def read_status(folder: Path) -> dict[str, Any]:
    """Read the run's last status; empty for a run without status.json."""
    return read_json(folder / STATUS, dict)


def is_locked(run: Path) -> bool:
    """Return whether a process trains in the folder. Unlike taking the lock, this needs no permission to write."""
    path = run / ".lock"
    files.refuse_special(path, allow_link=False)
    if not path.exists():
        return False
    if sys.platform == "win32":
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_json(path: Path, kind: type[Content]) -> Content:
    """Read a list or dict from a JSON file; return an empty one if there is no file."""
    if not path.exists():
        return kind()
    with refuse_damaged(path):
        content = files.parse_json(files.read_limited(path))
        if not isinstance(content, kind):
            raise TypeError(f"{type(content).__name__} instead of {kind.__name__}")
        return content


def read_tests(run: Path) -> dict[str, dict[str, Any]]:
    """Return what test.py has written to a run's folder, for each text; the name of the only one is empty."""
    content = read_json(run / TEST, dict)
    texts = content.get("texts")
    if isinstance(texts, dict):
        return {str(name): text for name, text in texts.items() if isinstance(text, dict)}
    return {"": content} if content else {}


@contextlib.contextmanager
def refuse_damaged(path: Path) -> Iterator[None]:
    """Raise a DataError that names the file if its content cannot be used."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, csv.Error) as error:
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise DataError(
            f"{path}: damaged, or written by another version of gpt2kit ({reason}). Move the file away"
        ) from error


def read_text(path: Path) -> str:
    """Read a text file; empty if it is missing, too large or not a regular file."""
    try:
        return files.read_limited(path).decode(errors="replace")
    except (OSError, ValueError):
        return ""
