"""Experiment trackers next to TensorBoard and CSV: W&B offline, MLflow with a local database."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import ROOT
from mlflow import MlflowClient

from gpt2kit.cli import train
from gpt2kit.runs import folder

pytestmark = pytest.mark.filterwarnings("ignore")  # the trackers' own deprecations
TWO_STEPS = ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1"]
RESUME = ["--ckpt_path=last", "--trainer.max_steps=4", "--trainer.log_every_n_steps=1"]


def logger_ids(run: Path, name: str) -> list[str]:
    """Return the tracker's id of each start of a run."""
    return [start["loggers"][name] for start in folder.read_starts(run)]


def test_wandb_continues_its_run_after_a_resume(
    options: list[str], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (inside / "lightning_logs").mkdir()
    train.main([*options, f"--trainer.logger={ROOT / 'configs/logger/wandb.yaml'}", *TWO_STEPS])
    run = inside / "lightning_logs/version_0"
    assert {"metrics.csv", "config.yaml", "start.json"} <= set(os.listdir(run))
    train.main([*options, *RESUME])
    ids = logger_ids(run, "WandbLogger")
    assert len(ids) == 2 and ids[0] == ids[1] != "None"
    assert [*(inside / "lightning_logs/wandb").glob(f"offline-run-*-{ids[0]}")]


def test_mlflow_continues_its_run_after_a_resume(options: list[str], inside: Path) -> None:
    train.main([*options, f"--trainer.logger={ROOT / 'configs/logger/mlflow.yaml'}", *TWO_STEPS, "--run_name=mine"])
    run = inside / "lightning_logs/mine"
    train.main([*options, *RESUME])
    ids = logger_ids(run, "MLFlowLogger")
    assert len(ids) == 2 and ids[0] == ids[1]
    client = MlflowClient("sqlite:///lightning_logs/mlflow.db")
    losses = client.get_metric_history(ids[0], "train_loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]
    assert client.get_run(ids[0]).info.run_name == "mine", "the name of the run's folder"
    data = client.get_run(ids[0]).data
    assert data.params["model.n_layer"] == "2" and data.params["trainer.max_steps"] == "2"
    assert data.tags["trainer.max_steps"] == "4", "MLflow does not allow a parameter to change"
