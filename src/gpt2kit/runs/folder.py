"""Read a run's folder with the standard library alone: metrics, starts, status."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gpt2kit.errors import UserError

METRICS, CONFIG, START = "metrics.csv", "config.yaml", "start.json"
STATUS, SAMPLES, TEST = "status.json", "samples.md", "test.json"
# The heading of a section of samples.md.
SECTION = re.compile(r"^## step (\d+)", re.MULTILINE)

# A metric over the run: its value at each optimizer step, ascending.
Series = dict[int, float]
Content = TypeVar("Content", list[Any], dict[str, Any])


@dataclass
class Run:
    """What a run's folder holds."""

    folder: Path
    series: dict[str, Series]  # the columns of metrics.csv
    starts: list[dict[str, Any]]  # of start.json: facts of the first start and of each resume

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def metric(self, name: str) -> Series:
        """Return a metric without NaN and Inf; empty if it was not logged."""
        return {step: value for step, value in self.series.get(name, {}).items() if math.isfinite(value)}

    def facts(self, part: str) -> dict[str, Any]:
        """Return a part of what start.json says of the newest start."""
        return (self.starts[-1].get(part) or {}) if self.starts else {}


def read_run(folder: str | Path) -> Run:
    """Read the run in a folder."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder (looked from {Path.cwd()}). Check the path")
    return Run(path, read_metrics(path), read_starts(path))


def read_metrics(folder: Path) -> dict[str, Series]:
    """Read the columns of metrics.csv but `step`.

    Of a step that was logged twice, before and after a resume, the last entry counts, so a resumed run is one line.
    """
    path = folder / METRICS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            series: dict[str, Series] = {name: {} for name in rows.fieldnames or ()}
            if "step" not in series:
                raise UserError(f"{path}: no column `step`, so not a log of trainer.py. Name a run folder")
            for row in rows:
                if None in row or None in row.values():  # the last row of a run that was killed while writing it
                    continue
                with contextlib.suppress(ValueError, OverflowError):
                    step = int(float(row.pop("step")))
                    for name, cell in row.items():
                        if cell:
                            series[name][step] = float(cell)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so there is nothing to draw. Name a run folder that has it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file, so not a log of trainer.py. Name a run folder") from None
    return {name: dict(sorted(values.items())) for name, values in series.items() if values}


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Read the facts of each start; empty for a run without start.json."""
    return read_json(folder / START, list)


def read_status(folder: Path) -> dict[str, Any]:
    """Read the run's last status; empty if there is none."""
    return read_json(folder / STATUS, dict)


def read_json(path: Path, kind: type[Content]) -> Content:
    """Read a list or dict from a JSON file; an empty one if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return content if isinstance(content, kind) else kind()


def read_text(path: Path) -> str:
    """Read a text file; empty if it is missing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
