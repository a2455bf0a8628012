"""What a run is, as plain data: text, model, steps, machine, memory, files.

`plan` prints it, the run's folder keeps it in start.json, and plot.py's report shows it.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from gpt2kit import __version__, files, hardware
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.store import TokenStore
from gpt2kit.model.backends import Choice
from gpt2kit.model.config import parameter_count
from gpt2kit.runs import folder as run_folder
from gpt2kit.text.reader import Split
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.training import estimate, loggers
from gpt2kit.training.module import GPT2Module

RunInfo = dict[str, Any]

# The schedule of a run whose number of steps is not known is shown for this many.
_ASSUMED_STEPS = 10_000
# The next three constants are measured on CPUs, with glibc (bench/memory.py).
# Bytes that a process takes in addition once it trains: kernels made at the first step, logs, threads.
_LIBRARY_BYTES = 90_000_000
# The fraction of memory that compiled blocks and a compiled head still need. Dropout keeps its masks.
_COMPILED = {"activations": 0.85, "logits": 2 / 3}
# The fraction of the memory for activations that lies idle between blocks in use: freed, but too small for the next
# tensors, so the process still has it.
_FRAGMENTED = 0.55


def describe_text(data: TextDataModule) -> RunInfo:
    """Return the sizes of the splits, and the tokenizer."""
    splits: list[Split] = [split for split in get_args(Split) if data.files[split]]
    return {
        "splits": {split: {"files": data.files[split], **_describe_store(data.store(split))} for split in splits},
        "notes": data.notes(),
        "vocabulary": data.vocab_size,
        "tokenizer": tokenizers.fingerprint(data.tokenizer),
    }


def _describe_store(store: TokenStore) -> RunInfo:
    hashes = np.concatenate([*store.hashes()]) if store.documents else np.zeros(0)
    return {
        "documents": store.documents,
        "bytes": store.bytes,
        "tokens": store.tokens,
        "duplicates": len(hashes) - len(np.unique(hashes)),
        "fingerprint": store.fingerprint,
    }


def describe_model(gpt2: GPT2Module) -> RunInfo:
    """Return the model's architecture and size."""
    return {
        "shape": dict(gpt2.shape),
        "parameters": parameter_count(gpt2.shape),
        "embeddings": (gpt2.shape["vocab_size"] + gpt2.shape["n_positions"]) * gpt2.shape["n_embd"],
    }


def describe_run(trainer: pl.Trainer, data: TextDataModule, gpt2: GPT2Module, validation_interval: int) -> RunInfo:
    """Return steps, epochs and tokens, None if only the time is known; the optimizer and the schedule."""
    order, steps = data.order(data.global_batch(trainer)), trainer.max_steps if trainer.max_steps > 0 else None
    total = steps or _ASSUMED_STEPS
    # One matrix and one vector, to see the learning rate of each group.
    groups = [{"params": [torch.nn.Parameter(torch.zeros(shape))]} for shape in ((2, 2), (2,))]
    optimizer = gpt2.optimizer(groups)
    return {
        "steps": steps,
        "steps_per_epoch": order.steps_per_epoch,
        "epochs": steps and steps / order.steps_per_epoch,
        "global_batch": order.global_batch,
        "block_size": data.block_size,
        "tokens": steps and steps * order.global_batch * data.block_size,
        "validation_every": validation_interval if data.files["valid"] else None,
        "optimizer": type(optimizer).__name__,
        "learning_rates": [float(group["lr"]) for group in optimizer.param_groups],
        "schedule_name": type(gpt2.schedule).__name__,
        "schedule": [round(gpt2.schedule(round(i * (total - 1) / 47), total), 4) for i in range(48)],
    }


