"""Complete runs on a few kilobytes of text: logs, checkpoints, and callbacks of Lightning and of the user."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from helpers import Run, final_weights, logged_rows, same_weights, train_run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import train
from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.evaluation.scoring import Scorer, Windows
from gpt2kit.metrics import Score
from gpt2kit.runs import folder
from gpt2kit.text.reader import Reader


def test_a_run_folder_has_config_metrics_events_and_checkpoints(run: Run) -> None:
    names = {path.name.split(".")[0] for path in run.folder.iterdir()}
    assert {"config", "metrics", "events", "checkpoints"} <= names
    logged = set().union(*logged_rows(run.folder))
    assert logged >= {"step", "epoch", "train_loss", "lr", "grad_norm", "tokens_per_s", "tokens_seen"}
    assert logged >= {"val_loss", "val_ppl", "val_bpb"}


def test_the_validation_loss_falls(run: Run) -> None:
    losses = [row["val_loss"] for row in logged_rows(run.folder) if "val_loss" in row]
    assert losses[-1] < losses[0] < math.log(320)


def test_metrics_are_logged_at_their_steps(run: Run) -> None:
    rows = logged_rows(run.folder)
    assert [row["step"] for row in rows if "train_loss" in row] == [10, 20, 30, 40]
    assert [row["step"] for row in rows if "val_loss" in row] == [15, 30, 40]  # the last step is always validated
    assert [row["tokens_seen"] for row in rows if "train_loss" in row] == [n * 8 * 16 for n in (10, 20, 30, 40)]
    steps_per_epoch = checkpoint.read(paths.checkpoints(run.folder)[0])["gpt2kit"]["train_tokens"] // 16 // 8
    assert all(row["epoch"] == pytest.approx(row["step"] / steps_per_epoch) for row in rows)


def test_perplexity_is_the_exponential_of_the_loss(run: Run) -> None:
    validated = [row for row in logged_rows(run.folder) if "val_loss" in row]
    assert all(row["val_ppl"] == pytest.approx(math.exp(row["val_loss"]), rel=1e-9) for row in validated)


def test_the_best_checkpoint_and_the_two_newest_are_kept(run: Run) -> None:
    steps = [paths.step_of(path) for path in paths.checkpoints(run.folder)]
    assert steps == [40, 30]
    assert [paths.step_of(path) for path in paths.best_of(paths.checkpoints(run.folder))] == [40]
    assert not list((run.folder / "checkpoints").glob(".*"))


def test_validation_during_training_and_testing_agree(run: Run, corpus: Path) -> None:
    opened = checkpoint.open(run.folder)
    store = open_or_build(Corpus([corpus / "valid.txt"], opened.tokenizer, Reader("line")), corpus / "cache")
    nll = Scorer(opened.model, store, Windows(len(store), 16, 16)).score(batch_size=5)
    score = Score(nll.sum(), len(store) - 1, store.bytes + store.documents)
    last = logged_rows(run.folder)[-1]
    assert score.loss == pytest.approx(last["val_loss"], rel=1e-6)
    assert score.bits_per_byte == pytest.approx(last["val_bpb"], rel=1e-6)


def test_the_same_seed_gives_the_same_weights(options: list[str], tmp_path: Path) -> None:
    one, other, third = (
        final_weights(train_run(tmp_path / name, options, "--trainer.max_steps=6", f"--seed_everything={seed}"))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert same_weights(one, other) and not same_weights(one, third)


def test_accumulation_logs_the_mean_of_the_step(options: list[str], tmp_path: Path) -> None:
    """12 sequences per step have the same loss in one and in three passes, up to rounding.

    Without dropout, and with AdamW, since Muon rounds its updates to bfloat16.
    """
    args = [*options, "--model.dropout=0", "--trainer.max_steps=4", "--trainer.log_every_n_steps=1"]
    args += ["--model.optimizer=gpt2kit.optim.AdamW"]
    at_once = train_run(tmp_path / "a", args, "--data.batch_size=12")
    in_parts = train_run(tmp_path / "b", args, "--data.batch_size=4", "--trainer.accumulate_grad_batches=3")
    losses = [[row["train_loss"] for row in logged_rows(run) if "train_loss" in row] for run in (at_once, in_parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 4


def test_callbacks_of_lightning_work_from_yaml(options: list[str], tmp_path: Path) -> None:
    config = tmp_path / "callbacks.yaml"
    config.write_text(
        """
