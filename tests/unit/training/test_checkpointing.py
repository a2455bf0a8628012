"""Signals, the run's folder and the queue, without training; tests/system/test_resume.py has whole runs."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Outcome, Run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import train
from gpt2kit.errors import MachineError
from gpt2kit.runs import folder, lifecycle
from gpt2kit.training import verify_resume
from gpt2kit.training.checkpointing import ExactResume, requeue


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return shutil.copytree(run.folder, tmp_path / "version_0")


def test_the_status_names_the_end_and_the_last_checkpoint(run: Run) -> None:
    status = json.loads((run.folder / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 40)
    assert (run.folder / status["last_checkpoint"]).is_file()


def test_a_second_process_is_refused_and_changes_nothing(run: Run, call: Callable[..., Outcome]) -> None:
    lock = lifecycle.claim(run.folder)
    try:
        code, _, err = call(train.main, *run.options, "--ckpt_path", run.folder)
        assert code == 5 and "is training in this folder" in err
        assert folder.read_status(run.folder)["state"] == "done"
    finally:
        lock.release()


def test_a_refused_claim_names_the_process_that_has_the_lock(tmp_path: Path) -> None:
    lock = lifecycle.claim(tmp_path)
    lifecycle.write_status(tmp_path, "running", 3)
    with pytest.raises(MachineError, match=r"process \d+ on \S+ is training"):
        lifecycle.claim(tmp_path)
    lock.release()
    lifecycle.claim(tmp_path).release()


def test_leftovers_of_a_killed_save_are_removed(copied: Path) -> None:
    saved = sorted((copied / "checkpoints").iterdir())
    for name in (".epoch=0-step=9.ckpt.77.tmp", "epoch=0-step=9.ckpt.sha256"):
        (copied / "checkpoints" / name).write_text("x")
    lifecycle.remove_leftovers(copied)
    assert sorted((copied / "checkpoints").iterdir()) == saved


def test_a_dangling_link_is_skipped(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "checkpoints/epoch=0-step=99.ckpt").symlink_to("nowhere.ckpt")
    newest = checkpoint.newest_valid(copied)
    assert newest is not None and paths.step_of(newest) == 40
    assert "skipped: " in capsys.readouterr().err


def test_a_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr("os._exit", exits.append)
    saver = ExactResume(1, 1, None, None, False, {})
    saver.handle_signal(signal.SIGINT, None)
    assert not exits
    saver.handle_signal(signal.SIGINT, None)
    assert exits == [130]


def test_a_slurm_job_is_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    requeue()
    assert not (tmp_path / "arguments").exists()  # not under SLURM
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue()
    assert (tmp_path / "arguments").read_text() == "requeue 17\n"


def test_verify_resume_names_the_tensors_that_differ(run: Run) -> None:
    one, other = (checkpoint.read(paths.find(run.folder)) for _ in range(2))
    name = "model.transformer.h.1.ln_1.weight"
    other["state_dict"] = {**one["state_dict"], name: one["state_dict"][name] + 1}
    assert {group for group, value in verify_resume.compare(one, other).items() if value} == {"weights h.1"}
