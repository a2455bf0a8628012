"""A checkpoint as a Hugging Face folder: written, loaded by transformers in a fresh process, and compared.

Whatever form the checkpoint has, `checkpoint.open` returns its full weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2kit import __version__, files
from gpt2kit.checkpoint import huggingface
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError, MachineError, UserError, first_line
from gpt2kit.export import gguf as gguf_file
from gpt2kit.export import reload_check
from gpt2kit.export.model_card import model_card
from gpt2kit.model.config import Dtype
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer as tokenizers

# The key in config.json that says which version of gpt2kit has written a folder.
MARK = "gpt2kit"
CARD, GENERATION = "README.md", "generation_config.json"
FILES = {huggingface.CONFIG, huggingface.WEIGHTS, huggingface.TOKENIZER, huggingface.TOKENIZER_CONFIG, CARD, GENERATION}
# --force replaces only a folder that holds nothing but these.
OURS = {*FILES, gguf_file.NAME}
# Tokens that are compared, half of them a greedy continuation.
_LENGTH = 64


@dataclass(frozen=True)
class Agreement:
    """How an exported folder agrees with the checkpoint.

    Args:
        largest: difference of logits between the two, with the same rounded weights.
        allowed: difference that the order of float32 sums may make.
        rounding: difference that rounding the weights to 16 bits makes; 0 for float32.
        tokens: of a greedy continuation that are the same.
    """

    largest: float
    allowed: float
    rounding: float
    tokens: int


def refuse_other_files(target: Path, force: bool) -> None:
    """Raise unless `target` is free, or holds nothing but an export that may be replaced."""
    if target.is_file():
        raise UserError(f"--output_dir {target}: a file. Name a folder")
    present = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if others := [name for name in present if name not in OURS]:
        raise UserError(f"--output_dir {target}: holds other files ({', '.join(others[:3])}). Name another folder")
    if present and not force:
        raise UserError(f"--output_dir {target}: already exists. Name another folder, or replace it with --force")
    if present and not is_exported(target):
        raise UserError(f"--output_dir {target}: was not written by export.py. Name another folder")


def is_exported(folder: Path) -> bool:
    """Return whether export.py has written a folder: plain files, and a config.json that says so."""
    try:
        is_marked = MARK in json.loads((folder / huggingface.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
    return is_marked and all(path.is_file() and not path.is_symlink() for path in folder.iterdir())


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; if the block succeeds it is synced and renamed to `target`."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    aside = temporary.with_suffix(".old")
    try:
        yield temporary
        mask = _umask()
        temporary.chmod(0o777 & ~mask)
        for path in temporary.iterdir():
            path.chmod(0o666 & ~mask)
            files.sync_file(path)
        if target.exists():
            target.rename(aside)
        try:
            temporary.rename(target)
        except OSError:
            if aside.exists():
                aside.rename(target)
            raise
        files.sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def write(opened: LoadedCheckpoint, folder: Path, name: str, dtype: Dtype, gguf: bool = False) -> None:
    """Write all files of the export, without the padded rows of the embedding."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    shape, end = opened.shape, tokenizers.eos_id(opened.tokenizer)
    config = GPT2Config(**shape, bos_token_id=end, eos_token_id=end, **{MARK: __version__})
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    state = rounded(opened, dtype)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    half = max(shape["n_positions"] // 2, 1)  # transformers' own 256 would run over a short context
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, do_sample=True, max_new_tokens=half
    )
    logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size="1000GB")
    logging.enable_progress_bar()
    tokenizers.save(opened.tokenizer, folder)
    files.write_text(folder / CARD, model_card(opened, name, dtype))
    if gguf:
        gguf_file.write(folder / gguf_file.NAME, shape, state, opened.tokenizer, name)


def rounded(opened: LoadedCheckpoint, dtype: Dtype) -> dict[str, torch.Tensor]:
    """Return the tensors in `dtype`, input and output embedding one tensor without padded rows."""
    kind = getattr(torch, dtype)
    state = {name: tensor.to(kind) for name, tensor in opened.state.items()}
    embedding = state["transformer.wte.weight"][: opened.shape["vocab_size"]].clone()
    state |= {"transformer.wte.weight": embedding, "lm_head.weight": embedding}
    for tensor_name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{tensor_name}: too large for {dtype}. Export as bfloat16 or float32")
    return state


