"""Identity of a run's data, shape and freezing, as its checkpoints store it; typed access to what the trainer holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl

from gpt2kit import __version__
from gpt2kit.checkpoint import checkpoint
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.errors import CheckpointError
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.training.module import GPT2Module


def epochs(trainer: pl.Trainer) -> float:
    """Epochs done, from the position: optimizer steps over those of one epoch."""
    text = datamodule_of(trainer)
    return trainer.global_step / text.order(text.global_batch(trainer)).steps_per_epoch


def gpt2_of(trainer: pl.Trainer) -> GPT2Module:
    """The model that the trainer trains."""
    found = trainer.lightning_module
    assert isinstance(found, GPT2Module)
    return found


def datamodule_of(trainer: pl.Trainer) -> TextDataModule:
    """The text that the trainer trains on."""
    found = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(found, TextDataModule)
    return found


def describe(
    gpt2: GPT2Module, text: TextDataModule, step: int, global_batch: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """The `gpt2kit` entry: plain numbers and strings only. `settings` is the resolved config, to be read by people."""
    store = text.store("train")
    return {
        "format": checkpoint.FORMAT,
        "version": __version__,
        "shape": dict(gpt2.shape),
        "tokenizer": tokenizers.to_json(text.tokenizer),
        "data": identity(text, global_batch),
        "reader": text.reader.identity(),
        "append_eos": text.append_eos,
        "document_start": text.document_start,
        "test_files": text.files["test"],
        "test_share": asdict(text.shares["test"]) if "test" in text.shares else None,
        "train_share": asdict(text.shares["train"]) if "train" in text.shares else None,
        "train_tokens": store.tokens,
        "settings": settings,
        "step": step,
        "tokens_seen": step * global_batch * text.block_size,
        "start": gpt2.start,
        "freeze": {**gpt2.frozen.identity(), "lora": gpt2.lora},
    }


def identity(text: TextDataModule, global_batch: int) -> dict[str, Any]:
    """What must be the same for a run to go on: with it, a step means the same samples.

    Without streaming `window_shards` and `token_files` are None: only a streamed text's order depends on its files.
    """
    store = text.store("train")
    return {
        "text": store.fingerprint,
        "block_size": text.block_size,
        "global_batch": global_batch,
        "seed": text.seed,
        "shuffle": text.shuffle,
        "stride": text.stride,
        "mask_documents": text.mask_documents,
        "window_shards": text.window_shards,
        "token_files": store.files_digest if text.window_shards is not None else None,
    }


def saved_identity(saved: dict[str, Any], text: TextDataModule) -> dict[str, Any]:
    """Return the identity that a checkpoint holds. Older checkpoints name the text by its token files."""
    if "token_files" in saved or saved.get("text") != text.store("train").files_digest:
        return saved
    files = saved["text"] if saved.get("window_shards") is not None else None
    return {**saved, "text": text.store("train").fingerprint, "token_files": files}


def refuse_other_data(saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Raise if a resumed run would not see the samples that it would have seen."""
    different = [
        f"{name} was {saved.get(name)}, now {value}" for name, value in present.items() if saved.get(name) != value
    ]
    batch = saved.get("global_batch")
    devices = (
        f" (on another number of devices: --data.global_batch {batch} --trainer.accumulate_grad_batches 1)"
        if batch != present.get("global_batch")
        else ""
    )
    if different:
        raise CheckpointError(
            f"this checkpoint belongs to another run: {'; '.join(different)}. Resume with the same settings and text, "
            f"or start a new run{devices}"
        )


def refuse_other_shape(saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Raise if the weights would not fit; dropout may change in mid-run."""
    different = [
        f"model.{name} was {saved.get(name)}, now {value}"
        for name, value in present.items()
        if saved.get(name) != value and not name.endswith("_pdrop")
    ]
    if different:
        raise CheckpointError(
            f"this checkpoint has another model: {'; '.join(different)}. Leave the model's options out"
        )


def refuse_other_freeze(saved: object, gpt2: GPT2Module) -> None:
    """Raise if other parameters would be trained: the optimizer's state would not fit, or the run be another one."""
    if saved is not None and saved != {**gpt2.frozen.identity(), "lora": gpt2.lora}:
        raise CheckpointError(
            "this checkpoint's run has another model.freeze, freeze_steps or lora. Leave them as they were, or start "
            "a new run with model.init_from"
        )
