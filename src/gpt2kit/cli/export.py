"""Implements `gpt2kit export`: a checkpoint as a Hugging Face folder, GGUF file, adapter, Space or HTML page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import Problems, refuse
from gpt2kit.export.options import CardOptions, HtmlOptions, card_problems, repository_problems
from gpt2kit.model.config import Dtype, GGUFType

if TYPE_CHECKING:
    from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
    from gpt2kit.export.card import Details
    from gpt2kit.export.huggingface import Agreement


def export(
    ckpt_path: Positional[str],
    output_dir: Path | None = None,
    dtype: Dtype = "float32",
    force: bool = False,
    gguf: bool = False,
    gguf_type: GGUFType | None = None,
    adapter: bool = False,
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
            folder, an adapter, hf://OWNER/NAME, or a checkpoint of nanoGPT with --tokenizer.
        output_dir: The folder to write; needed unless --html is given. It appears only after a fresh process has
            loaded it and its model agrees with the checkpoint.
        dtype: Data type of the weights in the folder.
        force: Replace a folder or a page that was exported before.
        gguf: Also write model.gguf, for llama.cpp, and a Modelfile for ollama (tokenizers of the kinds bpe, char and
            spm-bpe).
        gguf_type: Type of the matrices in model.gguf; implies gguf. q8_0 and q4_0 take 8.5 and 4.5 bits per weight.
            Default: dtype.
        adapter: Write the LoRA matrices of a run (model.lora_r) as an adapter of peft, instead of the whole model.
            --adapter_base is then the hub name of its base, for others to load. Default: init_from of the run.
        push_to_hub: OWNER/NAME on the hub to upload the folder to. A new repository is private.
        space: OWNER/NAME of a Hugging Face Space, a page that generates text with the model. Its files are written to
            OUTPUT_DIR-space, and uploaded if --push_to_hub is given.
    """
    gguf = gguf or gguf_type is not None
    needs_folder = {"--gguf": gguf, "--adapter": adapter, "--push_to_hub": push_to_hub, "--space": space}
    needs_model = {"--gguf": gguf, "--space": space, "--html": page.html is not None}
    problems = Problems(repository_problems(push_to_hub, space) + card_problems(card))
    problems.check(output_dir or page.html, "--output_dir: give a folder to write, or --html with a file")
    for name, value in needs_folder.items():
        problems.check(output_dir or not value, f"{name}: needs --output_dir, a folder to write")
    for name, value in needs_model.items():
        problems.check(not (adapter and value), f"{name}: needs the whole model. Leave out --adapter")
    refuse(problems.messages)
    from gpt2kit.checkpoint import checkpoint  # here, so that --help does not import torch
    from gpt2kit.export import gguf as gguf_file
    from gpt2kit.export import html, html_tokenizer, huggingface
    from gpt2kit.export import space as space_files

    if output_dir is not None:
        huggingface.refuse_other_files(output_dir, force)
    if output_dir is not None and space is not None:
        space_files.refuse_other_files(output_dir, force)
    if page.html is not None:
        html.refuse_other_file(page.html, force)
    if output_dir is not None and adapter:
        write_adapter(ckpt_path, output_dir, dtype, foreign)
        upload(output_dir, push_to_hub, None)
        return
    opened = checkpoint.open(ckpt_path, options=foreign)
    chosen_type = gguf_file.type_of(dtype, gguf_type) if gguf else None
    refuse(
        (gguf_file.gguf_problems(opened.shape, opened.tokenizer) if gguf else [])
        + [f"--html: {problem}" for problem in (html_tokenizer.html_problems(opened.tokenizer) if page.html else [])]
    )
    if output_dir is not None:
        details = describe(opened, card, push_to_hub)
        write_folder(opened, output_dir, dtype, chosen_type, details)
        if space is not None:
            write_space(output_dir, space, details)
    if page.html is not None:
        write_page(opened, page, card.license)
    if output_dir is not None:
        upload(output_dir, push_to_hub, space)


def describe(opened: LoadedCheckpoint, options: CardOptions, repository: str | None) -> Details:
    """Return what the model card says besides the checkpoint: the user's options, and samples of the model."""
    from gpt2kit.export import card

    return card.Details(options, repository, card.generate_samples(opened))


def write_folder(
    opened: LoadedCheckpoint, folder: Path, dtype: Dtype, gguf_type: GGUFType | None, details: Details
) -> None:
    """Write the Hugging Face folder, and print how it compares with the checkpoint."""
    from gpt2kit.export import gguf as gguf_file
    from gpt2kit.export import huggingface

    with huggingface.replacing_folder(folder) as temporary:
        huggingface.write(opened, temporary, folder.name, dtype, gguf_type, details)
        agreement = huggingface.check(opened, temporary, dtype, gguf_type)
    print(f"{folder}: {opened.path} as {dtype}, {size_of(folder)}; loads in transformers")
    print_agreement(agreement, dtype)
    print(f"a greedy continuation is the same for {agreement.tokens} tokens")
    if gguf_type:
        print(gguf_file.summarize(folder / gguf_file.NAME, opened.state, gguf_type, agreement.gguf_rounding))


def write_adapter(ckpt_path: str, folder: Path, dtype: Dtype, foreign: ForeignOptions) -> None:
    """Write the LoRA matrices of a run as an adapter of peft, and print how it compares with the checkpoint."""
    from gpt2kit.checkpoint import checkpoint
    from gpt2kit.export import adapter, huggingface

    adapter.refuse_missing_peft()
    base, lora = checkpoint.open_lora(ckpt_path, dataclasses.replace(foreign, adapter_base=None))
    lora = adapter.name_base(lora, foreign.adapter_base)
    with huggingface.replacing_folder(folder) as temporary:
        adapter.write(lora, temporary, folder.name, dtype)
        agreement = adapter.check(checkpoint.open(ckpt_path), base, temporary, dtype)
    matrices = f"LoRA matrices of rank {lora.config.rank} of {base.path} as {dtype}"
    print(f"{folder}: {matrices}, {size_of(folder)}; loads in peft")
    print_agreement(agreement, dtype)
    no_base = "not on the hub, so the adapter names none: load it with --adapter_base, the run or folder of the base"
    print(f"base: {lora.config.base or no_base}")


def size_of(folder: Path) -> str:
    """Return the size of the files of a folder."""
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / 1e6:,.1f} MB"


def print_agreement(agreement: Agreement, dtype: Dtype) -> None:
    """Print how the logits of an export differ from those of its checkpoint."""
    print(f"largest difference of logits {agreement.largest:.2g} (rounding can cause up to {agreement.allowed:.2g})")
    if dtype != "float32":
        print(f"rounding to {dtype} changes logits by up to {agreement.rounding:.2g}")


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
    size, dtype = html.write(options.html, opened, options.html_dtype, title, license), options.html_dtype
    print(f"{options.html}: {opened.path} as {dtype}, {size / 1e6:,.1f} MB; open it in a browser")
    if dtype != "float32":
        print(f"rounding to {dtype} changes logits by up to {html.rounding(opened, dtype):.2g}")


def upload(folder: Path, repository: str | None, space: str | None) -> None:
    """Upload the folder to the hub if there is a name, and its Space if there is one."""
    if repository is None:
        return
    from gpt2kit.export import huggingface
    from gpt2kit.export import space as space_files

    huggingface.push(folder, repository)
    print(f"uploaded to {repository} on the hub")
    if space is not None:
        huggingface.push(space_files.folder_of(folder), space, "space")
        print(f"uploaded to the Space {space} on the hub")
