from __future__ import annotations

import pytest

from gpt2kit.training import tuning


def test_the_steepest_fall_is_found_despite_noise() -> None:
    losses = [5.0] * 30 + [5.0 - 0.1 * i for i in range(20)] + [3.0] * 30
    noisy = [loss + 0.02 * (-1) ** i for i, loss in enumerate(losses)]
    assert 30 <= tuning.steepest_step(tuning.smooth(noisy)) <= 50
    assert tuning.steepest_step([1.0, 0.5]) == 0


def test_rates_rise_by_a_constant_factor() -> None:
    factors = [tuning.rate_factor(step) for step in range(tuning.STEPS)]
    assert factors[0] == pytest.approx(tuning.LOWEST) and factors[-1] == pytest.approx(tuning.HIGHEST)
    assert factors[50] / factors[49] == pytest.approx(factors[11] / factors[10])


def test_batch_sizes_are_doubled_until_the_speed_no_longer_grows(capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[list[str]] = []

    def measure(args: list[str]) -> tuple[dict[str, object], str]:
        measured.append(args)
        size = int(args[-1].split("=")[1])
        return {"speed": {"tokens_per_s": min(size, 8) * 100.0, "memory": 1e6}}, ""

    tuning.find_batch_size(["--model.n_layer=1"], measure)
    assert [args[-1] for args in measured] == [f"--data.batch_size={2**i}" for i in range(6)]
    assert "data.batch_size 8 is within 5 % of the fastest" in capsys.readouterr().out


def test_the_search_ends_at_the_first_batch_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(args: list[str]) -> tuple[dict[str, object], str]:
        size = int(args[-1].split("=")[1])
        return {"speed": {"tokens_per_s": size * 100.0, "memory": 1e6}}, "too long" if size > 4 else ""

    tuning.find_batch_size([], measure)
    out = capsys.readouterr().out
    assert "8  too long" in out and "data.batch_size 4 is within 5 % of the fastest" in out
