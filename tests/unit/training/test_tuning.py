"""Searches for a batch size and a learning rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Outcome

from gpt2kit.cli import train
from gpt2kit.training import tuning

SMALL = ["--model.n_layer=1", "--model.n_head=1", "--model.n_embd=16", "--data.block_size=8", "--trainer.max_steps=3"]


def test_the_steepest_fall_is_found_in_spite_of_noise() -> None:
    losses = [5.0] * 30 + [5.0 - 0.1 * i for i in range(20)] + [3.0] * 30
    noisy = [loss + 0.02 * (-1) ** i for i, loss in enumerate(losses)]
    assert 30 <= tuning.steepest_step(tuning.smooth(noisy)) <= 50
    assert tuning.steepest_step([1.0, 0.5]) == 0


def test_factors_rise_from_low_to_high() -> None:
    assert tuning.rate_factor(0) == pytest.approx(tuning.LOWEST) and tuning.rate_factor(
        tuning.STEPS - 1
    ) == pytest.approx(tuning.HIGHEST)
    assert tuning.rate_factor(50) / tuning.rate_factor(49) == pytest.approx(
        tuning.rate_factor(11) / tuning.rate_factor(10)
    )


def test_rates_of_both_optimizers_are_tried_and_nothing_is_left(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main([*options, *SMALL, "--tune", "lr", f"--trainer.default_root_dir={tmp_path / 'runs'}"])
    told = capsys.readouterr().out
    assert (
        "5e-05, 0.00012" in told and "times the configured rates" in told and "lowest" in told
    )  # Muon's and AdamW's, at a hundredth
    assert not (tmp_path / "runs").exists()


def test_batch_sizes_are_tried_until_the_text_is_too_short(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[str]] = []

    def child(words: list[str]) -> tuple[dict[str, object], str]:
        tried.append(words)
        size = int(words[-1].split("=")[1])
        return {"speed": {"tokens_per_s": min(size, 8) * 100.0, "memory": 1e6}}, ""

    monkeypatch.setattr(tuning, "measure_in_child", child)
    tuning.find_batch_size(options)
    assert [words[-1] for words in tried] == [f"--data.batch_size={2**i}" for i in range(6)]
    assert "data.batch_size 8 is as fast as it gets" in capsys.readouterr().out


def test_a_batch_that_cannot_be_says_why_in_a_process_of_its_own(options: list[str]) -> None:
    found, why = tuning.measure_in_child([*options, "--plan", "--data.batch_size=1000000"])
    assert not found and "fewer than the 1000000 of one optimizer step" in why


@pytest.mark.parametrize("option", ["--verify_resume", "--tune=lr"])
def test_trials_do_not_resume_a_run(option: str, options: list[str], call: Callable[..., Outcome]) -> None:
    code, _, err = call(train.main, *options, option, "--ckpt_path=last")
    assert code == 2 and "Leave out --ckpt_path" in err
