"""TensorBoard's groups and settings view, and the settings that other loggers get."""

from __future__ import annotations

from helpers import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from gpt2kit.training import loggers


def test_tensorboard_groups_scalars_and_shows_settings_with_metrics(run: Run) -> None:
    board = EventAccumulator(str(run.folder)).Reload()
    tags = set(board.Tags()["scalars"])
    assert set(loggers.METRICS.values()) - {"speed/mfu"} <= tags  # a CPU has no MFU
    assert all("/" in tag for tag in tags) and "hp_metric" not in tags
    assert [event.step for event in board.Scalars("loss/valid")] == [15, 30, 40]
    contents = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(contents).session_start_info
    assert start.hparams["n_layer"].number_value == 2 and start.hparams["optimizer"].string_value == "Muon"
    visible = ["block_size", "dropout", "global_batch", "learning_rate"]  # the view hides later ones at first
    assert sorted(start.hparams)[:4] == visible
    contents = board.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(contents).experiment
    assert {info.name.tag for info in experiment.metric_infos} == set(loggers.FINAL) <= tags


def test_hyperparameters_are_flat_numbers_and_strings() -> None:
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
