"""The body of export.py: a checkpoint as a Hugging Face folder that is proved before it gets its name.

Whatever form a checkpoint has, `checkpoint.open` gives its full weights; here they are written, read by transformers
in a fresh process, and compared.
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
from gpt2kit.checkpoint import checkpoint, huggingface
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError, MachineError, UserError, first_line, refuse
from gpt2kit.export import gguf as gguf_file
from gpt2kit.export import reload_check
from gpt2kit.export.model_card import model_card
from gpt2kit.model.config import Dtype
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer as tokenizers

MARK = "gpt2kit"
"""The key in config.json that says with which version of ours a folder was written."""
CARD, GENERATION = "README.md", "generation_config.json"
FILES = {huggingface.CONFIG, huggingface.WEIGHTS, huggingface.TOKENIZER, huggingface.TOKENIZER_CONFIG, CARD, GENERATION}
OURS = {*FILES, gguf_file.NAME}
"""What an exported folder may hold; --force replaces a folder with these, and none with others."""
_LENGTH = 64
"""Tokens that the check looks at, half of them a greedy continuation."""


@dataclass(frozen=True)
class Proof:
    """How an exported folder compares with the checkpoint. All are differences of logits.

    Args:
        largest: to ours with the same rounded weights.
        allowed: what float32 sums in another order may make.
        rounding: what the rounding of the weights to 16 bits makes; 0 for float32.
        continued: tokens of the greedy continuation that are the same.
    """

    largest: float
    allowed: float
    rounding: float
    continued: int


def export(
    ckpt_path: str,
    output_dir: str,
    dtype: Dtype = "float32",
    force: bool = False,
    gguf: bool = False,
    push_to_hub: str | None = None,
) -> None:
    """Export a checkpoint, compare the folder with it in a fresh process, and print how they agree."""
    target = Path(output_dir)
    refuse_other_files(target, force)
    opened = checkpoint.open(ckpt_path)
    if gguf:
        refuse(gguf_file.problems(opened.shape, opened.tokenizer))
    with replacing_folder(target) as folder:
        write(opened, folder, target.name, dtype, gguf)
        proof = check(opened, folder, dtype)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {opened.path} as {dtype}, {size / 1e6:,.1f} MB; transformers loads it")
    print(f"largest difference of logits {proof.largest:.2g} (rounding may make {proof.allowed:.2g})")
    if dtype != "float32":
        print(f"the weights' rounding to {dtype} moves logits by up to {proof.rounding:.2g}")
    print(f"a greedy continuation is the same for {proof.continued} tokens")
    if push_to_hub is not None:
        push(target, push_to_hub)


def refuse_other_files(target: Path, force: bool) -> None:
    """Raise unless `target` is free, or holds nothing but an export that may be replaced."""
    if target.is_file():
        raise UserError(f"--output_dir {target}: a file. Name a folder")
    present = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if strange := [name for name in present if name not in OURS]:
        raise UserError(f"--output_dir {target}: holds other files ({', '.join(strange[:3])}). Name another folder")
    if present and not (force and exported(target)):
        if force:
            raise UserError(f"--output_dir {target}: was not written by export.py. Name another folder")
        raise UserError(f"--output_dir {target}: is there already. Name another folder, or replace it with --force")


def exported(folder: Path) -> bool:
    """Whether export.py has written a folder, and may replace it: plain files, and a config.json that says so."""
    try:
        marked = MARK in json.loads((folder / huggingface.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
    return marked and all(path.is_file() and not path.is_symlink() for path in folder.iterdir())


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`; when the block ends well it is synced and takes the name."""
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
    """All files of the export. The padded rows of the embedding are left out."""
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
    """The tensors by Hugging Face's names in `dtype`, input and output embedding one tensor without padded rows."""
    kind = getattr(torch, dtype)
    state = {name: tensor.to(kind) for name, tensor in opened.state.items()}
    embedding = state["transformer.wte.weight"][: opened.shape["vocab_size"]].clone()
    state |= {"transformer.wte.weight": embedding, "lm_head.weight": embedding}
    for tensor_name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{tensor_name}: too large for {dtype}. Export as bfloat16 or float32")
    return state


