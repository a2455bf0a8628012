"""What a run is, as plain data: text, model, steps, machine, memory, files. `plan` says it, the run's folder keeps it
(`start.json`), and plot.py's report shows it."""

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

Facts = dict[str, Any]
_LIBRARIES = 90_000_000
"""Bytes that a program on a CPU takes more of once it trains: kernels made at the first step, logs, threads."""
_FUSED = {"activations": 0.85, "logits": 2 / 3}
"""The share of parts that is still there when blocks and head are compiled; measured on a CPU (bench/memory.py)."""
_FUSED_DROPOUT = _FUSED | {"activations": 1.0}
"""The same with dropout: what was dropped is kept."""
_SHOWN = 10_000
"""Steps for which a schedule is shown where their number is not known."""
_HELD = 0.55
"""Of the memory for activations on a CPU, the share that lies idle between blocks in use: freed, and not fitting the
next ones. Measured (bench/memory.py) with glibc; nothing of it is the model's, yet the process has it."""


def text_facts(data: TextDataModule) -> Facts:
    """Of each split what it holds; and the tokenizer."""
    splits: list[Split] = [split for split in get_args(Split) if data.files[split]]
    return {
        "splits": {split: {"files": data.files[split], **_store_facts(data.store(split))} for split in splits},
        "notes": data.notes(),
        "vocabulary": data.vocab_size,
        "tokenizer": tokenizers.fingerprint(data.tokenizer),
    }


def _store_facts(store: TokenStore) -> Facts:
    hashes = np.concatenate([*store.hashes()]) if store.documents else np.zeros(0)
    return {
        "documents": store.documents,
        "bytes": store.bytes,
        "tokens": store.tokens,
        "duplicates": len(hashes) - len(np.unique(hashes)),
        "fingerprint": store.fingerprint,
    }


def model_facts(gpt2: GPT2Module) -> Facts:
    """The model's shape and size."""
    return {
        "shape": dict(gpt2.shape),
        "parameters": parameter_count(gpt2.shape),
        "embeddings": (gpt2.shape["vocab_size"] + gpt2.shape["n_positions"]) * gpt2.shape["n_embd"],
    }


def run_facts(trainer: pl.Trainer, data: TextDataModule, gpt2: GPT2Module, every: int) -> Facts:
    """Steps, epochs, tokens (None where only the time is known), and the schedule of the learning rate."""
    order, steps = data.order(data.global_batch(trainer)), trainer.max_steps if trainer.max_steps > 0 else None
    shown = steps or _SHOWN
    return {
        "steps": steps,
        "steps_per_epoch": order.steps_per_epoch,
        "epochs": steps and steps / order.steps_per_epoch,
        "global_batch": order.global_batch,
        "block_size": data.block_size,
        "tokens": steps and steps * order.global_batch * data.block_size,
        "validation_every": every if data.files["valid"] else None,
        **_optimizer(gpt2),
        "schedule_name": type(gpt2.schedule).__name__,
        "schedule": [round(gpt2.schedule(round(i * (shown - 1) / 47), shown), 4) for i in range(48)],
    }


def _optimizer(gpt2: GPT2Module) -> Facts:
    """Its name and the learning rates of hidden matrices and of the rest, as one that is made of them says."""
    parts = [{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}, {"params": [torch.nn.Parameter(torch.zeros(2))]}]
    made = gpt2.optimizer(parts)
    return {"optimizer": type(made).__name__, "learning_rates": [float(group["lr"]) for group in made.param_groups]}


def start_facts(trainer: pl.Trainer, chosen: Mapping[str, Choice], args: list[str], resumed: Path | None) -> Facts:
    """The machine, what `auto` chose, and the words that began the run."""
    device = trainer.strategy.root_device
    versions = {name: metadata.version(name) for name in ("torch", "pytorch-lightning", "transformers", "tokenizers")}
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": ["trainer.py", *args],
        "resumed": str(resumed) if resumed else None,
        "device": {"kind": device.type, "name": hardware.device_name(device), "count": trainer.world_size},
        "chosen": {name: [choice.value, choice.reason] for name, choice in chosen.items()},
        "system": platform.platform(),
        "versions": {"gpt2kit": __version__, "python": platform.python_version(), **versions},
    }


