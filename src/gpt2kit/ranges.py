"""The valid range of each numeric option of a run. Does not know what the options mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Range(NamedTuple):
    """A range of numbers. NaN and Inf are in none."""

    low: float
    high: float
    above: bool = False  # low itself is not allowed
    below: bool = False  # high itself is not allowed

    def problem(self, value: float) -> str:
        """Return why a value is invalid; empty if it is valid."""
        if not (value > self.low if self.above else value >= self.low):
            return f"must be {'above' if self.above else 'at least'} {self.low:,}"
        if not (value < self.high if self.below else value <= self.high):
            return f"must be {'below' if self.below else 'at most'} {self.high:,}"
        return ""


_COUNT = 1 << 53  # up to it, a float holds each whole number
_FROM_0, _FROM_1 = Range(0, _COUNT), Range(1, _COUNT)
_RATE = Range(0, 1_000_000)  # far above any rate at which a model learns; float32 does not overflow
_FRACTION = Range(0, 1)
_BELOW_1 = Range(0, 1, below=True)

RANGES = {
    "seed_everything": Range(0, 2**32 - 1),
    "save_every": _FROM_1,
    "save_top_k": _FROM_1,
    "merge": _FROM_1,
    "replay": _BELOW_1,
    # Sizes that are possible, but not sensible, are limited by the text and the memory.
    "data.block_size": Range(1, 1 << 22),
    "data.batch_size": Range(1, 1 << 31),
    "data.global_batch_size": Range(1, 1 << 31),
    "data.stride": _FROM_1,
    "data.shard_tokens": _FROM_1,
    "data.window_shards": _FROM_1,
    "data.num_workers": Range(0, 64),
    "data.tokenizer.vocab_size": Range(1, 1 << 25),
    "data.tokenizer.min_frequency": _FROM_1,
    "data.tokenizer.max_token_length": Range(2, 1 << 31),
    "data.tokenizer.max_train_bytes": _FROM_1,
    "data.tokenizer.seed": _FROM_0,
    # Also the limits for what a checkpoint contains (checkpoint.validation).
    "model.n_layer": Range(1, 1 << 10),
    "model.n_head": Range(1, 1 << 10),
    "model.n_embd": Range(1, 1 << 17),
    "model.n_inner": Range(1, 1 << 20),
    "model.vocab_size": Range(1, 1 << 25),
    "model.n_positions": Range(1, 1 << 22),
    **{f"model.{name}": _BELOW_1 for name in ("dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop")},
    "model.initializer_range": _FRACTION,
    "model.layer_norm_epsilon": _FRACTION,
    "model.freeze_steps": _FROM_0,
    "model.lora_r": Range(0, 1 << 17),
    "model.lora_alpha": Range(0, 1_000_000, above=True),
    "model.max_nonfinite_steps": _FROM_0,
    "model.max_grad_scaler_skips": _FROM_0,
    "model.schedule.min_lr_ratio": _FRACTION,
    "model.schedule.decay_ratio": _FRACTION,
    # The parameters of gpt2kit's and torch's optimizers, and of others that use these names.
    **{f"model.optimizer.{name}": _RATE for name in ("lr", "adamw_lr", "weight_decay", "eps", "lambd", "d")},
    **{f"model.optimizer.{name}": _RATE for name in ("lr_decay", "momentum_decay", "step_sizes")},
    "model.optimizer.initial_accumulator_value": _RATE,
    **{f"model.optimizer.{name}": _FRACTION for name in ("dampening", "rho", "alpha")},
    **{f"model.optimizer.{name}": _BELOW_1 for name in ("momentum", "betas")},
    "model.optimizer.t0": _FROM_0,
    "trainer.max_epochs": _FROM_1,
    "trainer.max_steps": _FROM_1,
    "trainer.max_tokens": _FROM_1,
    "trainer.log_every_n_steps": _FROM_1,
    "trainer.accumulate_grad_batches": Range(1, 1 << 31),
    "trainer.val_check_interval": Range(0, _COUNT, above=True),
    "trainer.limit_val_batches": _FROM_0,
    "trainer.num_sanity_val_steps": Range(-1, _COUNT),  # -1: all
    "trainer.fast_dev_run": _FROM_0,
    "trainer.gradient_clip_val": _RATE,
    "trainer.num_nodes": Range(1, 1 << 20),
}
# Limits of which -1 means none, as in Lightning.
_UNLIMITED = ("trainer.max_epochs", "trainer.max_steps")


def range_problems(options: Mapping[str, object]) -> list[str]:
    """List the numbers that are out of range. `options` are by their dotted names, and other values are skipped."""
    problems = []
    for name, value in options.items():
        plain = name.replace(".init_args.", ".").replace(".dict_kwargs.", ".")
        if plain not in RANGES or (value == -1 and plain in _UNLIMITED):
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        numbers = [item for item in values if isinstance(item, (int, float)) and not isinstance(item, bool)]
        reasons = [reason for reason in map(RANGES[plain].problem, numbers) if reason]
        problems += [f"{plain} {value}: {reason}" for reason in reasons[:1]]
    return problems
