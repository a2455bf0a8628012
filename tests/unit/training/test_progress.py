from __future__ import annotations

import pytest
from helpers import Run

from gpt2kit.runs import folder
from gpt2kit.training.progress import SmoothedMean, StepTimer, ThroughputMetrics


def test_a_jump_of_the_loss_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ThroughputMetrics()
    for step in range(20):
        metrics.warn_of_jump(step, 3.0 + 0.01 * (step % 3))
    assert not capsys.readouterr().err
    metrics.warn_of_jump(20, 5.0)
    assert "step 20: the loss jumped to 5.000" in capsys.readouterr().err


def test_estimates_leave_out_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    timer = StepTimer(100)
    now[0] = 60.0  # the first step compiles
    timer.step(101)
    assert timer.seconds_until(102) == 60.0  # nothing better is known
    for step in range(102, 112):
        now[0] += 2.0
        timer.step(step)
    assert timer.seconds_until(121) == pytest.approx(20.0)


def test_the_smoothed_loss_starts_without_bias() -> None:
    smoothed = SmoothedMean(0.9)
    assert smoothed.add(4.0) == 4.0 and 3.0 < smoothed.add(3.0) < 4.0


def test_throughput_is_logged_at_log_steps_and_the_time_at_validations_too(run: Run) -> None:
    series = folder.read_run(run.folder).series
    assert {"memory_gb", "hours", "hours_left", "tokens_per_s"} <= set(series)
    assert "mfu" not in series, "a CPU has no peak to compare with"
    hours = [*series["hours"].values()]
    assert series["hours_left"][40] == 0
    assert hours == sorted(hours)
    assert [*series["hours"]] == [10, 15, 20, 30, 40]
