"""Export a checkpoint as a Hugging Face folder: write it, load it with transformers in a fresh process, and compare."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gpt2kit import __version__, files
from gpt2kit.checkpoint import adapter as adapters
from gpt2kit.checkpoint import huggingface
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError, MachineError, UserError, first_line
from gpt2kit.export import card as model_card
from gpt2kit.export import gguf as gguf_file
from gpt2kit.export import reload_check
from gpt2kit.model.config import Dtype, GGUFType
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import pretrained
from gpt2kit.tokenization import tokenizer as tokenizers

CARD, GENERATION = "README.md", "generation_config.json"
FILES = {huggingface.CONFIG, huggingface.WEIGHTS, pretrained.TOKENIZER, tokenizers.SETTINGS, CARD, GENERATION}
# --force only replaces a folder that contains no files other than these.
REPLACEABLE = {*FILES, gguf_file.NAME, gguf_file.MODELFILE, adapters.CONFIG, adapters.WEIGHTS}
RepositoryKind = Literal["model", "space"]
# Number of tokens to compare; half of them are a greedy continuation.
_LENGTH = 64


@dataclass(frozen=True)
class Agreement:
    """How closely an exported folder, or an adapter and its base, agree with their checkpoint."""

    largest: float  # difference of logits between the two, with the same rounded weights
    allowed: float  # difference that the order of float32 sums can cause
    rounding: float  # difference of logits due to rounding the weights to 16 bits; 0 for float32
    tokens: int = 0  # number of tokens of a greedy continuation that agree; not compared for an adapter
    gguf_rounding: float = 0.0  # as `rounding`, for the weights in the GGUF file


def refuse_other_files(
    target: Path, force: bool, label: str | None = None, replaceable: Collection[str] = REPLACEABLE
) -> None:
    """Raise unless `target` is new or empty, or contains only an export that may be replaced.

    `label` is what an error calls the folder. Default: the value of --output_dir.
    """
    label = label or f"--output_dir {target}:"
    if target.exists() and not target.is_dir():
        raise UserError(f"{label} is a file. Name a folder")
    present = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    others = [name for name in present if name not in replaceable]
    if others:
        raise UserError(f"{label} contains other files ({', '.join(others[:3])}). Name another folder")
    if present and not force:
        raise UserError(f"{label} already exists. Name another folder, or replace it with --force")
    if present and not is_exported(target):
        raise UserError(f"{label} is not an earlier export. Name another folder")


def is_exported(folder: Path) -> bool:
    """Return whether a folder was written by export.py: it has plain files only, one of them with a version."""
    try:
        has_version = huggingface.VERSION_KEY in files.parse_json(files.read_limited(folder / huggingface.CONFIG))
    except (OSError, TypeError, ValueError):
        has_version = False
    return (has_version or adapters.is_exported(folder)) and all(
        path.is_file() and not path.is_symlink() for path in folder.iterdir()
    )


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder; if the block succeeds, it is synced and renamed to `target`."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.", suffix=".tmp", dir=target.parent, ignore_cleanup_errors=True
    ) as scratch:
        temporary, previous = Path(scratch, "new"), Path(scratch, "old")
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            path.chmod(temporary.stat().st_mode & 0o666)  # safetensors lets only the owner read its files
            files.sync_file(path)
        if target.exists():
            target.rename(previous)
        try:
            temporary.rename(target)
        except OSError:
            if previous.exists():
                previous.rename(target)
            raise
        files.sync_folder(target.parent)


def write(
    opened: LoadedCheckpoint,
    folder: Path,
    name: str,
    dtype: Dtype,
    gguf_type: GGUFType | None = None,
    details: model_card.Details = model_card.Details(),
) -> None:
    """Write all files of the export, without the padded rows of the embedding; with `gguf_type` also a GGUF file."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    shape, end = opened.shape, tokenizers.find_eos(opened.tokenizer)
    config = GPT2Config(**shape, bos_token_id=end, eos_token_id=end, **{huggingface.VERSION_KEY: __version__})
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    state = round_weights(opened, dtype)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        do_sample=True,
        max_new_tokens=max(shape["n_positions"] // 2, 1),  # the default of transformers may exceed the context
    )
    logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size="1000GB")
    logging.enable_progress_bar()
    tokenizers.save(tokenizers.begin_texts(opened.tokenizer), folder)
    files.write_text(folder / CARD, model_card.render_card(opened, name, dtype, details))
    if gguf_type:
        state = round_weights(opened, "float32")
        gguf_file.write(folder / gguf_file.NAME, shape, state, opened.tokenizer, name, gguf_type)
        files.write_text(folder / gguf_file.MODELFILE, gguf_file.modelfile(shape))


def round_weights(opened: LoadedCheckpoint, dtype: Dtype) -> dict[str, torch.Tensor]:
    """Return the tensors in `dtype`; input and output embedding are one tensor, without padded rows."""
    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in opened.state.items()}
    embedding = state["transformer.wte.weight"][: opened.shape["vocab_size"]].clone()
    state |= {"transformer.wte.weight": embedding, "lm_head.weight": embedding}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name}: too large for {dtype}. Export as bfloat16 or float32")
    return state


