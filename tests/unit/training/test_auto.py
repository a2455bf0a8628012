"""The rule that chooses sizes and passes, and durations. tests/system/test_auto.py has whole runs."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from gpt2kit.errors import UserError
from gpt2kit.model.config import flops_per_token, parameter_count, shape_problems
from gpt2kit.optim.adamw import AdamW, parameter_groups
from gpt2kit.optim.muon import Muon
from gpt2kit.training import auto
from gpt2kit.training.durations import parse_duration
from gpt2kit.training.module import GPT2Module

AUTO: dict[str, Any] = {"n_layer": "auto", "n_head": "auto", "n_embd": "auto", "vocab_size": 4096, "n_positions": 256}
TOKENS = [100, 99_999, 100_000, 10**6, 10**7, 10**8, 10**10]


def shape_of(sizes: auto.Sizes, **more: int) -> dict[str, Any]:
    return {**AUTO, "n_layer": sizes.n_layer, "n_head": sizes.n_head, "n_embd": sizes.n_embd, **more}


def test_more_text_gives_a_larger_model() -> None:
    chosen = [auto.choose(tokens, AUTO) for tokens in TOKENS]
    counts = [parameter_count(shape_of(sizes)) for sizes in chosen]
    assert counts == sorted(counts) and len(set(counts)) == 5
    assert [sizes.passes for sizes in chosen] == [6, 6, 12, 8, 2, 1, 1]
    assert all(sizes.n_embd % sizes.n_head == 0 and sizes.n_embd // sizes.n_head in (32, 64) for sizes in chosen)


@pytest.mark.parametrize(
    ("passes", "dropout", "weight_decay"),
    [(0.5, 0.0, 0.1), (3.9, 0.0, 0.1), (3.99, 0.1, 0.5), (4, 0.1, 0.5), (10, 0.1, 2.0)],
)
def test_passes_decide_dropout_and_weight_decay(passes: float, dropout: float, weight_decay: float) -> None:
    sizes = auto.choose(500_000, AUTO, passes)
    assert (sizes.passes, sizes.dropout, sizes.weight_decay) == (passes, dropout, weight_decay)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"n_embd": 256}, (6, 8, 256)),
        ({"n_embd": 100}, (6, 2, 100)),
        ({"n_embd": 97}, (6, 1, 97)),
        ({"n_head": 5}, (6, 5, 195)),
        ({"n_layer": 2, "n_head": 3, "n_embd": 48}, (2, 3, 48)),
    ],
)
def test_sizes_that_are_set_are_kept_and_the_others_fit(given: dict[str, int], expected: tuple[int, int, int]) -> None:
    sizes = auto.choose(500_000, {**AUTO, **given})
    assert (sizes.n_layer, sizes.n_head, sizes.n_embd) == expected
    assert not shape_problems(shape_of(sizes))


@pytest.mark.parametrize(
    ("width", "rates", "adamw_rate"),
    [(64, (5e-3, 1.2e-2), 2e-3), (256, (5e-3, 1.2e-2), 1e-3), (1024, (2.5e-3, 3e-3), 2.5e-4)],
)
def test_wider_models_have_lower_learning_rates(width: int, rates: tuple[float, float], adamw_rate: float) -> None:
    module = GPT2Module(n_layer=1, n_head=2, n_embd=width, vocab_size=64, n_positions=8)
    optimizer = module.make_optimizer(parameter_groups(module.model))
    assert tuple(group["lr"] for group in optimizer.param_groups) == rates
    module.optimizer = AdamW
    assert module.make_optimizer(parameter_groups(module.model)).param_groups[0]["lr"] == adamw_rate
    module.optimizer = functools.partial(Muon, lr=1e-3, adamw_lr=2e-3)
    optimizer = module.make_optimizer(parameter_groups(module.model))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 2e-3]


@pytest.mark.parametrize(
    ("bits", "of_entropy", "own", "factor"),
    [
        *[(2.0, 0.3, None, 0.03), (2.0, 0.58, None, 0.03), (2.0, 0.79, None, 0.03**0.5), (2.0, 1.0, None, 1.0)],
        *[(2.1, 0.79, 2.0, 0.03), (1.5, 0.9, 2.0, 0.03), (2.55, 0.5, 2.0, 0.03**0.5), (3.0, 0.5, 2.0, 1.0)],
    ],
)
def test_the_better_weights_predict_a_text_the_lower_are_the_rates(
    bits: float, of_entropy: float, own: float | None, factor: float
) -> None:
    assert auto.InitialLoss(bits, of_entropy, own).rate_factor() == pytest.approx(factor)


def test_a_short_time_gives_a_smaller_model_and_decides_the_passes() -> None:
    plenty, little = (auto.choose(5_000_000, AUTO, flops=flops) for flops in (1e18, 1e13))
    assert (plenty.n_embd, plenty.dropout) == (384, 0.1) and plenty.passes > 1000
    assert (little.n_embd, little.dropout) == (128, 0.0)
    assert little.passes == pytest.approx(1e13 / flops_per_token(shape_of(little)) / 5_000_000)


@pytest.mark.parametrize(("tokens", "passes"), [(1_000, 3), (9_000_000, 2), (90_000_000, 1)])
def test_pretrained_weights_are_trained_for_few_passes_as_they_are(tokens: int, passes: int) -> None:
    sizes = auto.choose(tokens, {**AUTO, "n_layer": 3, "n_head": 2, "n_embd": 8}, is_pretrained=True)
    assert (sizes.n_layer, sizes.passes, sizes.dropout, sizes.weight_decay) == (3, passes, 0.0, 0.1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20m", 1200), ("1h30m", 5400), ("90s", 90), ("2d", 172_800), ("00:00:20:00", 1200), ("01:02:03:04", 93_784)],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "20 m", "m", "1h90", "30m1h", "-5m", "20:00", "1.5h"])
def test_invalid_durations_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a duration"):
        parse_duration(text)
