"""Values that cannot be used, and classes that cannot be built: one line and an exit code, before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from helpers import Outcome

from gpt2kit.cli import train
from gpt2kit.errors import UserError
from gpt2kit.optim.muon import Muon
from gpt2kit.optim.trial import count_state

IMPOSSIBLE = {
    "model.optimizer.lr": -1,
    "model.optimizer.adamw_lr": -1,
    "model.optimizer.weight_decay": -5,
    "model.optimizer.momentum": 2,
    "model.schedule.decay_ratio": -1,
    "model.initializer_range": -1,
    "model.layer_norm_epsilon": -1,
    "model.max_nonfinite_steps": -1,
    "model.max_grad_scaler_skips": -1,
    "model.n_layer": 99999999999999999999,
    "model.n_embd": 99999999999999999998,
    "data.num_workers": 65,
    "data.shard_tokens": 99999999999999999999,
    "data.global_batch_size": 99999999999999999999,
    "save_every": 0,
    "save_top_k": -1,
    "seed_everything": -1,
    "trainer.gradient_clip_val": -1,
    "trainer.max_steps": 99999999999999999999,
    "trainer.max_epochs": 0,
    "trainer.max_tokens": -1,
    "trainer.max_time": "00:00:00:00",
    "trainer.accumulate_grad_batches": 0,
    "trainer.limit_val_batches": -1,
    "trainer.devices": "x",
}


class FailsInSetup(pl.Callback):
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        raise KeyError("a key")


class FailsInConstructor(pl.Callback):
    def __init__(self, kind: str = "a") -> None:
        raise OSError("no server")


def assert_one_line(outcome: Outcome, code: int, *messages: str) -> None:
    exit_code, out, err = outcome
    assert exit_code == code and not out and err.startswith("error: ") and err.count("\n") == 1, err
    for message in messages:
        assert err.count(message) == 1, (message, err)


def test_all_impossible_values_are_reported_at_once(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    arguments = [f"--{name}={value}" for name, value in IMPOSSIBLE.items()]
    outcome = call(train.main, *options, *arguments)
    assert_one_line(outcome, 2, *(f"{name} {value}" for name, value in IMPOSSIBLE.items()))
    assert not list(inside.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["torch.optim.SGD", "--model.optimizer.lr=-1"], 2, "model.optimizer.lr -1.0: must be at least 0"),
        (["torch.optim.RMSprop", "--model.optimizer.alpha=2"], 2, "model.optimizer.alpha 2.0: must be at most 1"),
        (["torch.optim.SparseAdam"], 2, "model.optimizer: SparseAdam does not support dense gradients"),
        (["torch.optim.AdamW", "--model.optimizer.capturable=true"], 2, "model.optimizer: If capturable=True, params"),
        (
            ["torch.optim.SGD", "--model.optimizer.maximize=true"],
            2,
            "model.optimizer.maximize true: the loss would rise",
        ),
        (["gpt2kit.optim.Cosine"], 2, "--model.optimizer gpt2kit.optim.Cosine: not a subclass of Optimizer"),
        (["math.sqrt"], 2, "--model.optimizer math.sqrt: not a subclass of Optimizer"),
        (["os.path.join"], 2, "--model.optimizer os.path.join: not a subclass of Optimizer"),
        (["torch.optim.LBFGS"], 2, "model.optimizer LBFGS: LBFGS doesn't support per-parameter options"),
    ],
)
def test_an_optimizer_is_tried_before_anything_is_built(
    arguments: list[str], code: int, message: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    assert_one_line(call(train.main, *options, "--model.optimizer", *arguments), code, message)
    assert not list(inside.iterdir())


@pytest.mark.parametrize("option", [{"lr": -1.0}, {"adamw_lr": float("nan")}, {"momentum": 1.5}, {"betas": (0.9, 2)}])
def test_muon_refuses_impossible_values(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"model.optimizer.{next(iter(option))}"):
        count_state(lambda params: Muon(params, **option), torch.device("cpu"))


def test_null_is_refused_where_it_is_no_value(options: list[str], call: Callable[..., Outcome], inside: Path) -> None:
    lines = {
        "save_every": "null",
        "model": "{optimizer: null, schedule: {class_path: null}, n_layer: null}",
        "data": "{reader: null, cache_dir: null, train_files: null}",  # train_files has no default, and is given below
        "trainer": "{val_check_interval: null, devices: null, callbacks: [null]}",
    }
    (inside / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    names = ["save_every", "model.optimizer", "model.schedule", "model.n_layer", "data.reader", "data.cache_dir"]
    names += ["trainer.val_check_interval", "trainer.devices"]
    outcome = call(train.main, *options, "--config=config.yaml")
    assert_one_line(outcome, 2, *(f": {name} null: must be" for name in names), "trainer.callbacks [null]: null is not")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["trainer.callbacks=LearningRateFinder"], 2, "Use --tune lr instead"),
        (
            ["trainer.callbacks=EarlyStopping", "trainer.callbacks.monitor=val_loss", "trainer.callbacks.mode=up"],
            2,
            "trainer.callbacks EarlyStopping: `mode` can be",
        ),
        (
            [f"trainer.callbacks={__name__}.FailsInConstructor"],
            2,
            "trainer.callbacks FailsInConstructor: no server",
        ),
        (["trainer.devices=[0,0]"], 2, "trainer.devices [0, 0]: neither a number of devices nor a list"),
        (["trainer.devices=-1"], 2, "trainer: `devices` selected with `CPUAccelerator`"),
        (["trainer.devices=1000000"], 5, "trainer.devices 1000000: each device is a process"),
        (["trainer.accelerator=tpu"], 2, "trainer: "),
        (["trainer.strategy=ddp_spawn"], 2, "trainer.strategy ddp_spawn: cannot start processes"),
        (["trainer.default_root_dir=a.txt/runs"], 2, "a.txt is a file, not a folder"),
        (["data.train_files=" + "a" * 5000], 3, "File name too long"),
        (["data.global_batch_size=2147483647"], 2, "not a multiple of 1 devices x data.batch_size 8"),
        (["model.n_embd=100000", "model.n_layer=1024"], 5, "needs at least 1,474,576 GB"),
        (["model.n_embd=100000", "model.n_layer=1024", "trainer.precision=bf16-true"], 5, "GB of memory"),
    ],
)
def test_values_that_cannot_work_are_refused(
    arguments: list[str], code: int, message: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").touch()
    assert_one_line(call(train.main, *options, *(f"--{argument}" for argument in arguments)), code, message)
    assert [path.name for path in inside.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["EarlyStopping", "--trainer.callbacks.monitor=nope"],
            "EarlyStopping: monitor nope: no such metric. Use one of",
        ),
        ([f"{__name__}.FailsInSetup"], "FailsInSetup: 'a key'"),
    ],
)
def test_an_error_of_a_callback_names_it(
    arguments: list[str], message: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    code, _, err = call(train.main, *options, "--trainer.max_steps=1", "--trainer.callbacks", *arguments)
    assert code == 2 and f"error: trainer.callbacks {message}" in err and "Traceback" not in err
