"""Where figures go: the run's CSV file, and TensorBoard with its scalars in groups and the settings beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint
from gpt2kit.runs import lifecycle

GROUPS = {
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
"""What TensorBoard calls the figures, so that those which belong together stand together."""

FINAL = ("bits_per_byte/valid", "loss/valid", "loss/train")
"""The figures beside the settings in TensorBoard's HParams view; it shows the newest of each."""


class Board(TensorBoardLogger):
    """Lightning's TensorBoardLogger with grouped names, and settings without a made-up first value of each figure."""

    _ends: Any = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({GROUPS.get(name, name): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Write the settings now, so that a run which is under way is in the view, too."""
        from torch.utils.tensorboard.summary import hparams

        self.hparams.update(params)
        opens, begins, self._ends = hparams(dict(params), dict.fromkeys(FINAL, 0.0))  # type: ignore[no-untyped-call]
        for part in (opens, begins):
            self.experiment.file_writer.add_summary(part)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._ends is not None and status == "success":
            self.experiment.file_writer.add_summary(self._ends)
        super().finalize(status)


class RunCSV(CSVLogger):
    """Lightning's CSVLogger that shares the run's folder with TensorBoard and keeps the rows that are there."""

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _KeepingWriter(log_dir=self.log_dir)
        return self._experiment


class _KeepingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                self.metrics_keys = file.readline().strip().split(",")

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """A new column: the file is written anew, whole or not at all."""
        path = Path(self.metrics_file_path)
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(path, text.getvalue())


def make_loggers(root: str, wanted: list[Any], resumed: Path | None) -> list[Logger]:
    """TensorBoard and CSV in one folder, a new one, or that of the run that is resumed; then the user's own.

    One of theirs that has a folder for the run (TensorBoard, CSV) takes the place of ours.
    """
    theirs = [logger for logger in wanted if isinstance(logger, Logger)]
    if any(isinstance(logger, TensorBoardLogger | CSVLogger) for logger in theirs):
        return theirs
    run = lifecycle.run_of(resumed) if resumed else None
    if resumed is None or run is None:
        board = Board(root, name=lifecycle.LOGS)
        return [board, RunCSV(root, name=lifecycle.LOGS, version=board.version), *theirs]
    place: dict[str, Any] = {"save_dir": run.parent.parent, "name": run.parent.name, "version": run.name}
    return [Board(**place, purge_step=checkpoint.step_of(resumed) + 1), RunCSV(**place), *theirs]


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the resolved settings those that runs are compared by, flat, as plain numbers and strings."""
    found = {"seed": settings.get("seed_everything")}
    for part, names in _COMPARED.items():
        values = settings.get(part) or {}
        found |= {f"{part}.{name}": value for name, value in values.items() if not names or name in names}
    flat: dict[str, Any] = {}
    for name, value in found.items():
        flat |= _plain(name, value)
    return flat


_COMPARED: dict[str, set[str]] = {
    "model": set(),
    "data": {"block_size", "batch_size", "stride", "mask_documents", "append_eos", "shuffle", "tokenizer"},
    "trainer": {
        *("precision", "accumulate_grad_batches", "gradient_clip_val", "devices", "num_nodes"),
        *("max_epochs", "max_steps", "max_tokens", "max_time"),
    },
}


def _plain(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping) and "class_path" in value:
        kind = {name: str(value["class_path"]).rsplit(".", 1)[-1]}
        return kind | _plain(name, dict(value.get("init_args") or {}))
    if isinstance(value, Mapping):
        return {k: v for key, one in value.items() for k, v in _plain(f"{name}.{key}", one).items()}
    return {name: value if isinstance(value, bool | int | float | str) else str(value)}


@rank_zero_only
def write_text(loggers: list[Logger], name: str, text: str, step: int) -> None:
    """Send a text in Markdown to each logger that can hold one."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, step)
        elif isinstance(logger, WandbLogger):
            logger.log_text(name, ["step", "text"], [[str(step), text]])
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text, f"{name}/step={step}.md")