def check(opened: LoadedCheckpoint, folder: Path, dtype: Dtype, gguf_type: GGUFType | None = None) -> Agreement:
    """Load the folder in a fresh process; compare logits, a greedy continuation and the tokenizer with gpt2kit's."""
    shape = opened.shape
    length = min(_LENGTH, shape["n_positions"])
    prompt = max(length // 2, 1)
    weights = {name: tensor.to(getattr(torch, dtype)).float() for name, tensor in opened.state.items()}
    gpt2 = GPT2.from_state(shape, weights)  # with the weights that are in the folder
    ids = continue_greedily(gpt2, torch.linspace(0, shape["vocab_size"] - 1, prompt).long().tolist(), length)
    text = tokenizers.decode(opened.tokenizer, ids[:prompt])
    reloaded = reload_folder(folder, ids, prompt, text)
    logits = compute_logits(gpt2, ids)
    rounding = float((logits - compute_logits(opened.model, ids)).abs().max())
    if reloaded["problems"] or not reloaded["tied"] or reloaded["logits"].shape != logits.shape:
        raise CheckpointError(
            f"the exported model is not complete: {reloaded['problems']}, tied {reloaded['tied']}, "
            f"logits {tuple(reloaded['logits'].shape)} for {tuple(logits.shape)}. Nothing was written"
        )
    largest, gguf_rounding = float((logits - reloaded["logits"]).abs().max()), 0.0
    if gguf_type:
        gguf_logits = compute_logits(GPT2.from_state(shape, gguf_file.round_weights(opened.state, gguf_type)), ids)
        largest = max(largest, float((gguf_logits - reloaded["gguf"]).abs().max()))
        gguf_rounding = float((gguf_logits - compute_logits(opened.model, ids)).abs().max())
    allowed = 1e-4 * max(1.0, float(logits.abs().max()))  # a different order of float32 sums may change this much
    tokens = count_agreeing(ids, reloaded["greedy"], logits, allowed, prompt)
    if not largest <= allowed or tokens < 0:
        raise CheckpointError(
            f"the exported model differs from the checkpoint: logits differ by {largest:g} (rounding explains "
            f"{allowed:g}), and {max(tokens, 0)} tokens of a greedy continuation agree. Nothing was written"
        )
    end = tokenizers.find_eos(opened.tokenizer)
    is_begun = reloaded["begun"] == [end] or end is None
    if reloaded["ids"] != tokenizers.encode(opened.tokenizer, text) or not is_begun:
        raise CheckpointError(
            "the exported tokenizer gives different ids than the checkpoint's. Nothing was written; please report it"
        )
    return Agreement(largest, allowed, rounding, tokens, gguf_rounding)


@torch.no_grad()
def compute_logits(gpt2: GPT2, ids: list[int]) -> torch.Tensor:
    """Return the logits after each of the ids, `[len(ids), vocab_size]` in float32."""
    logits: torch.Tensor = gpt2(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0]
    return logits[:, : gpt2.shape["vocab_size"]].float()


def continue_greedily(gpt2: GPT2, ids: list[int], length: int) -> list[int]:
    """Continue `ids` to `length` greedily, also after an end-of-document token."""
    ids = list(ids)
    while len(ids) < length:
        ids.append(int(compute_logits(gpt2, ids)[-1].argmax()))
    return ids


def count_agreeing(ids: list[int], other_ids: list[int], logits: torch.Tensor, allowed: float, prompt: int) -> int:
    """Return how many tokens of two continuations agree; -1 if they differ where the two logits are not nearly tied."""
    if len(other_ids) < len(ids):
        return -1
    for i in range(prompt, len(ids)):
        if ids[i] != other_ids[i]:
            gap = float(logits[i - 1, ids[i]] - logits[i - 1, other_ids[i]])
            return i - prompt if gap <= 2 * allowed else -1
    return len(ids) - prompt


def reload_folder(folder: Path, ids: list[int], prompt: int, text: str, adapter: str | None = None) -> dict[str, Any]:
    """Run `reload_check.reload` in a process that does not import gpt2kit, and return its results."""
    with tempfile.TemporaryDirectory(prefix="gpt2kit-export-") as scratch:
        results = Path(scratch) / "results.pt"
        values = {"folder": str(folder.absolute()), "ids": ids, "prompt": prompt, "text": text, "adapter": adapter}
        arguments = json.dumps(values)
        process = subprocess.run(
            [sys.executable, "-P", reload_check.__file__, arguments, str(results)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            cwd=scratch,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if process.returncode:
            reason = process.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CheckpointError(f"transformers cannot load the exported folder: {reason[0]}. Nothing was written")
        return dict(torch.load(results, weights_only=True))


def push(folder: Path, name: str, kind: RepositoryKind = "model") -> None:
    """Upload the folder to the hub, with the hub's client and its stored login."""
    from huggingface_hub import HfApi

    is_space = kind == "space"
    try:
        hub = HfApi()
        hub.create_repo(name, private=True, exist_ok=True, repo_type=kind, space_sdk="gradio" if is_space else None)
        hub.upload_folder(repo_id=name, folder_path=folder, repo_type=kind, commit_message="Exported by gpt2kit")
    except Exception as error:  # the client raises many types
        reason = first_line(error)
        option, more = ("--space", " --repo-type space") if is_space else ("--push_to_hub", "")
        raise MachineError(
            f"{option} {name}: the upload failed ({reason}). {folder} is complete: log in (hf auth login) "
            f"and run: hf upload {name} {folder}{more}"
        ) from None