def memory_facts(trainer: pl.Trainer, data: TextDataModule, gpt2: GPT2Module) -> Facts:
    """The estimate of a step's memory by parts, at its peak, and what the device has."""
    device = trainer.strategy.root_device
    batch = (data.batch_size, data.block_size)
    passes, update = estimate.of_step(
        gpt2, batch, str(trainer.precision), device, trainer.accumulate_grad_batches
    ).values()
    if gpt2.compiled != "off":
        fused = _FUSED_DROPOUT if any(gpt2.shape[f"{name}_pdrop"] for name in ("embd", "attn", "resid")) else _FUSED
        passes |= {part: round(share * passes[part]) for part, share in fused.items()}
    parts = max(passes, update, key=lambda moment: sum(moment.values()))
    program = 0
    if device.type == "cpu":
        program = hardware.resident_memory() - sum(p.nbytes for p in gpt2.parameters()) + _LIBRARIES
        # The update does not get back all that the passes have freed.
        parts["held back by the system"] = round(_HELD * (passes["activations"] + passes["16-bit copies"]))
    if trainer.world_size > 1:
        parts["exchange between devices"] = parts["weights"]
    free, machine = hardware.device_memory(device) or (None, None)
    return {
        "parts": {"program": program, **parts},
        "total": program + sum(parts.values()),
        "free": free,
        "machine": machine,
    }


def file_facts(folder: str | None, gpt2: GPT2Module, kept: int) -> Facts:
    """What is written where, and what the disk has."""
    if folder is None:
        return {"folder": None}
    above = next(parent for parent in [Path(folder).absolute(), *Path(folder).absolute().parents] if parent.exists())
    size = estimate.state_bytes(gpt2)
    return {"folder": folder, "checkpoint": size, "kept": kept, "free": shutil.disk_usage(above).free}


def compared(facts: Facts, settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """What runs are compared by in TensorBoard's HParams view, which shows the first five by their names; so what auto
    has chosen comes last."""
    shape, run, chosen = facts["model"]["shape"], facts["run"], facts["start"]["chosen"]
    return {
        "block_size": run["block_size"],
        "dropout": shape["resid_pdrop"],
        "global_batch": run["global_batch"],
        "learning_rate": run["learning_rates"][0],
        "n_embd": shape["n_embd"],
        "n_head": shape["n_head"],
        "n_layer": shape["n_layer"],
        "optimizer": run["optimizer"],
        "parameters": facts["model"]["parameters"],
        "schedule": run["schedule_name"],
        "seed": int(settings["seed_everything"]),
        "vocabulary": facts["text"]["vocabulary"],
        **{f"uses_{name}": value for name, (value, _) in chosen.items()},
    }


class RunInfoCallback(Callback):
    """Keeps the facts of this start in the run's folder, and its settings with each logger.

    Args:
        settings: the resolved config as plain types.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.facts: Facts = {}
        self._folder: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._folder = trainer.log_dir  # asks all ranks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self.facts:
            return
        ids: dict[str, str] = {}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(compared(self.facts, self.settings))
            if isinstance(logger, WandbLogger | MLFlowLogger):
                logger.log_hyperparams(loggers.hyperparameters(self.settings) | compared(self.facts, self.settings))
                ids[type(logger).__name__] = str(logger.version)
        if self._folder is not None:
            run = Path(self._folder)
            starts = [*run_folder.read_starts(run), self.facts | {"loggers": ids}]
            files.write_text(run / run_folder.START, json.dumps(starts, indent=1, ensure_ascii=False) + "\n")
