"""A run that is given nothing but a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Outcome, final_weights, logged_rows, train_run

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import train as cli
from gpt2kit.optim.schedules import Constant, Cosine, WarmupStableDecay
from gpt2kit.training import progress
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.time_limit import planned_end

WSD = "--model.schedule={class_path: WarmupStableDecay, init_args: {warmup: 4, decay_ratio: 0.5, min_lr_ratio: 0.0}}"
TIMED = [
    "--trainer.max_time=00:00:01:00",
    "--model.compile=off",
    "--trainer.log_every_n_steps=1",
    "--save_every=3",
    WSD,
]


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock on which each training step takes two seconds (or so many as the list says)."""
    clock, each = [0.0], [2.0]
    real = GPT2Module.training_step

    def step(self: GPT2Module, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        clock[0] += each[0]
        return real(self, batch, batch_idx)

    monkeypatch.setattr(GPT2Module, "training_step", step)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return each


def test_the_end_is_set_when_the_fall_must_begin_and_stays() -> None:
    wsd = WarmupStableDecay(warmup=0, decay_ratio=0.4)
    assert planned_end(wsd, None, step=500, total=1000, every=10) is None
    assert planned_end(wsd, None, step=590, total=1000, every=10) is None
    assert planned_end(wsd, None, step=591, total=1000, every=10) == 1000
    assert planned_end(wsd, 1000, step=700, total=1100, every=10) == 1000, "faster: the run ends earlier than it could"
    assert planned_end(wsd, 1000, step=700, total=995, every=10) == 1000
    assert planned_end(wsd, 1000, step=700, total=900, every=10) == 900, "slower: the fall is steeper"
    assert planned_end(Constant(), None, step=980, total=1000, every=10) is None
    assert planned_end(Constant(), None, step=991, total=1000, every=10) == 1000


@pytest.mark.parametrize("schedule", [WarmupStableDecay(warmup=0.1, decay_ratio=0.6), Constant(warmup=5)])
def test_the_rate_is_constant_until_the_stated_step(schedule: WarmupStableDecay | Constant) -> None:
    for total in (50, 1000):
        end = schedule.constant_until(total)
        assert end is not None and end > schedule.warmup_steps(total)
        assert {schedule(step, total) for step in range(schedule.warmup_steps(total), end)} == {1.0}
    assert Cosine().constant_until(1000) is None


def test_a_run_by_time_is_the_run_of_so_many_steps(options: list[str], tmp_path: Path, ticking: list[float]) -> None:
    """Bit for bit: the rate has not depended on the end before it was set."""
    timed = train_run(tmp_path / "timed", options, *TIMED)
    steps = checkpoint.step_of(checkpoint.checkpoints(timed)[0])
    assert 27 <= steps <= 30, "60 seconds, two a step"
    plain = train_run(tmp_path / "plain", options, *TIMED[1:], f"--trainer.max_steps={steps}")
    one, other = final_weights(timed), final_weights(plain)
    assert all(torch.equal(one[name], other[name]) for name in one)
    rates = [[row["lr"] for row in logged_rows(run) if "lr" in row] for run in (timed, plain)]
    assert rates[0] == rates[1] and rates[0][10] > 10 * rates[0][-1]
    assert any("val_loss" in row and row["step"] == steps for row in logged_rows(timed)), (
        "the last weights are validated"
    )


def test_a_stopped_run_by_time_goes_on_with_the_same_end(
    options: list[str], tmp_path: Path, ticking: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_run(tmp_path / "straight", options, *TIMED)
    real = GPT2Module.validation_step

    class Stop(Exception):
        pass

    def training_step(self: GPT2Module, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == 24:
            raise Stop
        return stepped(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        stepped = GPT2Module.training_step
        patch.setattr(GPT2Module, "training_step", training_step)
        with pytest.raises(Stop):
            train_run(tmp_path / "halted", options, *TIMED)
    assert GPT2Module.validation_step is real
    ticking[0] = 0.5  # another machine: once it is set, the end stays
    halted = train_run(tmp_path / "halted", options, *TIMED, "--ckpt_path=last")
    one, other = final_weights(straight), final_weights(halted)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_becomes_slower_ends_in_time(options: list[str], tmp_path: Path, ticking: list[float]) -> None:
    real = GPT2Module.on_validation_start

    def slower(self: GPT2Module) -> None:
        real(self)
        ticking[0] = 4.0

    GPT2Module.on_validation_start = slower  # type: ignore[method-assign]
    try:
        run = train_run(tmp_path, options, *TIMED, "--trainer.val_check_interval=20")
    finally:
        GPT2Module.on_validation_start = real  # type: ignore[method-assign]
    steps = checkpoint.step_of(checkpoint.checkpoints(run)[0])
    assert 20 * 2 + (steps - 20) * 4 <= 64
    rates = [row["lr"] for row in logged_rows(run) if "lr" in row]
    assert rates[-1] < 0.2 * rates[10], "and the rate has fallen"


def test_a_schedule_that_falls_at_once_needs_steps(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    words = [*options, "--trainer.max_time=00:00:00:10", "--model.schedule=Cosine"]
    code, _, err = call(cli.main, *words)
    assert code == 2 and "trainer.max_time alone" in err and "Add trainer.max_epochs or max_steps" in err
    code, out, err = call(cli.main, *words[:-1], "--plan")
    assert code == 0 and "until the time is over, in steps of 8 x 16 tokens" in out