trainer:
  callbacks:
    - class_path: LearningRateMonitor
      init_args: {logging_interval: step}
    - class_path: DeviceStatsMonitor
      init_args: {cpu_stats: true}
    - class_path: EarlyStopping
      init_args: {monitor: val_loss, patience: 1, min_delta: 100}
"""
    )
    args = [*options, f"--config={config}", "--trainer.max_steps=50", "--trainer.val_check_interval=2"]
    rows = logged_rows(train_run(tmp_path, args, "--trainer.log_every_n_steps=1"))
    assert max(row["step"] for row in rows) == 4, "EarlyStopping stops after two validations without an improvement"
    logged = set().union(*rows)
    assert any(name.startswith("lr-Muon") for name in logged) and any("cpu_percent" in name for name in logged)


class LoggingCallback(pl.Callback):
    """A user's callback that logs."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        pl_module.log("own_metric", float(trainer.global_step))


def test_a_users_callback_logs_at_the_same_steps_and_epochs(options: list[str], tmp_path: Path) -> None:
    args = [*options, f"--trainer.callbacks+={__name__}.LoggingCallback", "--trainer.max_steps=6"]
    args += ["--trainer.val_check_interval=3", "--trainer.log_every_n_steps=2"]
    rows = logged_rows(train_run(tmp_path, args))
    assert {row["step"]: row["own_metric"] for row in rows if "own_metric" in row} == {2: 2, 4: 4, 6: 6}
    epochs = {row["step"]: {other["epoch"] for other in rows if other["step"] == row["step"]} for row in rows}
    assert all(len(values) == 1 for values in epochs.values()) and epochs[6] != {0}


def test_checkpoints_of_a_users_model_checkpoint_are_named_by_their_steps(options: list[str], tmp_path: Path) -> None:
    """Including those between log steps and after a validation."""
    args = [*options, "--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    args += ["--trainer.callbacks.save_top_k=-1", f"--trainer.callbacks.dirpath={tmp_path / 'own'}"]
    train_run(tmp_path, args, "--trainer.max_steps=5", "--trainer.val_check_interval=2")
    names = sorted(path.name for path in (tmp_path / "own").glob("*.ckpt"))
    assert names == [f"epoch=0-step={step}.ckpt" for step in range(1, 6)]


def test_saving_can_be_switched_off(options: list[str], inside: Path) -> None:
    train.main([*options, "--trainer.precision=bf16-mixed", "--trainer.fast_dev_run=2"])
    train.main([*options, "--trainer.max_steps=2", "--trainer.enable_checkpointing=false"])
    assert not list(inside.rglob("*.ckpt"))
    train.main([*options, "--trainer.max_steps=2", "--trainer.logger=false"])
    assert len(list((inside / "checkpoints").glob("*.ckpt"))) == 1
    assert [path.name for path in (inside / "lightning_logs").iterdir()] == ["version_0"]  # of the second run


def test_a_time_limit_saves_and_stops(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--trainer.max_steps=100000", "--trainer.max_time=00:00:00:01", f"--trainer.default_root_dir={tmp_path}"]
    run = train.main([*options, *more])
    assert run == tmp_path / "lightning_logs/version_0" and folder.read_status(run)["reason"] == "max_time"
    assert 0 < paths.step_of(paths.checkpoints(run)[0]) < 100000
    assert f"Resume with: gpt2kit train --ckpt_path {run}\n" in capsys.readouterr().err
