"""Implements `export.py`: a checkpoint as a Hugging Face folder, and as a GGUF file."""

from __future__ import annotations

from gpt2kit.model.config import Dtype


def export(
    ckpt_path: str,
    output_dir: str,
    dtype: Dtype = "float32",
    force: bool = False,
    gguf: bool = False,
    push_to_hub: str | None = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder, which AutoModelForCausalLM, AutoTokenizer and pipeline load.

    Args:
        ckpt_path: a .ckpt file, a run folder (its best checkpoint is taken), a Hugging Face folder or hf://OWNER/NAME.
        output_dir: the folder to write; gets its name when the model in it has proved to be the checkpoint's.
        dtype: what the weights are rounded to.
        force: replace a folder that was exported before.
        gguf: also write model.gguf, for llama.cpp (byte-level BPE tokenizers only).
        push_to_hub: OWNER/NAME on the hub, to send the folder to; a new repository there is private.
    """
    from gpt2kit.export import huggingface  # here, so that --help need not wait for torch

    huggingface.export(ckpt_path, output_dir, dtype, force, gguf, push_to_hub)
