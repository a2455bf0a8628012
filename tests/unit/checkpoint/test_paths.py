"""`last`, `best` and the names of runs stand for runs and checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gpt2kit.checkpoint import paths
from gpt2kit.errors import CheckpointError
from gpt2kit.runs import lifecycle


def make_run(name: str, start: str | None, changed: int, losses: tuple[float, ...] = ()) -> Path:
    """Make the folder of a run with a checkpoint for each validation loss."""
    run = paths.LOGS / Path(name)
    (run / "checkpoints").mkdir(parents=True)
    for step, loss in enumerate(losses, 1):
        (run / "checkpoints" / paths.file_name(0, step, loss)).touch()
    if start:
        (run / paths.START).write_text(
            json.dumps([{"start": {"time": "2026-01-01T00:00:00Z"}}, {"start": {"time": start}}])
        )
    os.utime(run, (changed, changed))
    return run


def test_last_is_the_run_that_was_started_or_resumed_last(inside: Path) -> None:
    resumed = make_run("version_0", "2026-03-03T12:00:00+02:00", 5, (2.0, 1.0, 1.5))
    make_run("version_1", "2026-03-03T11:00:00+02:00", 9, (3.0,))
    old = make_run("named", None, 7, (4.0,))
    assert [run.name for run in paths.runs()] == ["version_0", "version_1", "named"]
    assert paths.resolve("last") == paths.resolve("best") == resumed
    assert paths.step_of(paths.find("last")) == paths.step_of(paths.find("best")) == 2
    os.utime(old, (2_000_000_000, 2_000_000_000))
    (old / paths.START).write_text("[")  # damaged: the folder's time counts
    assert paths.resolve("last") == old


def test_a_newest_run_without_a_checkpoint_is_never_replaced_by_an_older_model(inside: Path) -> None:
    make_run("version_0", "2026-03-03T12:00:00Z", 5, (2.0,))
    make_run("version_1", "2026-03-04T12:00:00Z", 5)
    with pytest.raises(CheckpointError, match="last: the newest run, lightning_logs/version_1, has no checkpoint"):
        paths.find("last")
    for name in ("last", "best"):
        with pytest.raises(CheckpointError, match="lightning_logs/version_1"):
            lifecycle.find_resumable(name, Path(paths.LOGS), None)


def test_a_path_wins_over_the_name_of_a_run_but_not_over_last(inside: Path) -> None:
    run = make_run("poems", None, 5, (2.0,))
    assert paths.find("poems").parent.parent == paths.find("./lightning_logs/poems").parent.parent == run
    for name in ("poems", "last"):
        Path(name).mkdir()
    assert paths.resolve("poems") == "poems" and paths.resolve("last") == run
    assert paths.resolve("./last") == "./last" and paths.resolve(Path("last")) == Path("last")


def test_names_without_a_run_are_refused_in_one_line(inside: Path) -> None:
    with pytest.raises(CheckpointError, match="last: lightning_logs contains no run"):
        paths.find("last")
    (inside / "lightning_logs/notes").mkdir(parents=True)  # a folder of the user
    with pytest.raises(CheckpointError, match="contains no run"):
        paths.find("best")
    with pytest.raises(CheckpointError, match="version_7: no such checkpoint or run folder"):
        paths.find("version_7")
