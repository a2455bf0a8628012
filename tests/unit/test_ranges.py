"""The ranges of numeric options, without a command."""

from __future__ import annotations

import math

import pytest

from gpt2kit.checkpoint import validation
from gpt2kit.ranges import RANGES, range_problems


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("model.optimizer.lr", 0, ""),
        ("model.optimizer.init_args.lr", -1e-9, "model.optimizer.lr -1e-09: must be at least 0"),
        ("model.optimizer.lr", math.nan, "model.optimizer.lr nan: must be at least 0"),
        ("model.optimizer.lr", math.inf, "model.optimizer.lr inf: must be at most 1,000,000"),
        ("model.optimizer.momentum", 1, "model.optimizer.momentum 1: must be below 1"),
        ("model.optimizer.betas", (0.9, 1.0), "model.optimizer.betas (0.9, 1.0): must be below 1"),
        ("model.optimizer.eps", (None, 1e-3), ""),
        ("trainer.val_check_interval", 0.0, "trainer.val_check_interval 0.0: must be above 0"),
        ("trainer.max_steps", -1, ""),
        ("trainer.max_steps", -2, "trainer.max_steps -2: must be at least 1"),
        ("trainer.max_tokens", -1, "trainer.max_tokens -1: must be at least 1"),
        ("trainer.fast_dev_run", True, ""),
        ("model.n_layer", "auto", ""),
        ("other.lr", -1, ""),
    ],
)
def test_numbers_out_of_range_are_reported(name: str, value: object, problem: str) -> None:
    assert range_problems({name: value}) == ([problem] if problem else [])


def test_a_model_that_can_be_trained_can_be_opened() -> None:
    sizes = {name.partition(".")[2]: int(limits.high) for name, limits in RANGES.items() if name.startswith("model.n_")}
    shape = {"activation_function": "gelu", "vocab_size": int(RANGES["model.vocab_size"].high), **sizes}
    rates = ("initializer_range", "layer_norm_epsilon", "embd_pdrop", "attn_pdrop", "resid_pdrop")
    shape |= dict.fromkeys(rates, 0.5)
    assert validation.check_shape(validation.Path("a.ckpt"), shape)["n_layer"] == sizes["n_layer"]
