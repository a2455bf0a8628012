"""The whole path on a few kilobytes: train, log, save, go on, test."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from helpers import Outcome, Run, final_weights, logged_rows, same_weights, train_run

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import train as cli
from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.evaluation.scoring import Scorer, Windows
from gpt2kit.metrics import Score
from gpt2kit.runs import folder, lifecycle
from gpt2kit.text.reader import Reader
from gpt2kit.training import run_state
from gpt2kit.training.trainer import interval_steps, total_steps


def test_a_run_leaves_all_that_the_readme_says(run: Run) -> None:
    names = {path.name.split(".")[0] for path in run.folder.iterdir()}
    assert {"config", "metrics", "events", "checkpoints"} <= names
    logged = set().union(*logged_rows(run.folder))
    assert logged >= {"step", "epoch", "train_loss", "lr", "grad_norm", "tokens_per_s", "tokens_seen"}
    assert logged >= {"val_loss", "val_ppl", "val_bpb"}


def test_it_learns(run: Run) -> None:
    losses = [row["val_loss"] for row in logged_rows(run.folder) if "val_loss" in row]
    assert losses[-1] < losses[0] < math.log(320)


def test_steps_are_named_right(run: Run) -> None:
    found = logged_rows(run.folder)
    assert [row["step"] for row in found if "train_loss" in row] == [10, 20, 30, 40]
    assert [row["step"] for row in found if "val_loss" in row] == [15, 30, 40]  # the last weights are validated, too
    assert [row["tokens_seen"] for row in found if "train_loss" in row] == [n * 8 * 16 for n in (10, 20, 30, 40)]
    steps_per_epoch = checkpoint.read(checkpoint.checkpoints(run.folder)[0])["gpt2kit"]["train_tokens"] // 16 // 8
    assert all(row["epoch"] == pytest.approx(row["step"] / steps_per_epoch) for row in found)


def test_perplexity_is_e_to_the_loss(run: Run) -> None:
    validated = [row for row in logged_rows(run.folder) if "val_loss" in row]
    assert all(row["val_ppl"] == pytest.approx(math.exp(row["val_loss"]), rel=1e-9) for row in validated)


def test_the_best_checkpoint_and_the_two_newest_are_kept(run: Run) -> None:
    steps = [checkpoint.step_of(path) for path in checkpoint.checkpoints(run.folder)]
    assert steps == [40, 30]
    assert [checkpoint.step_of(path) for path in checkpoint.best_of(checkpoint.checkpoints(run.folder))] == [40]
    assert not list((run.folder / "checkpoints").glob(".*"))


def test_validation_while_training_and_test_py_agree(run: Run, corpus: Path) -> None:
    """One text, two ways through the program, one figure."""
    opened = checkpoint.open(run.folder)
    text = Corpus([corpus / "valid.txt"], opened.tokenizer, Reader())
    store = open_or_build(text, corpus / "cache")
    windows = Windows(len(store), 16, 16)
    nll = Scorer(opened.model, store, windows).score(batch_size=5)
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


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_ends_with_the_same_weights_and_the_same_log(
    options: list[str], tmp_path: Path, accumulate: int
) -> None:
    more = [f"--trainer.accumulate_grad_batches={accumulate}", "--trainer.log_every_n_steps=2", "--data.batch_size=4"]
    more += ["--trainer.val_check_interval=5", "--save_every=3"]
    schedule = "--model.schedule=Constant"  # its rate does not depend on where the run was meant to end
    straight = train_run(tmp_path / "straight", options, *more, schedule, "--trainer.max_steps=14")
    for stop in (3, 5, 8):  # after a plain save, after a validation, at an end
        work = tmp_path / f"halted{stop}"
        train_run(work, options, *more, schedule, f"--trainer.max_steps={stop}")
        resumed = train_run(work, options, *more, schedule, "--trainer.max_steps=14", "--ckpt_path=last")
        assert resumed.name == "version_0"
        assert same_weights(final_weights(straight), final_weights(resumed)), stop
        kept = ("step", "train_loss", "grad_norm", "lr", "tokens_seen")
        trained = [
            [{k: row[k] for k in kept} for row in logged_rows(r) if "train_loss" in row] for r in (straight, resumed)
        ]
        assert trained[0] == trained[1]
        validated = [
            {row["step"]: row["val_loss"] for row in logged_rows(r) if "val_loss" in row} for r in (straight, resumed)
        ]
        assert validated[0].items() <= validated[1].items()


def test_accumulation_logs_the_mean_of_the_whole_step(options: list[str], tmp_path: Path) -> None:
    """The same 12 sequences a step, in one or in three passes: the same loss but for rounding (dropout off; AdamW's
    updates, since Muon's are rounded to bfloat16)."""
    more = ["--model.dropout=0", "--trainer.max_steps=4", "--trainer.log_every_n_steps=1"]
    more += ["--model.optimizer=gpt2kit.optim.AdamW"]
    whole = train_run(tmp_path / "a", options, *more, "--data.batch_size=12")
    parts = train_run(tmp_path / "b", options, *more, "--data.batch_size=4", "--trainer.accumulate_grad_batches=3")
    losses = [[row["train_loss"] for row in logged_rows(r) if "train_loss" in row] for r in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 4


def test_a_run_with_another_order_of_blocks_is_not_resumed(
    run: Run, call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later version that orders blocks in another way must not repeat some and leave out others."""
    folder = shutil.copytree(run.folder, tmp_path / "lightning_logs" / "version_0")
    monkeypatch.setattr(run_state, "ORDER_VERSION", 2)
    code, _, err = call(cli.main, *run.options, "--ckpt_path", folder, "--trainer.max_steps=99")
    assert code == 4 and "order_version was 1, now 2" in err


def test_other_data_or_batch_is_not_resumed(run: Run, call: Callable[..., Outcome], tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "copy")
    code, _, err = call(cli.main, *run.options, "--ckpt_path", tmp_path / "copy", "--data.batch_size=4")
    assert code == 4 and "global_batch was 8, now 4" in err
    code, _, err = call(cli.main, *run.options, "--ckpt_path", tmp_path / "copy", "--seed_everything=7")
    assert code == 4 and "seed was 1, now 7" in err


def test_a_damaged_checkpoint_is_passed_over(options: list[str], tmp_path: Path) -> None:
    run = train_run(tmp_path, options, "--trainer.max_steps=4", "--save_every=2")
    newest, older = checkpoint.checkpoints(run)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert lifecycle.find_resumable("last", tmp_path / "lightning_logs", None) == older


def test_lightnings_callbacks_work_from_yaml(options: list[str], tmp_path: Path) -> None:
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
    more = ("--config", str(config), "--trainer.max_steps=50", "--trainer.val_check_interval=2")
    run = train_run(tmp_path, options, *more, "--trainer.log_every_n_steps=1")
    found = logged_rows(run)
    assert max(row["step"] for row in found) == 4, "two validations without the improvement: stopped"
    logged = set().union(*found)
    assert any(name.startswith("lr-Muon") for name in logged) and any("cpu_percent" in name for name in logged)


def test_one_callback_needs_no_list(options: list[str], tmp_path: Path) -> None:
    more = ("--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss", "--trainer.max_steps=1")
    assert logged_rows(train_run(tmp_path, options, *more))


class Mine(pl.Callback):
    """A user's own callback that logs."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        pl_module.log("mine", float(trainer.global_step))


def test_a_users_callback_logs_at_our_steps_and_epochs(options: list[str], tmp_path: Path) -> None:
    more = ["--trainer.callbacks+=test_train.Mine", "--trainer.max_steps=6", "--trainer.val_check_interval=3"]
    run = train_run(tmp_path, options, *more, "--trainer.log_every_n_steps=2")
    found = logged_rows(run)
    assert {row["step"]: row["mine"] for row in found if "mine" in row} == {2: 2, 4: 4, 6: 6}
    epochs = {row["step"]: {other["epoch"] for other in found if other["step"] == row["step"]} for row in found}
    assert all(len(each) == 1 for each in epochs.values()) and epochs[6] != {0}


def test_a_users_checkpoints_are_named_by_their_steps(options: list[str], tmp_path: Path) -> None:
    """Also those between log steps and after a validation."""
    more = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    more += ["--trainer.callbacks.save_top_k=-1", f"--trainer.callbacks.dirpath={tmp_path / 'theirs'}"]
    train_run(tmp_path, options, *more, "--trainer.max_steps=5", "--trainer.val_check_interval=2")
    names = sorted(path.name for path in (tmp_path / "theirs").glob("*.ckpt"))
    assert names == [f"epoch=0-step={step}.ckpt" for step in range(1, 6)]


def test_options_that_switch_saving_off(options: list[str], inside: Path) -> None:
    cli.main([*options, "--trainer.precision=bf16-mixed", "--trainer.fast_dev_run=2"])
    cli.main([*options, "--trainer.max_steps=2", "--trainer.enable_checkpointing=false"])
    assert not list(inside.rglob("*.ckpt"))
    cli.main([*options, "--trainer.max_steps=2", "--trainer.logger=false"])
    assert len(list((inside / "checkpoints").glob("*.ckpt"))) == 1
    assert [path.name for path in (inside / "lightning_logs").iterdir()] == ["version_0"]  # of the run before


def test_a_time_limit_stops_saved(options: list[str], tmp_path: Path) -> None:
    more = ["--trainer.max_steps=100000", "--trainer.max_time=00:00:00:01", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*options, *more])
    run = tmp_path / "lightning_logs/version_0"
    assert stop.value.code == 0 and folder.read_status(run)["reason"] == "max_time"
    assert 0 < checkpoint.step_of(checkpoint.checkpoints(run)[0]) < 100000


def test_limits_are_said_in_optimizer_steps() -> None:
    assert total_steps(None, None, None, 50, 100) == 50
    assert total_steps(3, None, None, 50, 100) == 150
    assert total_steps(3, 70, None, 50, 100) == 70
    assert total_steps(-1, -1, 1001, 50, 100) == 11
    assert interval_steps(7, 50) == 7
    assert interval_steps(1.0, 50) == 50 and interval_steps(0.5, 51) == 26 and interval_steps(0.001, 50) == 1
