"""Describe a run as plain data: text, model, steps, machine.

`run_summary` prints it. Each start of a run writes it to start.json, which plot.py's report reads.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from gpt2kit import __version__, files, hardware
from gpt2kit.commands import command_name
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.mixed_order import MixedOrder
from gpt2kit.model.backends import Choice
from gpt2kit.model.config import parameter_count
from gpt2kit.optim.trial import tiny_groups
from gpt2kit.runs import folder as run_folder
from gpt2kit.text.reader import describe_documents
from gpt2kit.text.splits import describe_split
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.training import loggers
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.run_state import describe_stages

RunInfo = dict[str, Any]

# Number of steps for which a schedule is shown if that of the run is not known.
_ASSUMED_STEPS = 10_000


def describe_text(data: TextDataModule) -> RunInfo:
    """Return the sizes of the splits, and the tokenizer."""
    splits: dict[str, RunInfo] = {}
    for split, store in ((split, data.store(split)) for split in data.splits):
        hashes = np.concatenate([*store.hashes()]) if store.documents else np.zeros(0)
        splits[split] = {
            "files": data.files[split],
            "documents": store.documents,
            "bytes": store.bytes,
            "tokens": store.tokens,
            "duplicates": len(hashes) - len(np.unique(hashes)),
            "fingerprint": store.fingerprint,
        }
    # The training files, held-out text included.
    texts = data.texts.of("train")
    held_out = dict.fromkeys(describe_split(data.texts.split_ranges(each)) for each in texts)
    text = data.texts.survey if any(held_out) else data.store("train")
    documents = dict.fromkeys(describe_documents(each.reader, each.paths) for each in texts)
    return {
        "splits": splits,
        "mix": describe_mix(data),
        "documents": text.documents,
        "bytes": text.bytes,
        "document": ", ".join(documents),
        "held_out": "; ".join(held_out),
        "notes": data.notes(),
        "vocabulary": data.vocab_size,
        "tokenizer": tokenizers.fingerprint(data.tokenizer),
    }


def describe_mix(data: TextDataModule) -> list[RunInfo]:
    """Return each of several training texts, with the passes over it in an epoch; nothing for one text."""
    stores, order = data.stores("train"), data.order(1)  # the passes do not depend on the batch
    if not isinstance(order, MixedOrder):
        return []
    return [
        {
            "name": text.name,
            "how": f"weight {text.weight:g}" if text.fraction is None else f"{text.fraction:.0%} of the blocks",
            "tokens": stores[text.name].tokens,
            "passes": passes,
        }
        for text, passes in zip(data.texts.of("train"), order.passes_per_epoch, strict=True)
    ]


def describe_model(gpt2: GPT2Module) -> RunInfo:
    """Return the model's architecture and size."""
    return {
        "shape": dict(gpt2.shape),
        "parameters": parameter_count(gpt2.shape),
        "embeddings": (gpt2.shape["vocab_size"] + gpt2.shape["n_positions"]) * gpt2.shape["n_embd"],
    }


def describe_run(trainer: pl.Trainer, data: TextDataModule, gpt2: GPT2Module, validation_interval: int) -> RunInfo:
    """Return steps, epochs and tokens, None if only the time is known; the optimizer and the schedule."""
    order, steps = data.order(data.global_batch(trainer)), None
    if trainer.max_steps > 0:
        steps = trainer.max_steps - data.first_step
    total = steps or _ASSUMED_STEPS
    optimizer = gpt2.make_optimizer(tiny_groups())
    return {
        "steps": steps,
        "stages": describe_stages(data),
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
        "command": [*command_name("train").split(), *arguments],
        "resumed": str(resumed) if resumed else None,
        "device": {"kind": device.type, "name": hardware.device_name(device), "count": trainer.world_size},
        "chosen": {name: [choice.value, choice.reason] for name, choice in choices.items()},
        "system": platform.platform(),
        "versions": {"gpt2kit": __version__, "python": platform.python_version(), **versions},
    }


def summarize(info: RunInfo, settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return the values by which TensorBoard's HParams view compares runs.

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


def record_start(info: RunInfo, settings: Mapping[str, Any], run_loggers: Sequence[Logger]) -> None:
    """Add a start to the run's start.json, and send its settings to the loggers. `settings`: the resolved config."""
    ids: dict[str, str] = {}
    for logger in run_loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(summarize(info, settings))
        if isinstance(logger, WandbLogger | MLFlowLogger):
            loggers.log_settings(logger, loggers.hyperparameters(settings) | summarize(info, settings))
            ids[type(logger).__name__] = str(logger.version)
    if info["folder"] is not None:
        run = Path(info["folder"])
        starts = [*run_folder.read_starts(run), info | {"loggers": ids}]
        files.write_text(run / run_folder.START, json.dumps(starts, indent=1, ensure_ascii=False) + "\n")
