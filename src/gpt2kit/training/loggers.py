"""Loggers: metrics.csv, TensorBoard with grouped scalars and a view of the settings; the row that each step logs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from torch import Tensor

from gpt2kit import files
from gpt2kit.checkpoint import paths
from gpt2kit.runs import lifecycle

# The metrics of a run, with their names in TensorBoard, which groups them by their prefix.
METRICS = {
    "train_loss": "loss/train",
    "val_loss": "loss/valid",
    "val_bpb": "bits_per_byte/valid",
    "val_ppl": "perplexity/valid",
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "tokens_per_s": "speed/tokens_per_s",
    "mfu": "speed/mfu",
    "memory_gb": "speed/memory_gb",
    "hours_left": "speed/hours_left",
    "epoch": "progress/epoch",
    "tokens_seen": "progress/tokens_seen",
    "hours": "progress/hours",
}
# The metrics next to the settings in TensorBoard's HParams view, which shows the newest value of each.
FINAL = ("bits_per_byte/valid", "loss/valid", "loss/train")
# Prefixes of the settings by which W&B and MLflow compare runs.
_COMPARED = (
    *("model.", "data.block_size", "data.batch_size", "data.stride", "data.mask_documents", "data.append_eos"),
    *("data.shuffle", "data.tokenizer", "trainer.precision", "trainer.accumulate_grad_batches"),
    *("trainer.gradient_clip_val", "trainer.devices", "trainer.num_nodes", "trainer.max_"),
)


def _group(name: str) -> str:
    """Return the name of a metric in TensorBoard; that of one text among several ends with the name of the text."""
    metric, slash, text = name.partition("/")
    return METRICS.get(metric, metric) + slash + text


class GroupedTensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger with grouped names, and settings without invented first values of metrics."""

    _session_end: Any = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({_group(name): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Write the settings now, so that the view also shows runs in progress."""
        from torch.utils.tensorboard.summary import hparams

        self.hparams.update(params)
        experiment, start, self._session_end = hparams(  # type: ignore[no-untyped-call]
            dict(params), dict.fromkeys(FINAL, 0.0)
        )
        self.experiment.file_writer.add_summary(experiment)
        self.experiment.file_writer.add_summary(start)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._session_end is not None and status == "success":
            self.experiment.file_writer.add_summary(self._session_end)
        super().finalize(status)


class AppendingCSVLogger(CSVLogger):
    """Lightning's CSVLogger, which shares the run's folder with TensorBoard and keeps the rows of earlier starts."""

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Keep an existing file; Lightning's method would delete it."""

    def save(self) -> None:
        path = Path(self.metrics_file_path)
        if not self.metrics_keys and path.is_file():  # of an earlier start, or of an earlier stage
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])
        with files.naming(path):
            super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Write the file again with new columns, so that a kill leaves the old file or the new one."""
        with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        lifecycle.write_metrics(Path(self.metrics_file_path), fieldnames, rows)


class MetricsRow:
    """The metrics of a step or validation, which the loggers get as one row.

    `LightningModule.log` would log the optimizer step as the metric `step`, which stays in `callback_metrics`, so a
    ModelCheckpoint that saves between log steps would put it into the names of its files. It also takes half a
    millisecond for each metric.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, Tensor | float], trainer: pl.Trainer) -> None:
        """Add metrics to the row, and pass them to the callbacks at once."""
        # float64, or Lightning would round a plain number to float32.
        added = {
            name: torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
            for name, value in metrics.items()
        }
        trainer.callback_metrics.update(added)
        self._metrics |= added

    def write(self, module: pl.LightningModule) -> None:
        """Log the row, unless it is empty, and begin another one."""
        if not self._metrics:
            return
        trainer = module.trainer
        row, step = {name: value.item() for name, value in self._metrics.items()}, trainer.global_step
        self._metrics.clear()
        for logger in trainer.loggers:
            logger.log_metrics(row, step)
            logger.save()
        if trainer.logged_metrics:  # of a user's callback: Lightning logs them in a row with this step and epoch
            position = {"step": float(step), **{name: value for name, value in row.items() if name == "epoch"}}
            module.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in position.items()})


def log_every(trainer: pl.Trainer) -> int:
    """Return the optimizer steps between log entries: Lightning sets the attribute, but does not declare it."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def make_loggers(
    root: str, user_loggers: list[Any], resumed: Path | None, step: int = 0, run_name: str | None = None
) -> list[Logger]:
    """Return TensorBoard and CSV in the run's folder, which is a new one or the resumed run's, and the user's loggers.

    TensorBoard hides what was logged after `step`, from which the run resumes.

    A TensorBoard or CSV logger of the user decides the run's folder itself, so it replaces gpt2kit's.
    """
    others = [logger for logger in user_loggers if isinstance(logger, Logger)]
    if any(isinstance(logger, TensorBoardLogger | CSVLogger) for logger in others):
        return others
    run = lifecycle.run_of(resumed) if resumed else None
    if resumed is None or run is None:
        board = GroupedTensorBoard(root, name=paths.LOGS, version=run_name)
        return [board, AppendingCSVLogger(root, name=paths.LOGS, version=board.version), *others]
    place: dict[str, Any] = {"save_dir": run.parent.parent, "name": run.parent.name, "version": run.name}
    board = GroupedTensorBoard(**place, purge_step=step + 1)
    return [board, AppendingCSVLogger(**place), *others]


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by which runs are compared, as a flat mapping to numbers and strings."""
    flat: dict[str, Any] = {"seed": settings["seed_everything"]}
    for name, value in lifecycle.flatten(settings).items():
        if value is None or not name.startswith(_COMPARED):
            continue
        if name.endswith(".class_path"):
            name, value = name.removesuffix(".class_path"), value.rsplit(".", 1)[-1]
        flat[name.replace(".init_args", "")] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


@rank_zero_only
def log_settings(logger: Logger, settings: dict[str, Any]) -> None:
    """Log settings as hyperparameters. In a resumed MLflow run, those that have changed become tags."""
    if isinstance(logger, MLFlowLogger):  # MLflow raises if a parameter changes
        saved = logger.experiment.get_run(logger.run_id).data.params
        for name in [name for name in settings if saved.get(name, str(settings[name])) != str(settings[name])]:
            logger.experiment.set_tag(logger.run_id, name, settings.pop(name))
    logger.log_hyperparams(settings)


@rank_zero_only
def write_text(loggers: list[Logger], name: str, text: str, step: int) -> None:
    """Send a Markdown text to each logger that supports it."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, step)
        elif isinstance(logger, WandbLogger):
            logger.log_text(name, ["step", "text"], [[str(step), text]])
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text, f"{name}/step={step}.md")
