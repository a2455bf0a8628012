"""TensorBoard opens to something useful; other loggers stand beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from gpt2kit.cli import train
from gpt2kit.runs import folder
from gpt2kit.training import loggers


def events(run: Path) -> Any:
    found = EventAccumulator(str(run))
    found.Reload()
    return found


def test_scalars_are_grouped_and_settings_stand_beside_figures(run: Run) -> None:
    board = events(run.folder)
    tags = set(board.Tags()["scalars"])
    assert set(loggers.GROUPS.values()) <= tags
    assert all("/" in tag for tag in tags) and "hp_metric" not in tags
    assert [event.step for event in board.Scalars("loss/valid")] == [15, 30, 40]
    contents = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(contents).session_start_info
    assert start.hparams["n_layer"].number_value == 2 and start.hparams["optimizer"].string_value == "Muon"
    assert sorted(start.hparams)[:4] == ["block_size", "dropout", "global_batch", "learning_rate"], (
        "those that are shown"
    )
    contents = board.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(contents).experiment
    assert {info.name.tag for info in experiment.metric_infos} == set(loggers.FINAL) <= tags


def test_texts_are_in_tensorboard(options: list[str], tmp_path: Path) -> None:
    config = tmp_path / "samples.yaml"
    config.write_text(
        "trainer: {callbacks: [{class_path: gpt2kit.callbacks.TextSamples, init_args: {max_new_tokens: 4}}]}"
    )
    train.main([*options, f"--config={config}", "--trainer.max_steps=2", f"--trainer.default_root_dir={tmp_path}"])
    board = events(tmp_path / "lightning_logs/version_0")
    (event,) = board.Tensors("samples/text_summary")
    assert event.step == 2 and b"## step 2" in event.tensor_proto.string_val[0]


def test_settings_are_plain() -> None:
    settings = {
        "seed_everything": 1,
        "model": {
            "n_layer": 2,
            "n_inner": None,
            "optimizer": {"class_path": "gpt2kit.optim.Muon", "init_args": {"lr": 0.1, "betas": [0.9, 0.95]}},
        },
        "data": {"batch_size": 4, "train_files": ["a", "b"]},
        "trainer": {"precision": "auto", "callbacks": [1]},
    }
    assert loggers.hyperparameters(settings) == {
        "seed": 1,
        "model.n_layer": 2,
        "model.optimizer": "Muon",
        "model.optimizer.lr": 0.1,
        "model.optimizer.betas": "[0.9, 0.95]",
        "data.batch_size": 4,
        "trainer.precision": "auto",
    }


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline(options: list[str], inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside TensorBoard and CSV, in the run's own folder, and the same run of theirs after a resume."""
    pytest.importorskip("wandb", reason="optional: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (inside / "lightning_logs").mkdir()
    logger = f"--trainer.logger={ROOT / 'configs/logger/wandb.yaml'}"
    train.main([*options, logger, "--trainer.max_steps=2", "--trainer.log_every_n_steps=1"])
    run = inside / "lightning_logs/version_0"
    assert {"metrics.csv", "config.yaml", "start.json"} <= set(os.listdir(run))
    train.main([*options, "--ckpt_path=last", "--trainer.max_steps=4", "--trainer.log_every_n_steps=1"])
    ids = [start["loggers"]["WandbLogger"] for start in folder.read_starts(run)]
    assert len(ids) == 2 and ids[0] == ids[1] != "None"
    assert len([*(inside / "lightning_logs/wandb").glob(f"offline-run-*-{ids[0]}")]) >= 1