def check(opened: LoadedCheckpoint, folder: Path, dtype: Dtype) -> Agreement:
    """Load the folder in a fresh process; compare logits, a greedy continuation and the tokenizer with gpt2kit's."""
    shape = opened.shape
    length = min(_LENGTH, shape["n_positions"])
    prompt = max(length // 2, 1)
    weights = {name: tensor.to(getattr(torch, dtype)).float() for name, tensor in opened.state.items()}
    gpt2 = GPT2.from_state(shape, weights)  # the weights as they are in the folder
    ids = continue_greedily(gpt2, torch.linspace(0, shape["vocab_size"] - 1, prompt).long().tolist(), length)
    text = opened.tokenizer.decode(ids[:prompt], skip_special_tokens=False)
    answer = reloaded(folder, ids, prompt, text)
    logits = compute_logits(gpt2, ids)
    shift = float((logits - compute_logits(opened.model, ids)).abs().max())
    if answer["lacking"] or not answer["tied"] or answer["logits"].shape != logits.shape:
        raise CheckpointError(
            f"the exported model is not complete: {answer['lacking']}, tied {answer['tied']}, "
            f"logits {tuple(answer['logits'].shape)} for {tuple(logits.shape)}. Nothing was written"
        )
    reloads = [answer[name] for name in ("logits", "gguf") if answer[name] is not None]
    largest = max(float((logits - each).abs().max()) for each in reloads)
    allowed = 1e-4 * max(1.0, float(logits.abs().max()))  # what another order of float32 sums may change
    tokens = count_agreeing(ids, answer["greedy"], logits, allowed, prompt)
    if not largest <= allowed or tokens < 0:
        raise CheckpointError(
            f"the exported model is another one than the checkpoint's: logits differ by {largest:g} (rounding may make "
            f"{allowed:g}), and greedy text is the same for {max(tokens, 0)} tokens. Nothing was written"
        )
    if answer["ids"] != opened.tokenizer.encode(text, add_special_tokens=False).ids:
        raise CheckpointError(
            "transformers' tokenizer gives other ids than the checkpoint's own. Nothing was written; please report it"
        )
    return Agreement(largest, allowed, shift, tokens)


@torch.no_grad()
def compute_logits(gpt2: GPT2, ids: list[int]) -> torch.Tensor:
    """Return the logits after each of the ids, `[len(ids), vocab_size]` in float32."""
    logits: torch.Tensor = gpt2(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0]
    return logits[:, : gpt2.shape["vocab_size"]].float()


def continue_greedily(gpt2: GPT2, ids: list[int], length: int) -> list[int]:
    """Continue `ids` to `length` with the most likely token each time, ends of documents included."""
    ids = list(ids)
    while len(ids) < length:
        ids.append(int(compute_logits(gpt2, ids)[-1].argmax()))
    return ids


def count_agreeing(ids: list[int], other_ids: list[int], logits: torch.Tensor, allowed: float, prompt: int) -> int:
    """Return how many tokens of two continuations agree; -1 if they differ where there is no near tie."""
    for place in range(prompt, len(ids)):
        if place >= len(other_ids):
            return -1
        if ids[place] != other_ids[place]:
            gap = float(logits[place - 1, ids[place]] - logits[place - 1, other_ids[place]])
            return place - prompt if gap <= 2 * allowed else -1
    return len(ids) - prompt


def reloaded(folder: Path, ids: list[int], prompt: int, text: str) -> dict[str, Any]:
    """Return what transformers computes with the folder, in a process that imports nothing of gpt2kit."""
    with tempfile.TemporaryDirectory(prefix="gpt2kit-export-") as scratch:
        question, answer = Path(scratch) / "question.json", Path(scratch) / "answer.pt"
        content = {"folder": str(folder.absolute()), "ids": ids, "prompt": prompt, "text": text}
        question.write_text(json.dumps(content), encoding="utf-8")
        process = subprocess.run(
            [sys.executable, "-P", str(Path(reload_check.__file__)), str(question), str(answer)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            cwd=scratch,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if process.returncode:
            reason = process.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CheckpointError(f"transformers does not load the exported folder: {reason[0]}. Nothing was written")
        return dict(torch.load(answer, weights_only=True))


def push(folder: Path, name: str) -> None:
    """Upload the folder to the hub, with the hub's own client and the login that it knows."""
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by gpt2kit")
    except Exception as error:  # the client raises many kinds
        reason = first_line(error)
        raise MachineError(
            f"--push_to_hub {name}: the upload failed ({reason}). {folder} is complete: log in (hf auth login) "
            f"and run: hf upload {name} {folder}"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
