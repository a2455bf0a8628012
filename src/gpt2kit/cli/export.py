"""Implements `gpt2kit export`: a checkpoint as a Hugging Face folder, and as a GGUF file, a Space or an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import Problems, refuse
from gpt2kit.export.options import CardOptions, HtmlOptions, card_problems, repository_problems
from gpt2kit.model.config import Dtype

if TYPE_CHECKING:
    from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
    from gpt2kit.export.card import Details


def export(
    ckpt_path: Positional[str],
    output_dir: Path | None = None,
    dtype: Dtype = "float32",
    force: bool = False,
    gguf: bool = False,
    push_to_hub: str | None = None,
    space: str | None = None,
    card: CardOptions = CardOptions(),
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
        space: OWNER/NAME of a Hugging Face Space, a page that generates text with the model. Its files are written to
            OUTPUT_DIR-space, and uploaded if --push_to_hub is given.
    """
    refuse(option_problems(output_dir, gguf, push_to_hub, space, page) + card_problems(card))
    from gpt2kit.checkpoint import checkpoint  # here, so that --help does not import torch
    from gpt2kit.export import gguf as gguf_file
    from gpt2kit.export import html, huggingface
    from gpt2kit.export import space as space_files

    if output_dir is not None:
        huggingface.refuse_other_files(output_dir, force)
    if output_dir is not None and space is not None:
        space_files.refuse_other_files(output_dir, force)
    if page.html is not None:
        html.refuse_other_file(page.html, force)
    opened = checkpoint.open(ckpt_path, options=foreign)
    problems = gguf_file.gguf_problems(opened.shape, opened.tokenizer) if gguf else []
    refuse(problems + (html.html_problems(opened.tokenizer) if page.html else []))
    if output_dir is not None:
        details = describe(opened, card, push_to_hub)
        write_folder(opened, output_dir, dtype, gguf, details)
        if space is not None:
            write_space(output_dir, space, details)
    if page.html is not None:
        write_page(opened, page, card.license)
    if output_dir is not None and push_to_hub is not None:
        upload(output_dir, push_to_hub, space)


def option_problems(
    output_dir: Path | None, gguf: bool, push_to_hub: str | None, space: str | None, page: HtmlOptions
) -> list[str]:
    """List what is missing or invalid in the options."""
    problems = Problems(repository_problems(push_to_hub, space))
    problems.check(
        output_dir is not None or page.html is not None, "--output_dir: give a folder to write, or --html with a file"
    )
    for name, value in {"--gguf": gguf, "--push_to_hub": push_to_hub, "--space": space}.items():
        problems.check(output_dir is not None or not value, f"{name}: needs --output_dir, a folder to write")
    return problems.messages


def describe(opened: LoadedCheckpoint, options: CardOptions, repository: str | None) -> Details:
    """Return what the model card says besides the checkpoint: the user's options, and samples of the model."""
    from gpt2kit.export import card

    return card.Details(options, repository, card.generate_samples(opened))


def write_folder(opened: LoadedCheckpoint, folder: Path, dtype: Dtype, gguf: bool, details: Details) -> None:
    """Write the Hugging Face folder, and print how it compares with the checkpoint."""
    from gpt2kit.export import huggingface

    with huggingface.replacing_folder(folder) as temporary:
        huggingface.write(opened, temporary, folder.name, dtype, gguf, details)
        agreement = huggingface.check(opened, temporary, dtype)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {opened.path} as {dtype}, {size / 1e6:,.1f} MB; loads in transformers")
    print(f"largest difference of logits {agreement.largest:.2g} (rounding can cause up to {agreement.allowed:.2g})")
    if dtype != "float32":
        print(f"rounding to {dtype} changes logits by up to {agreement.rounding:.2g}")
    print(f"a greedy continuation is the same for {agreement.tokens} tokens")


def write_space(model: Path, name: str, details: Details) -> None:
    """Write the files of a Space beside the folder of its model."""
    from gpt2kit.export import huggingface, space

    folder = space.folder_of(model)
    prompts = [sample.prompt for sample in details.samples if sample.prompt]
    with huggingface.replacing_folder(folder) as temporary:
        space.write(model, temporary, name, details.repository, details.options, prompts)
    print(f"{folder}: a Space; pip install -r requirements.txt and python app.py run it on this machine")


def write_page(opened: LoadedCheckpoint, options: HtmlOptions, license: str | None) -> None:
    """Write the HTML page, and print its size."""
    from gpt2kit.export import html

    assert options.html is not None
    title = options.html_title or html.default_title(options.html)
    written = html.write(options.html, opened, options.html_dtype, title, license)
    print(f"{options.html}: {opened.path} as {options.html_dtype}, {written.size / 1e6:,.1f} MB; open it in a browser")
    if options.html_dtype != "float32":
        print(f"rounding to {options.html_dtype} changes logits by up to {written.rounding:.2g}")


def upload(folder: Path, repository: str, space: str | None) -> None:
    """Upload the folder to the hub, and its Space if there is one."""
    from gpt2kit.export import huggingface
    from gpt2kit.export import space as space_files

    huggingface.push(folder, repository)
    print(f"uploaded to {repository} on the hub")
    if space is not None:
        huggingface.push(space_files.folder_of(folder), space, "space")
        print(f"uploaded to the Space {space} on the hub")