def check(opened: LoadedCheckpoint, folder: Path, dtype: Dtype) -> Proof:
    """Load the folder in a fresh process, and compare logits, a greedy continuation and the tokenizer with ours."""
    gpt2, shape = opened.model, opened.shape
    length = min(_LENGTH, shape["n_positions"])
    prompt = max(length // 2, 1)
    ids = torch.linspace(0, shape["vocab_size"] - 1, prompt).long().tolist()
    weights = {name: tensor.to(getattr(torch, dtype)).float() for name, tensor in opened.state.items()}
    same = GPT2.from_state(shape, weights)  # the weights as they are in the folder
    ids = continued(same, ids, length)
    text = opened.tokenizer.decode(ids[:prompt], skip_special_tokens=False)
    theirs = reloaded(folder, ids, prompt, text)
    ours = compute_logits(same, ids)
    shift = float((ours - compute_logits(gpt2, ids)).abs().max())
    if theirs["lacking"] or not theirs["tied"] or theirs["logits"].shape != ours.shape:
        raise CheckpointError(
            f"the exported model is not complete: {theirs['lacking']}, tied {theirs['tied']}, "
            f"logits {tuple(theirs['logits'].shape)} for {tuple(ours.shape)}. Nothing was written"
        )
    found = [theirs["logits"], *([theirs["gguf"]] if theirs["gguf"] is not None else [])]
    largest = max(float((ours - each).abs().max()) for each in found)
    allowed = 1e-4 * max(1.0, float(ours.abs().max()))  # what another order of float32 sums may change
    agreed = agreement(ids, theirs["greedy"], ours, allowed, prompt)
    if not largest <= allowed or agreed < 0:
        raise CheckpointError(
            f"the exported model is another one than the checkpoint's: logits differ by {largest:g} (rounding may make "
            f"{allowed:g}), and greedy text is the same for {max(agreed, 0)} tokens. Nothing was written"
        )
    if theirs["ids"] != opened.tokenizer.encode(text, add_special_tokens=False).ids:
        raise CheckpointError(
            "transformers' tokenizer gives other ids than the checkpoint's own. Nothing was written; please report it"
        )
    return Proof(largest, allowed, shift, agreed)


@torch.no_grad()
def compute_logits(gpt2: GPT2, ids: list[int]) -> torch.Tensor:
    """Return the logits after each of the ids, `[len(ids), vocab_size]` in float32."""
    logits: torch.Tensor = gpt2(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0]
    return logits[:, : gpt2.shape["vocab_size"]].float()


def continued(gpt2: GPT2, ids: list[int], length: int) -> list[int]:
    """`ids` continued to `length` by the likeliest token, again and again, ends of documents included."""
    ids = list(ids)
    while len(ids) < length:
        ids.append(int(compute_logits(gpt2, ids)[-1].argmax()))
    return ids


def agreement(ours: list[int], theirs: list[int], logits: torch.Tensor, allowed: float, prompt: int) -> int:
    """Tokens of two continuations that agree; -1 if they part where it was not a near tie."""
    for place in range(prompt, len(ours)):
        if place >= len(theirs):
            return -1
        if ours[place] != theirs[place]:
            gap = float(logits[place - 1, ours[place]] - logits[place - 1, theirs[place]])
            return place - prompt if gap <= 2 * allowed else -1
    return len(ours) - prompt


def reloaded(folder: Path, ids: list[int], prompt: int, text: str) -> dict[str, Any]:
    """What transformers makes of the folder, in a process that knows nothing of gpt2kit."""
    with tempfile.TemporaryDirectory(prefix="gpt2kit-export-") as scratch:
        asked, answer = Path(scratch) / "asked.json", Path(scratch) / "answer.pt"
        words = {"folder": str(folder.absolute()), "ids": ids, "prompt": prompt, "text": text}
        asked.write_text(json.dumps(words), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-P", str(Path(reload_check.__file__)), str(asked), str(answer)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            cwd=scratch,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CheckpointError(f"transformers does not load the exported folder: {reason[0]}. Nothing was written")
        return dict(torch.load(answer, weights_only=True))


def push(folder: Path, name: str) -> None:
    """Send the folder to the hub, with the hub's own client and the login that it knows."""
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by gpt2kit")
    except Exception as error:  # whatever the network and the hub say
        reason = first_line(error)
        raise MachineError(
            f"--push_to_hub {name}: the hub does not take it ({reason}). {folder} is complete: log in (hf auth login) "
            f"and send it with: hf upload {name} {folder}"
        ) from None
    print(f"sent to {name} on the hub")


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found
