"""Implements `gpt2kit export`: a checkpoint as a Hugging Face folder, and as a GGUF file."""

from __future__ import annotations

from pathlib import Path

from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import refuse
from gpt2kit.model.config import Dtype


def export(
    ckpt_path: Positional[str],
    output_dir: Path,
    dtype: Dtype = "float32",
    force: bool = False,
    gguf: bool = False,
    push_to_hub: str | None = None,
    foreign: ForeignOptions = ForeignOptions(),
) -> None:
    """Write a checkpoint as a Hugging Face folder, which AutoModelForCausalLM, AutoTokenizer and pipeline load.

    Args:
        ckpt_path: `last` (the newest run), a run's name or folder (its best checkpoint), a .ckpt file, a Hugging Face
            folder, hf://OWNER/NAME, or a checkpoint of nanoGPT with --tokenizer.
        output_dir: The folder to write. It appears only after a fresh process has loaded it and its model agrees with
            the checkpoint.
        dtype: Data type of the weights.
        force: Replace a folder that was exported before.
        gguf: Also write model.gguf, for llama.cpp (byte-level BPE tokenizers only).
        push_to_hub: OWNER/NAME on the hub to upload the folder to. A new repository is private.
    """
    from gpt2kit.checkpoint import checkpoint  # here, so that --help does not import torch
    from gpt2kit.export import gguf as gguf_file
    from gpt2kit.export import huggingface

    huggingface.refuse_other_files(output_dir, force)
    opened = checkpoint.open(ckpt_path, options=foreign)
    if gguf:
        refuse(gguf_file.gguf_problems(opened.shape, opened.tokenizer))
    with huggingface.replacing_folder(output_dir) as folder:
        huggingface.write(opened, folder, output_dir.name, dtype, gguf)
        agreement = huggingface.check(opened, folder, dtype)
    size = sum(path.stat().st_size for path in output_dir.iterdir())
    print(f"{output_dir}: {opened.path} as {dtype}, {size / 1e6:,.1f} MB; loads in transformers")
    print(f"largest difference of logits {agreement.largest:.2g} (rounding can cause up to {agreement.allowed:.2g})")
    if dtype != "float32":
        print(f"rounding to {dtype} changes logits by up to {agreement.rounding:.2g}")
    print(f"a greedy continuation is the same for {agreement.tokens} tokens")
    if push_to_hub is not None:
        huggingface.push(output_dir, push_to_hub)
        print(f"uploaded to {push_to_hub} on the hub")
