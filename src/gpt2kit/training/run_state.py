"""Describe a run for its checkpoints, and check that a resumed run agrees with them; typed access to the trainer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import pytorch_lightning as pl
from torch.optim.lr_scheduler import LambdaLR

from gpt2kit import __version__
from gpt2kit.checkpoint import checkpoint
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.mixed_order import MixedOrder
from gpt2kit.data.texts import Text
from gpt2kit.errors import CheckpointError
from gpt2kit.model.lora import LORA_SCALE, lora_scale
from gpt2kit.text.splits import Split
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.training.module import GPT2Module


def gpt2_of(trainer: pl.Trainer) -> GPT2Module:
    """Return the model that the trainer trains."""
    gpt2 = trainer.lightning_module
    assert isinstance(gpt2, GPT2Module)
    return gpt2


def datamodule_of(trainer: pl.Trainer) -> TextDataModule:
    """Return the data module that the trainer trains on."""
    text = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(text, TextDataModule)
    return text


def epochs_done(trainer: pl.Trainer) -> float:
    """Return the number of epochs of the stage so far, which Lightning does not know: it sees one endless epoch."""
    text = datamodule_of(trainer)
    return stage_steps(trainer) / text.order(text.global_batch(trainer)).steps_per_epoch


def stage_steps(trainer: pl.Trainer) -> int:
    """Return the optimizer steps of the current stage so far."""
    return trainer.global_step - datamodule_of(trainer).first_step


def tokens_seen(trainer: pl.Trainer) -> int:
    """Return the tokens that the run has read so far, in all its stages."""
    text = datamodule_of(trainer)
    in_stage = stage_steps(trainer) * text.global_batch(trainer) * text.block_size
    return text.stages[-1].tokens_before + in_stage


def passes_done(trainer: pl.Trainer) -> dict[str, float]:
    """Return how often each of several training texts was read so far, by its name; nothing for one text."""
    text = datamodule_of(trainer)
    order = text.order(text.global_batch(trainer))
    if not isinstance(order, MixedOrder):
        return {}
    return dict(zip(text.stores("train"), order.passes(stage_steps(trainer)), strict=True))


def schedule_of(trainer: pl.Trainer) -> LambdaLR:
    """Return the schedule of the learning rates, which GPT2Module creates."""
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(schedule, LambdaLR)
    return schedule


def describe(trainer: pl.Trainer, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the `gpt2kit` entry of a checkpoint, of plain types. `settings` is the resolved config."""
    gpt2, text, step = gpt2_of(trainer), datamodule_of(trainer), trainer.global_step
    global_batch, validation = text.global_batch(trainer), gpt2.current_validation()
    return {
        "format": checkpoint.FORMAT,
        "version": __version__,
        "shape": dict(gpt2.shape),
        "tokenizer": tokenizers.to_json(text.tokenizer),
        "data": identity(text, global_batch),
        **_describe_texts(text),
        "append_eos": text.append_eos,
        "document_start": text.document_start,
        "train_tokens": text.store("train").tokens,
        "settings": settings,
        "step": step,
        "tokens_seen": tokens_seen(trainer),
        "stages": describe_stages(text),
        "start": gpt2.start,
        "freeze": freeze_identity(gpt2),
        "skipped": gpt2.guard.skipped,
        "val_bpb": validation.total.bits_per_byte if validation else None,
    }


def describe_stages(text: TextDataModule) -> list[dict[str, Any]]:
    """Return the stages of the run so far, with the files of each."""
    files = {each.name: each.files for each in text.texts.of("train") if each.fraction != 0}
    return [stage.describe() for stage in [*text.stages[:-1], replace(text.stages[-1], texts=files)]]


def _describe_texts(text: TextDataModule) -> dict[str, Any]:
    """Return how the training text is read, and the test text; of several texts, of each by its name."""

    def describe(each: Text, split: Split) -> dict[str, Any]:
        """Return the name of a text and how it is read. The checkpoint format calls the range of a split its share."""
        split_range = text.texts.split_ranges(each).get(split)
        share = None if split_range is None else asdict(split_range)
        return {"name": each.name, "reader": each.reader.identity(), "share": share}

    stores = text.stores("train")
    training = [
        {
            **describe(each, "train"),
            "weight": each.weight,
            "tokens": stores[each.name].tokens,
            "text": stores[each.name].fingerprint,
        }
        for each in text.texts.of("train")
    ]
    tests = [
        {**describe(each, "test"), "files": each.files, "text": text.stores("test")[each.name].fingerprint}
        for each in text.texts.of("test")
    ]
    test = tests[0] if tests and not tests[0]["name"] else {}
    return {
        "reader": text.reader.identity(),
        "train_share": None if training[0]["name"] else training[0]["share"],
        "test_files": text.files["test"],
        "test_text": test.get("text"),
        "test_share": test.get("share"),
        "train_texts": training if training[0]["name"] else [],
        "test_texts": tests if tests and tests[0]["name"] else [],
    }


