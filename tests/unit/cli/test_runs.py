"""`gpt2kit runs` lists runs, `gpt2kit env` versions and devices."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import Run, write_metrics

from gpt2kit import __version__
from gpt2kit.checkpoint import paths
from gpt2kit.cli import env, runs

if sys.platform != "win32":
    import fcntl


def rows(capsys: pytest.CaptureFixture[str], logs: Path) -> dict[str, str]:
    """Return the rows of the table by the names of the runs."""
    capsys.readouterr()
    runs.runs(logs)
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


@contextlib.contextmanager
def as_another_user(folder: Path) -> Iterator[None]:
    """Give the folder to an ordinary user, and act as that user: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_each_run_is_listed_with_its_state_and_best_figure(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.folder, tmp_path / "finished")
    for name, state in {"failed": "failed", "stopped": "stopped", "killed": "running", "training": "running"}.items():
        write_metrics(tmp_path / name, 30)
        (tmp_path / name / "status.json").write_text(json.dumps({"state": state, "step": 25}))
    (tmp_path / "killed/.lock").touch()
    (tmp_path / "old/checkpoints").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    with FileLock(tmp_path / "training/.lock"):
        table = rows(capsys, tmp_path)
    assert table.keys() == {"run", "finished", "failed", "stopped", "killed", "training", "old"}
    states = {name: line.split()[1] for name, line in table.items()}
    assert states == {
        "run": "state",
        "finished": "finished",
        "failed": "failed",
        "training": "training",
    } | dict.fromkeys(("stopped", "killed", "old"), "interrupted")
    assert " 40 " in table["finished"] and " MB " in table["finished"] and table["finished"].endswith(" ago")
    assert " 25 " in table["killed"] and "0.6734" in table["killed"]
    (tmp_path / "killed/metrics.csv").write_text("x")
    assert "0.6734" not in rows(capsys, tmp_path)["killed"], "a damaged file leaves its cell empty"


@pytest.mark.skipif(sys.platform == "win32", reason="folders there have no such permissions")
def test_a_killed_run_in_a_read_only_folder_is_not_training(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as logs, as_another_user(Path(logs)):
        run = Path(logs) / "run_1"
        write_metrics(run, 30)
        (run / "status.json").write_text(json.dumps({"state": "running", "step": 25}))
        (run / ".lock").touch(0o444)
        run.chmod(0o555)
        assert rows(capsys, Path(logs))["run_1"].split()[1] == "interrupted"
        with (run / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert rows(capsys, Path(logs))["run_1"].split()[1] == "training"
        (run / ".lock").chmod(0)
        assert rows(capsys, Path(logs))["run_1"].split()[1] == "unknown"
        run.chmod(0o755)


@pytest.mark.parametrize("status", ["[", '["done"]', '{"state": ["done"], "step": {"a": 1}}', '{"step": null}', "{}"])
def test_a_run_with_a_damaged_status_is_listed(status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run_1/checkpoints").mkdir(parents=True)
    (tmp_path / "run_1/checkpoints/epoch=0-step=7-val_loss=1.2.3.ckpt").touch()  # not the name of a checkpoint
    (tmp_path / "run_1/checkpoints/epoch=0-step=5-val_loss=1.2.ckpt").touch()
    (tmp_path / "run_1/status.json").write_text(status)
    (tmp_path / "run_1/start.json").write_text("[" * 100_000)
    assert rows(capsys, tmp_path)["run_1"].split()[:3] == ["run_1", "interrupted", "5"]


def test_folders_that_are_nested_deeply_do_not_stop_the_list(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = inside / "logs/run_1/checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for _ in range(1100):
        os.mkdir("a")
        os.chdir("a")
    assert " interrupted " in rows(capsys, inside / "logs")["run_1"]
    for _ in range(1100):  # pytest's own removal recurses
        os.chdir("..")
        os.rmdir("a")


def test_a_folder_without_runs_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.runs(tmp_path / paths.LOGS)
    assert "no runs" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0 s"), (59, "59 s"), (7300, "2 h"), (200000, "2 d")])
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    assert runs.format_age(seconds) == text


def test_env_prints_versions_and_devices_but_no_names(capsys: pytest.CaptureFixture[str]) -> None:
    env.env()
    out = capsys.readouterr().out
    for text in (__version__, platform.python_version(), "torch", "threads", "CUDA", "precision"):
        assert text in out
    assert platform.node() not in out and str(Path.home()) not in out
