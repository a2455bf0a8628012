"""Limits as optimizer steps, without training; tests/system/test_time_limit.py has whole runs."""

from __future__ import annotations

import pytest

from gpt2kit.optim.schedules import Constant, Cosine, WarmupStableDecay
from gpt2kit.training.run_setup import (
    has_only_time,
    interval_steps,
    limits,
    planned_end,
    report_other_choices,
    total_steps,
)


def test_limits_and_intervals_are_converted_to_optimizer_steps() -> None:
    assert total_steps(None, None, None, 50, 100) == 50
    assert total_steps(3, None, None, 50, 100) == 150
    assert total_steps(3, 70, None, 50, 100) == 70
    trainer = {"max_epochs": "auto", "max_steps": -1, "max_tokens": 1001}
    assert total_steps(*limits(trainer), 50, 100) == 11
    assert interval_steps(7, 50) == 7
    assert interval_steps(1.0, 50) == 50 and interval_steps(0.5, 51) == 26 and interval_steps(0.001, 50) == 1


@pytest.mark.parametrize(("max_steps", "only_time"), [(None, True), (-1, True), (0, False), (5, False)])
def test_zero_steps_are_a_limit_beside_a_time_limit(max_steps: int | None, only_time: bool) -> None:
    options = {"max_time": "20m", "fast_dev_run": False, "max_epochs": "auto", "max_tokens": None}
    assert has_only_time(options | {"max_steps": max_steps}) is only_time


def test_the_last_step_is_set_when_the_decay_must_start() -> None:
    wsd = WarmupStableDecay(warmup=0, decay_ratio=0.4)
    assert planned_end(wsd, None, step=500, total=1000, every=10) is None
    assert planned_end(wsd, None, step=590, total=1000, every=10) is None
    assert planned_end(wsd, None, step=591, total=1000, every=10) == 1000
    assert planned_end(Constant(), None, step=980, total=1000, every=10) is None
    assert planned_end(Constant(), None, step=991, total=1000, every=10) == 1000


def test_the_last_step_changes_only_if_it_would_come_late() -> None:
    wsd = WarmupStableDecay(warmup=0, decay_ratio=0.4)
    assert planned_end(wsd, 1000, step=700, total=1100, every=10) == 1000
    assert planned_end(wsd, 1000, step=700, total=995, every=10) == 1000
    assert planned_end(wsd, 1000, step=700, total=900, every=10) == 900


@pytest.mark.parametrize("schedule", [WarmupStableDecay(warmup=0.1, decay_ratio=0.6), Constant(warmup=5)])
def test_the_rate_is_constant_until_the_stated_step(schedule: WarmupStableDecay | Constant) -> None:
    for total in (50, 1000):
        end = schedule.constant_until(total)
        assert end is not None and end > schedule.warmup_steps(total)
        assert {schedule(step, total) for step in range(schedule.warmup_steps(total), end)} == {1.0}
    assert Cosine().constant_until(1000) is None


@pytest.mark.parametrize(
    ("reason", "messages"),
    [
        ("no bf16", ["resume: precision was bf16-mixed, now 32-true (no bf16); results are equal up to rounding"]),
        ("as requested", []),
    ],
)
def test_a_resumed_run_reports_what_auto_chooses_on_another_machine(
    reason: str, messages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gpt2kit")
    earlier = [{"start": {"chosen": {"precision": ["bf16-mixed", "fast"], "compile": ["off", "short"]}}}]
    report_other_choices(earlier, {"chosen": {"precision": ["32-true", reason], "compile": ["off", "short"]}})
    assert caplog.messages == messages