def identity(text: TextDataModule, global_batch: int) -> dict[str, Any]:
    """Return the settings that a resumed run must not change, so that each step sees the same samples."""
    store, is_streamed = text.store("train"), text.window_shards is not None
    return {
        "text": store.fingerprint,
        "block_size": text.block_size,
        "global_batch": global_batch,
        "seed": text.seed,
        "shuffle": text.shuffle,
        "stride": text.stride,
        "mask_documents": text.mask_documents,
        "window_shards": text.window_shards,
        "token_files": store.files_digest if is_streamed else None,  # only then does the order depend on the files
        "order_version": text.order_version,
        "mix": text.mix(),
    }


def saved_identity(saved: dict[str, Any], text: TextDataModule) -> dict[str, Any]:
    """Return the identity that a checkpoint stores, in the current format.

    Older checkpoints identify the text by its token files, and have the first version of the order.
    """
    saved = {"order_version": 1, **saved}
    if "token_files" in saved or saved.get("text") != text.store("train").files_digest:
        return saved
    files = saved["text"] if saved.get("window_shards") is not None else None
    return {**saved, "text": text.store("train").fingerprint, "token_files": files}


def refuse_other_data(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise CheckpointError if the resumed run would see different samples."""
    changes = _changes(saved, current, current)
    if not changes:
        return
    advice = "Resume with the same settings and text, or start a new run"
    batch = saved.get("global_batch")
    if batch != current.get("global_batch"):
        batch_option = f"--data.global_batch_size {batch} --trainer.accumulate_grad_batches 1"
        advice += f" (with a different number of devices: {batch_option})"
    raise CheckpointError(f"this checkpoint belongs to a different run: {'; '.join(changes)}. {advice}")


def changed_texts(metadata: dict[str, Any], text: TextDataModule, only_text: str) -> list[str]:
    """Return the names of the earlier texts that are not those of the checkpoint from which a stage begins."""
    saved = {only_text: metadata["data"].get("text")} if only_text else {}
    saved |= {each.get("name"): each.get("text") for each in metadata.get("train_texts") or []}
    stores = text.stores("train")
    return [name for name, old in saved.items() if name in stores and old not in (None, stores[name].fingerprint)]


def refuse_other_tokenizer(metadata: dict[str, Any], text: TextDataModule) -> None:
    """Raise CheckpointError if another stage of a run would have another tokenizer."""
    if metadata["tokenizer"] != tokenizers.to_json(text.tokenizer):
        raise CheckpointError(
            "data.tokenizer: not that of the checkpoint, which all stages of a run have. Omit it, or start a new run "
            "with model.init_from and model.replace_tokenizer true"
        )


def refuse_other_shape(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise CheckpointError if the weights do not fit. Dropout may change during a run."""
    changes = _changes(saved, current, [name for name in current if not name.endswith("_pdrop")])
    if changes:
        changes = [f"model.{change}" for change in changes]
        raise CheckpointError(
            f"this checkpoint has a different model: {'; '.join(changes)}. Leave out the model's options when resuming"
        )


def freeze_identity(gpt2: GPT2Module) -> dict[str, Any]:
    """Return the frozen parts and LoRA's rank and alpha, under the names that checkpoints use."""
    identity = {**gpt2.frozen.identity(), "lora": gpt2.lora_r or None}
    has_default_scale = lora_scale(gpt2.lora_r, gpt2.lora_alpha) == LORA_SCALE
    return identity if has_default_scale else {**identity, "lora_alpha": gpt2.lora_alpha}


def refuse_other_freeze(saved: object, gpt2: GPT2Module) -> None:
    """Raise CheckpointError if other parameters would be trained: the optimizer's state would not fit."""
    if saved is not None and saved != freeze_identity(gpt2):
        raise CheckpointError(
            "this checkpoint was trained with other values of model.freeze, model.freeze_steps, model.lora_r or "
            "model.lora_alpha. Use the same ones, or start a new run with model.init_from"
        )


def _changes(saved: dict[str, Any], current: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [
        f"{name} was {saved.get(name)!s:.80}, now {current[name]}" for name in names if saved.get(name) != current[name]
    ]
