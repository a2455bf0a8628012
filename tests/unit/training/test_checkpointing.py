"""What surrounds an exact resume: what is said, refused, skipped, cleaned and locked."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, Run, final_weights, logged_rows, train_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import train as cli
from gpt2kit.errors import MachineError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs import lifecycle
from gpt2kit.training import verify_resume
from gpt2kit.training.checkpointing import ExactResume, requeue
from gpt2kit.training.progress import ThroughputMetrics

SHORT = ("--trainer.max_steps=4", "--save_every=1", "--trainer.log_every_n_steps=1")


def poison(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """Make the loss NaN in these training steps."""
    real, count = GPT2.nll, [0]

    def step(self: GPT2, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nll, tokens = real(self, batch)
        count[0] += self.training
        return (nll * torch.nan if self.training and count[0] in calls else nll), tokens

    monkeypatch.setattr(GPT2, "nll", step)


def test_nan_stops_before_the_update(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 3)
    code, _, err = call(cli.main, *options, *SHORT, f"--trainer.default_root_dir={tmp_path}")
    run = tmp_path / "lightning_logs/version_0"
    newest = checkpoint.checkpoints(run)[0]
    assert code == 6 and "step 3: the gradient norm is nan" in err and str(newest) in err
    assert checkpoint.step_of(newest) == 2
    assert all(torch.isfinite(tensor).all() for tensor in final_weights(run).values())
    assert run_folder.read_status(run)["state"] == "failed"


def test_some_such_updates_may_be_left_out(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2, 4)
    words = [*options, *SHORT, "--model.max_nonfinite_steps=1", f"--trainer.default_root_dir={tmp_path}"]
    code, _, err = call(cli.main, *words)
    assert code == 6 and "update skipped (1 of at most 1)" in err and "step 4" in err
    saved = checkpoint.checkpoints(tmp_path / "lightning_logs/version_0")
    two = checkpoint.read(saved[-1])  # of step 2, which changed nothing
    assert two["gpt2kit"]["step"] == 2 and two["gpt2kit"]["skipped"] == 1
    monkeypatch.undo()
    poison(monkeypatch, 1)  # the budget is part of the run's state: none is left after a resume
    assert call(cli.main, *words, "--ckpt_path=last")[0] == 6


def test_a_loss_that_jumps_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ThroughputMetrics()
    for step in range(20):
        metrics._warn_of_jump(step, 3.0 + 0.01 * (step % 3))
    assert not capsys.readouterr().err
    metrics._warn_of_jump(20, 5.0)
    assert "step 20: the loss jumped to 5.000" in capsys.readouterr().err


def test_the_status_is_said_at_the_end(run: Run) -> None:
    status = json.loads((run.folder / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 40)
    assert (run.folder / status["last_checkpoint"]).is_file()


def test_two_runs_cannot_share_a_folder(run: Run, call: Callable[..., Outcome]) -> None:
    lock = lifecycle.claim(run.folder)
    try:
        code, _, err = call(cli.main, *run.options, "--ckpt_path", run.folder)
        assert code == 5 and "is training in this folder" in err
        assert run_folder.read_status(run.folder)["state"] == "done", "the refused one must not touch it"
    finally:
        lock.release()


def test_what_a_killed_save_left_is_removed(options: list[str], tmp_path: Path) -> None:
    run = train_run(tmp_path, options, *SHORT)
    folder = run / "checkpoints"
    orphans = [folder / ".epoch=0-step=9.ckpt.77.tmp", folder / "epoch=0-step=9.ckpt.sha256"]
    for orphan in orphans:
        orphan.write_text("x")
    train_run(tmp_path, options, "--ckpt_path=last", "--trainer.max_steps=5")
    assert not any(orphan.exists() for orphan in orphans)
    assert checkpoint.step_of(checkpoint.checkpoints(run)[0]) == 5


def test_the_log_has_no_gap_and_no_double(options: list[str], tmp_path: Path) -> None:
    run = train_run(tmp_path, options, *SHORT)
    for path in checkpoint.checkpoints(run)[:1]:
        checkpoint.remove(path)  # as if killed after the log's last rows were written
    with (run / "metrics.csv").open("a") as log:
        log.write("7,torn")
    time.sleep(1.1)  # TensorBoard sorts event files by the second in their names
    train_run(tmp_path, options, "--ckpt_path=last", "--trainer.max_steps=6")
    assert [row["step"] for row in logged_rows(run) if "train_loss" in row] == [1, 2, 3, 4, 5, 6]
    events = EventAccumulator(str(run)).Reload()  # as TensorBoard reads them
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_costs_no_old_checkpoint_and_stops_after_three_misses(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1 << 40, 1 << 40, 0, 1 << 40, 0, 0, 0])
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(lifecycle.shutil, "disk_usage", lambda path: usage(next(free)))
    words = [*options, "--trainer.max_steps=20", "--save_every=1", f"--trainer.default_root_dir={tmp_path}"]
    code, _, err = call(cli.main, *words)
    assert code == 5 and err.count("warning: NOT SAVED") == 3 and "3 saves have failed" in err
    saved = checkpoint.checkpoints(tmp_path / "lightning_logs/version_0")
    assert [checkpoint.step_of(path) for path in saved] == [4, 2]  # step 3 was missed, 5 to 7 ended it


def test_a_save_that_fails_midway_is_a_miss(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = torch.save, [0]

    def full(value: Any, path: Path) -> None:
        count[0] += 1
        if count[0] == 2:
            Path(path).write_text("half")
            raise RuntimeError("PytorchStreamWriter failed writing file: no space left")
        real(value, path)

    monkeypatch.setattr(torch, "save", full)
    code, _, err = call(cli.main, *options, *SHORT, f"--trainer.default_root_dir={tmp_path}")
    saved = checkpoint.checkpoints(tmp_path / "lightning_logs/version_0")
    assert code == 0 and "NOT SAVED" in err and [checkpoint.step_of(path) for path in saved] == [4, 3]
    assert not list(saved[0].parent.glob(".*"))


def test_last_is_the_newest_run_with_the_same_settings(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    first = train_run(tmp_path, options, *SHORT)
    other = train_run(tmp_path, [*options, "--model.n_layer=1"], *SHORT)
    assert (first.name, other.name) == ("version_0", "version_1")
    root = f"--trainer.default_root_dir={tmp_path}"
    code, _, err = call(cli.main, *options, root, "--trainer.max_steps=5", "--ckpt_path=last")
    assert code == 0 and "version_0" in err and checkpoint.step_of(checkpoint.checkpoints(first)[0]) == 5
    code, _, err = call(cli.main, *options, root, "--model.n_embd=48", "--ckpt_path=last")
    assert code == 4 and "model.n_embd 32, now 48" in err
    shutil.rmtree(first)
    code, _, err = call(cli.main, root, "--trainer.max_steps=5", "--ckpt_path=last")  # no config: the newest run's own
    assert code == 0 and checkpoint.step_of(checkpoint.checkpoints(other)[0]) == 5


def test_a_damaged_newest_checkpoint_is_saved_anew(options: list[str], tmp_path: Path) -> None:
    run = train_run(tmp_path, options, *SHORT)
    newest = checkpoint.checkpoints(run)[0]
    content = newest.read_bytes()
    newest.write_bytes(content[:-200])
    (run / "checkpoints/epoch=0-step=99.ckpt").symlink_to("nowhere.ckpt")
    train_run(tmp_path, options, *SHORT, "--ckpt_path=last")
    assert newest.read_bytes() != content[:-200] and checkpoint.newest_valid(run) == newest
    assert newest.with_name(newest.name + ".aside").read_bytes() == content[:-200]


def test_a_dangling_link_is_passed_over(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_run(tmp_path, options, *SHORT)
    (run / "checkpoints/epoch=0-step=99.ckpt").symlink_to("nowhere.ckpt")
    found = checkpoint.newest_valid(run)
    assert found is not None and checkpoint.step_of(found) == 4
    assert "skipped: " in capsys.readouterr().err


def test_changed_settings_are_said_and_the_optimizers_stay(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    constant = "--model.schedule=Constant"
    run = train_run(tmp_path, options, *SHORT, constant)
    words = [*options, f"--trainer.default_root_dir={tmp_path}", "--model.optimizer.lr=0.5", "--ckpt_path=last"]
    code, _, err = call(cli.main, *words, "--trainer.max_steps=6")
    assert code == 0
    assert "model.optimizer.init_args.lr stays 0.005 (not 0.5; --override_optimizer changes it)" in err
    assert "trainer.max_steps was 4, now 6" in err
    assert logged_rows(run)[-2]["lr"] == pytest.approx(0.005)
    code, _, err = call(cli.main, *words, "--trainer.max_steps=8", "--override_optimizer")
    assert code == 0 and "model.optimizer.init_args.lr was 0.005, now 0.5" in err
    assert [row["lr"] for row in logged_rows(run) if "lr" in row][-1] == pytest.approx(0.5)
    state = checkpoint.read(checkpoint.checkpoints(run)[0])["optimizer_states"][0]["param_groups"]
    assert state[0]["initial_lr"] == 0.5


def test_a_second_ctrl_c_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("gpt2kit.training.checkpointing.os._exit", left.append)
    saver = ExactResume(1)
    saver._on_signal(signal.SIGINT, None)
    assert not left
    saver._on_signal(signal.SIGINT, None)
    assert left == [130]


def test_slurm_is_asked_to_queue_the_job_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    requeue()
    assert not (tmp_path / "said").exists()  # not under SLURM
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue()
    assert (tmp_path / "said").read_text() == "requeue 17\n"


def test_verify_resume_on_a_users_own_settings(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers import ROOT

    monkeypatch.setattr(verify_resume.sys, "argv", [str(ROOT / "trainer.py")])
    cli.main([*options, "--trainer.accumulate_grad_batches=2", "--verify_resume"])
    told = capsys.readouterr().out
    assert "weights h.0" in told and "optimizer momentum_buffer" in told and "exact:" in told


def test_verify_resume_says_what_differs(run: Run) -> None:
    one = checkpoint.read(checkpoint.find(run.folder))
    other = checkpoint.read(checkpoint.find(run.folder))
    other["state_dict"] = {**other["state_dict"]}
    other["state_dict"]["model.transformer.h.1.ln_1.weight"] = (
        one["state_dict"]["model.transformer.h.1.ln_1.weight"] + 1
    )
    assert {group for group, value in verify_resume.compare(one, other).items() if value} == {"weights h.1"}


def test_the_private_parts_of_lightning_that_are_used_are_there() -> None:
    """ExactResume relies on these. If this fails on a new Lightning: read its training_epoch_loop.py and fit_loop.py,
    fix lightning_patches.py, run `make prove`, then widen the range in pyproject.toml."""
    import pytorch_lightning as pl
    from pytorch_lightning.loops import fit_loop, training_epoch_loop

    assert pl.__version__.startswith("2.6."), "a new Lightning: see this test's docstring"
    loop = inspect.getsource(training_epoch_loop._TrainingEpochLoop)
    assert "self._batches_that_stepped" in loop and "def max_steps" not in loop
    assert "self.trainer.val_check_batch == 0" in loop
    assert loop.count("self._broadcast_sigterm_tensor()") == 1
    assert "self.trainer._logger_connector._first_loop_iter = first_loop_iter" in loop
    assert "trainer.val_check_batch = trainer.val_check_interval" in inspect.getsource(fit_loop._FitLoop)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, max_epochs=-1)
    state = trainer.fit_loop.state_dict()
    assert set(state["epoch_loop.batch_progress"]["current"]) == {"ready", "completed", "started", "processed"}


def test_a_failed_claim_names_the_holder(tmp_path: Path) -> None:
    lock = lifecycle.claim(tmp_path)
    lifecycle.write_status(tmp_path, "running", 3)
    with pytest.raises(MachineError, match=r"process \d+ on \S+ is training"):
        lifecycle.claim(tmp_path)
    lock.release()
    lifecycle.claim(tmp_path).release()


def test_after_a_run_the_signals_are_as_before(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    words = [word for word in run.options if "root_dir" not in word]
    assert call(cli.main, *words, "--trainer.max_steps=1", f"--trainer.default_root_dir={inside}")[0] == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_is_answered_too(
    number: int,
    code: int,
    options: list[str],
    call: Callable[..., Outcome],
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = ExactResume.on_train_start

    def signalled(self: ExactResume, *args: Any) -> None:
        os.kill(os.getpid(), number)  # Lightning's handlers are there, ours not yet
        real(self, *args)

    monkeypatch.setattr(ExactResume, "on_train_start", signalled)
    words = [*options, f"--trainer.default_root_dir={inside}", "--trainer.max_steps=30"]
    assert call(cli.main, *words)[0] == code
    assert not list(inside.rglob("*.ckpt")), "there was nothing to save yet"


def test_a_later_end_changes_the_very_next_rate(options: list[str], tmp_path: Path) -> None:
    """The rate of the next step was saved as the old end had it: 0."""
    words = [*options, *SHORT, "--model.schedule=Linear"]
    before = final_weights(train_run(tmp_path, words, "--trainer.max_steps=4"))
    run = train_run(tmp_path, words, "--trainer.max_steps=5", "--ckpt_path=last")
    assert any(not torch.equal(before[name], tensor) for name, tensor in final_weights(run).items())
