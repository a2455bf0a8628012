"""Runs that are limited by `trainer.max_time` alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Outcome, final_weights, logged_rows, same_weights, train_run

from gpt2kit.checkpoint import paths
from gpt2kit.cli import train
from gpt2kit.training.module import GPT2Module

WSD = "--model.schedule={class_path: WarmupStableDecay, init_args: {warmup: 4, decay_ratio: 0.5, min_lr_ratio: 0.0}}"
ARGS = [
    "--model.compile=off",
    "--model.optimizer.weight_decay=0.1",
    "--trainer.log_every_n_steps=1",
    "--save_every=3",
    WSD,
]
TIMED = ["--trainer.max_time=00:00:01:00", *ARGS]


class Clock:
    """A clock that moves by a number of seconds at each training step, and by nothing else."""

    now = 0.0
    step_seconds = 2.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, training_step = Clock(), GPT2Module.training_step

    def step(self: GPT2Module, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        clock.now += clock.step_seconds
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(GPT2Module, "training_step", step)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    return clock


def test_a_run_limited_by_time_equals_one_limited_by_steps(options: list[str], tmp_path: Path, clock: Clock) -> None:
    """Bit for bit: the rate does not depend on the last step before it is set."""
    timed = train_run(tmp_path / "timed", options, *TIMED)
    steps = paths.step_of(paths.checkpoints(timed)[0])
    assert 27 <= steps <= 30, "60 seconds, two per step"
    by_steps = train_run(tmp_path / "steps", options, *ARGS, f"--trainer.max_steps={steps}")
    assert same_weights(final_weights(timed), final_weights(by_steps))
    rates = [[row["lr"] for row in logged_rows(run) if "lr" in row] for run in (timed, by_steps)]
    assert rates[0] == rates[1] and rates[0][10] > 10 * rates[0][-1]
    assert any("val_loss" in row and row["step"] == steps for row in logged_rows(timed))


def test_a_resumed_run_keeps_the_last_step(
    options: list[str], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = train_run(tmp_path / "uninterrupted", options, *TIMED)
    step = GPT2Module.training_step

    def stop(self: GPT2Module, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == 24:
            raise InterruptedError
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(GPT2Module, "training_step", stop)
        with pytest.raises(InterruptedError):
            train_run(tmp_path / "stopped", options, *TIMED)
    clock.step_seconds = 0.5  # a faster machine
    resumed = train_run(tmp_path / "stopped", options, *TIMED, "--ckpt_path=last")
    assert same_weights(final_weights(uninterrupted), final_weights(resumed))


def test_a_run_that_becomes_slower_ends_in_time(
    options: list[str], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_validation_start = GPT2Module.on_validation_start

    def slow_down(self: GPT2Module) -> None:
        on_validation_start(self)
        clock.step_seconds = 4.0

    monkeypatch.setattr(GPT2Module, "on_validation_start", slow_down)
    run = train_run(tmp_path, options, *TIMED, "--trainer.val_check_interval=20")
    steps = paths.step_of(paths.checkpoints(run)[0])
    assert 20 * 2 + (steps - 20) * 4 <= 64
    rates = [row["lr"] for row in logged_rows(run) if "lr" in row]
    assert rates[-1] < 0.2 * rates[10], "the rate has decayed"


def test_a_schedule_that_depends_on_the_last_step_is_refused(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    args = [*options, "--trainer.max_time=00:00:00:10"]
    code, _, err = call(train.main, *args, "--model.schedule=Cosine")
    assert code == 2 and "trainer.max_time alone" in err and "Add trainer.max_epochs or max_steps" in err
    code, out, _ = call(train.main, *args, "--plan")
    assert code == 0 and "until the time limit, in steps of 8 x 16 tokens" in out
