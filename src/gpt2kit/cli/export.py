"""Implements `gpt2kit export`: a checkpoint as a Hugging Face folder, as a GGUF file, and as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import Problems, refuse
from gpt2kit.export.options import HtmlOptions
from gpt2kit.model.config import Dtype

if TYPE_CHECKING:
    from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint


def export(
    ckpt_path: Positional[str],
    output_dir: Path | None = None,
    dtype: Dtype = "float32",
    force: bool = False,
    gguf: bool = False,
    push_to_hub: str | None = None,
    page: HtmlOptions = HtmlOptions(),
    foreign: ForeignOptions = ForeignOptions(),
) -> None:
    """Write a checkpoint as a Hugging Face folder, which AutoModelForCausalLM, AutoTokenizer and pipeline load, or as
    an HTML page.

    Args:
        ckpt_path: `last` (the newest run), a run's name or folder (its best checkpoint), a .ckpt file, a Hugging Face
            folder, hf://OWNER/NAME, or a checkpoint of nanoGPT with --tokenizer.
        output_dir: The folder to write; needed unless --html is given. It appears only after a fresh process has
            loaded it and its model agrees with the checkpoint.
        dtype: Data type of the weights in the folder.
        force: Replace a folder or a page that was exported before.
        gguf: Also write model.gguf, for llama.cpp (byte-level BPE tokenizers only).
        push_to_hub: OWNER/NAME on the hub to upload the folder to. A new repository is private.
    """
    problems = Problems()
    problems.check(
        output_dir is not None or page.html is not None, "--output_dir: give a folder to write, or --html with a file"
    )
    for name, value in {"--gguf": gguf, "--push_to_hub": push_to_hub}.items():
        problems.check(output_dir is not None or not value, f"{name}: needs --output_dir, a folder to write")
    refuse(problems.messages)
    from gpt2kit.checkpoint import checkpoint  # here, so that --help does not import torch
    from gpt2kit.export import gguf as gguf_file
    from gpt2kit.export import html, huggingface

    if output_dir is not None:
        huggingface.refuse_other_files(output_dir, force)
    if page.html is not None:
        html.refuse_other_file(page.html, force)
    opened = checkpoint.open(ckpt_path, options=foreign)
    problems = Problems(gguf_file.gguf_problems(opened.shape, opened.tokenizer) if gguf else [])
    problems.messages.extend(html.html_problems(opened.tokenizer) if page.html else [])
    refuse(problems.messages)
    if output_dir is not None:
        write_folder(opened, output_dir, dtype, gguf)
    if page.html is not None:
        write_page(opened, page)
    if output_dir is not None and push_to_hub is not None:
        huggingface.push(output_dir, push_to_hub)
        print(f"uploaded to {push_to_hub} on the hub")


def write_folder(opened: LoadedCheckpoint, folder: Path, dtype: Dtype, gguf: bool) -> None:
    """Write the Hugging Face folder, and print how it compares with the checkpoint."""
    from gpt2kit.export import huggingface

    with huggingface.replacing_folder(folder) as temporary:
        huggingface.write(opened, temporary, folder.name, dtype, gguf)
        agreement = huggingface.check(opened, temporary, dtype)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {opened.path} as {dtype}, {size / 1e6:,.1f} MB; loads in transformers")
    print(f"largest difference of logits {agreement.largest:.2g} (rounding can cause up to {agreement.allowed:.2g})")
    if dtype != "float32":
        print(f"rounding to {dtype} changes logits by up to {agreement.rounding:.2g}")
    print(f"a greedy continuation is the same for {agreement.tokens} tokens")


def write_page(opened: LoadedCheckpoint, options: HtmlOptions) -> None:
    """Write the HTML page, and print its size."""
    from gpt2kit.export import html

    assert options.html is not None
    title = options.html_title or html.default_title(options.html)
    written = html.write(options.html, opened, options.html_dtype, title, options.html_licence)
    print(f"{options.html}: {opened.path} as {options.html_dtype}, {written.size / 1e6:,.1f} MB; open it in a browser")
    if options.html_dtype != "float32":
        print(f"rounding to {options.html_dtype} changes logits by up to {written.rounding:.2g}")
