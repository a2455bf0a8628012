"""Implements `gpt2kit export`: a checkpoint as a Hugging Face folder, and as a GGUF file."""

from __future__ import annotations

from pathlib import Path

from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import refuse
from gpt2kit.export.options import CardOptions, card_problems, repository_problems
from gpt2kit.model.config import Dtype


def export(
    ckpt_path: Positional[str],
    output_dir: Path,
    dtype: Dtype = "float32",
    force: bool = False,
    gguf: bool = False,
    push_to_hub: str | None = None,
    space: str | None = None,
    card: CardOptions = CardOptions(),
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
        space: OWNER/NAME of a Hugging Face Space, a page that generates text with the model. Its files are written to
            OUTPUT_DIR-space, and uploaded if --push_to_hub is given.
    """
    refuse(card_problems(card) + repository_problems(push_to_hub, space))
    from gpt2kit.checkpoint import checkpoint  # here, so that --help does not import torch
    from gpt2kit.export import card as model_card
    from gpt2kit.export import gguf as gguf_file
    from gpt2kit.export import huggingface
    from gpt2kit.export import space as space_files

    space_dir = space_files.folder_of(output_dir)
    huggingface.refuse_other_files(output_dir, force)
    if space is not None:
        label = f"--output_dir {output_dir}: the folder of its Space ({space_dir})"
        huggingface.refuse_other_files(space_dir, force, label, space_files.FILES)
    opened = checkpoint.open(ckpt_path, options=foreign)
    if gguf:
        refuse(gguf_file.gguf_problems(opened.shape, opened.tokenizer))
    samples = model_card.generate_samples(opened)
    details = model_card.Details(card, push_to_hub, samples)
    with huggingface.replacing_folder(output_dir) as folder:
        huggingface.write(opened, folder, output_dir.name, dtype, gguf, details)
        agreement = huggingface.check(opened, folder, dtype)
    size = sum(path.stat().st_size for path in output_dir.iterdir())
    print(f"{output_dir}: {opened.path} as {dtype}, {size / 1e6:,.1f} MB; loads in transformers")
    print(f"largest difference of logits {agreement.largest:.2g} (rounding can cause up to {agreement.allowed:.2g})")
    if dtype != "float32":
        print(f"rounding to {dtype} changes logits by up to {agreement.rounding:.2g}")
    print(f"a greedy continuation is the same for {agreement.tokens} tokens")
    if space is not None:
        prompts = [sample.prompt for sample in samples if sample.prompt]
        with huggingface.replacing_folder(space_dir) as folder:
            space_files.write(output_dir, folder, space, push_to_hub, card, prompts)
        print(f"{space_dir}: a Space; pip install -r requirements.txt and python app.py run it on this machine")
    if push_to_hub is not None:
        huggingface.push(output_dir, push_to_hub)
        print(f"uploaded to {push_to_hub} on the hub")
        if space is not None:
            huggingface.push(space_dir, space, "space")
            print(f"uploaded to the Space {space} on the hub")