def describe_start(
    trainer: pl.Trainer, choices: Mapping[str, Choice], arguments: list[str], resumed: Path | None
) -> RunInfo:
    """Return the command, the machine and what `auto` chose."""
    device = trainer.strategy.root_device
    versions = {name: metadata.version(name) for name in ("torch", "pytorch-lightning", "transformers", "tokenizers")}
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": ["trainer.py", *arguments],
        "resumed": str(resumed) if resumed else None,
        "device": {"kind": device.type, "name": hardware.device_name(device), "count": trainer.world_size},
        "chosen": {name: [choice.value, choice.reason] for name, choice in choices.items()},
        "system": platform.platform(),
        "versions": {"gpt2kit": __version__, "python": platform.python_version(), **versions},
    }


def estimate_memory(trainer: pl.Trainer, data: TextDataModule, gpt2: GPT2Module) -> RunInfo:
    """Return the bytes of each part at a step's peak, and what the device has."""
    device, batch = trainer.strategy.root_device, (data.batch_size, data.block_size)
    passes, update = estimate.estimate_step(
        gpt2, batch, str(trainer.precision), device, trainer.accumulate_grad_batches
    ).values()
    if gpt2.compiled != "off":
        passes["logits"] = round(_COMPILED["logits"] * passes["logits"])
        if not any(gpt2.shape[f"{name}_pdrop"] for name in ("embd", "attn", "resid")):
            passes["activations"] = round(_COMPILED["activations"] * passes["activations"])
    parts = max(passes, update, key=lambda moment: sum(moment.values()))
    process = 0
    if device.type == "cpu":
        process = hardware.resident_memory() - sum(p.nbytes for p in gpt2.parameters()) + _LIBRARY_BYTES
        # At the update, too: it does not get back all that the passes have freed.
        parts["fragmented memory"] = round(_FRAGMENTED * (passes["activations"] + passes["16-bit copies"]))
    if trainer.world_size > 1:
        parts["exchange between devices"] = parts["weights"]
    free, machine = hardware.device_memory(device) or (None, None)
    total = process + sum(parts.values())
    return {"parts": {"program": process, **parts}, "total": total, "free": free, "machine": machine}


def describe_files(folder: str | None, gpt2: GPT2Module, checkpoints: int) -> RunInfo:
    """Return what is written where, and the free space of the disk."""
    if folder is None:
        return {"folder": None}
    path = Path(folder).absolute()
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    size = estimate.checkpoint_bytes(gpt2)
    return {"folder": folder, "checkpoint": size, "kept": checkpoints, "free": shutil.disk_usage(existing).free}


def summarize(info: RunInfo, settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return what runs are compared by in TensorBoard's HParams view.

    It shows the first five in the order of their names, so the choices of `auto` have names that come last.
    """
    shape, run, choices = info["model"]["shape"], info["run"], info["start"]["chosen"]
    return {
        "block_size": run["block_size"],
        "dropout": shape["resid_pdrop"],
        "global_batch": run["global_batch"],
        "learning_rate": run["learning_rates"][0],
        "n_embd": shape["n_embd"],
        "n_head": shape["n_head"],
        "n_layer": shape["n_layer"],
        "optimizer": run["optimizer"],
        "parameters": info["model"]["parameters"],
        "schedule": run["schedule_name"],
        "seed": int(settings["seed_everything"]),
        "vocabulary": info["text"]["vocabulary"],
        **{f"uses_{name}": value for name, (value, _) in choices.items()},
    }


class RunInfoCallback(Callback):
    """Adds the info of this start to the run's start.json, and sends its settings to the loggers.

    Args:
        settings: the resolved config as plain types.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.info: RunInfo = {}
        self._folder: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._folder = trainer.log_dir  # a collective call

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self.info:
            return
        ids: dict[str, str] = {}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(summarize(self.info, self.settings))
            if isinstance(logger, WandbLogger | MLFlowLogger):
                loggers.log_settings(
                    logger, loggers.hyperparameters(self.settings) | summarize(self.info, self.settings)
                )
                ids[type(logger).__name__] = str(logger.version)
        if self._folder is not None:
            run = Path(self._folder)
            starts = [*run_folder.read_starts(run), self.info | {"loggers": ids}]
            files.write_text(run / run_folder.START, json.dumps(starts, indent=1, ensure_ascii=False) + "\n")
