"""Implements `gpt2kit export`: a checkpoint as a Hugging Face folder, as a GGUF file, or as an adapter of peft."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import UserError, refuse
from gpt2kit.model.config import Dtype, GGUFType


def export(
    ckpt_path: Positional[str],
    output_dir: Path,
    dtype: Dtype = "float32",
    force: bool = False,
    gguf: bool = False,
    gguf_type: GGUFType | None = None,
    adapter: bool = False,
    push_to_hub: str | None = None,
    foreign: ForeignOptions = ForeignOptions(),
) -> None:
    """Write a checkpoint as a Hugging Face folder, which AutoModelForCausalLM, AutoTokenizer and pipeline load.

    Args:
        ckpt_path: `last` (the newest run), a run's name or folder (its best checkpoint), a .ckpt file, a Hugging Face
            folder, an adapter, hf://OWNER/NAME, or a checkpoint of nanoGPT with --tokenizer.
        output_dir: The folder to write. It appears only after a fresh process has loaded it and its model agrees with
            the checkpoint.
        dtype: Data type of the weights.
        force: Replace a folder that was exported before.
        gguf: Also write model.gguf, for llama.cpp, and a Modelfile for ollama (tokenizers of the kinds bpe, char and
            spm-bpe).
        gguf_type: Type of the matrices in model.gguf; implies gguf. q8_0 and q4_0 take 8.5 and 4.5 bits per weight.
            Default: dtype.
        adapter: Write the LoRA matrices of a run (model.lora_r) as an adapter of peft, instead of the whole model.
            --adapter_base is then the hub name of its base, for others to load. Default: init_from of the run.
        push_to_hub: OWNER/NAME on the hub to upload the folder to. A new repository is private.
    """
    from gpt2kit.checkpoint import checkpoint  # here, so that --help does not import torch
    from gpt2kit.export import gguf as gguf_file
    from gpt2kit.export import huggingface

    huggingface.refuse_other_files(output_dir, force)
    if adapter:
        if gguf or gguf_type:
            raise UserError("--adapter: writes no model.gguf. Leave out --gguf and --gguf_type, or --adapter")
        export_adapter(ckpt_path, output_dir, dtype, foreign)
        upload(output_dir, push_to_hub)
        return
    opened = checkpoint.open(ckpt_path, options=foreign)
    chosen_type = gguf_file.type_of(dtype, gguf_type) if gguf or gguf_type else None
    if chosen_type:
        refuse(gguf_file.gguf_problems(opened.shape, opened.tokenizer))
    with huggingface.replacing_folder(output_dir) as folder:
        huggingface.write(opened, folder, output_dir.name, dtype, chosen_type)
        agreement = huggingface.check(opened, folder, dtype, chosen_type)
    size = sum(path.stat().st_size for path in output_dir.iterdir())
    print(f"{output_dir}: {opened.path} as {dtype}, {size / 1e6:,.1f} MB; loads in transformers")
    print(f"largest difference of logits {agreement.largest:.2g} (rounding can cause up to {agreement.allowed:.2g})")
    if dtype != "float32":
        print(f"rounding to {dtype} changes logits by up to {agreement.rounding:.2g}")
    print(f"a greedy continuation is the same for {agreement.tokens} tokens")
    if chosen_type:
        print(gguf_file.summarize(output_dir / gguf_file.NAME, opened.state, chosen_type, agreement.gguf_rounding))
    upload(output_dir, push_to_hub)


def export_adapter(ckpt_path: str, output_dir: Path, dtype: Dtype, foreign: ForeignOptions) -> None:
    """Write the LoRA matrices of a run as an adapter of peft."""
    from gpt2kit.checkpoint import checkpoint
    from gpt2kit.export import adapter, huggingface

    adapter.refuse_missing_peft()
    base, lora = checkpoint.open_lora(ckpt_path, dataclasses.replace(foreign, adapter_base=None))
    lora = adapter.name_base(lora, foreign.adapter_base)
    with huggingface.replacing_folder(output_dir) as folder:
        adapter.write(lora, folder, output_dir.name, dtype)
        agreement = adapter.check(checkpoint.open(ckpt_path), base, folder, dtype)
    size = sum(path.stat().st_size for path in output_dir.iterdir())
    matrices = f"LoRA matrices of rank {lora.config.rank} of {base.path} as {dtype}, {size / 1e6:,.1f} MB"
    print(f"{output_dir}: {matrices}; loads in peft")
    print(f"largest difference of logits {agreement.largest:.2g} (rounding can cause up to {agreement.allowed:.2g})")
    if dtype != "float32":
        print(f"rounding to {dtype} changes logits by up to {agreement.rounding:.2g}")
    if lora.config.base:
        print(f"base: {lora.config.base}")
    else:
        print(
            "its base is not on the hub, so it names none: load it with --adapter_base, the run or folder of the base"
        )


def upload(folder: Path, name: str | None) -> None:
    """Upload the folder to the hub, if there is a name."""
    from gpt2kit.export import huggingface

    if name is not None:
        huggingface.push(folder, name)
        print(f"uploaded to {name} on the hub")
