"""`gpt2kit runs` lists runs, `gpt2kit env` versions and devices."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import Run, write_metrics

from gpt2kit import __version__
from gpt2kit.checkpoint import paths
from gpt2kit.cli import env, runs


def rows(capsys: pytest.CaptureFixture[str], logs: Path) -> dict[str, str]:
    """Return the rows of the table by the names of the runs."""
    capsys.readouterr()
    runs.runs(logs)
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


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
