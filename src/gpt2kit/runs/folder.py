"""A run's folder as it is read after the run, by the standard library alone: figures, starts, settings, samples."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2kit.errors import UserError

METRICS, CONFIG, START = "metrics.csv", "config.yaml", "start.json"
STATUS, SAMPLES, TEST = "status.json", "samples.md", "test.json"
SECTION = re.compile(r"^## step (\d+)", re.MULTILINE)
"""The head of a section of samples.md."""


@dataclass
class Series:
    """A figure over the run: optimizer steps, ascending, and its value at each."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass
class Run:
    """What a run has left.

    Args:
        folder: that it lies in.
        series: each column of metrics.csv, by name.
        starts: facts of the first start and of each resume.
    """

    folder: Path
    series: dict[str, Series]
    starts: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name


def read(folder: str | Path) -> Run:
    """The run in a folder."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder (looked from {Path.cwd()}). Check the path")
    return Run(path, metrics(path), starts(path))


def metrics(folder: Path) -> dict[str, Series]:
    """Each column of metrics.csv but `step`. A step that was logged twice, before and after a resume, counts as it was
    logged last; so a resumed run is one line."""
    path = folder / METRICS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            names = next(rows, [])
            if "step" not in names:
                raise UserError(f"{path}: no column `step`, so not a log of trainer.py. Name a run folder")
            place = names.index("step")
            columns: list[dict[int, float]] = [{} for _ in names]
            for row in rows:
                if len(row) != len(names):  # the last row of a run that was killed while writing it
                    continue
                try:
                    step = int(float(row[place]))
                    for column, cell in zip(columns, row, strict=True):
                        if cell:
                            column[step] = float(cell)
                except (ValueError, OverflowError):
                    continue
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so there is nothing to draw. Name a run folder that has it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file, so not a log of trainer.py. Name a run folder") from None
    return {
        name: Series(steps, [found[step] for step in steps])
        for name, found in zip(names, columns, strict=True)
        if name != "step" and found and (steps := sorted(found))
    }


def starts(folder: Path) -> list[dict[str, Any]]:
    """The facts of each start; none of a run that was made before they were kept."""
    found = read_json(folder / START)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def status(folder: Path) -> dict[str, Any]:
    """How the run stood last; empty if it never said."""
    found = read_json(folder / STATUS)
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> Any:
    """A JSON file, or None if it is not there, or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_text(path: Path) -> str:
    """A text file, or nothing if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def finite(series: Series) -> Series:
    """Without what is no number."""
    kept = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if math.isfinite(value)]
    return Series([step for step, _ in kept], [value for _, value in kept])
