"""A Hugging Face Space of an exported model: a page on which anyone generates text.

The folder holds the model itself, so the Space needs no token for a private one, and no gpt2kit: it is Gradio and
transformers, in the versions with which the page was tested.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from gpt2kit import files
from gpt2kit.export import huggingface
from gpt2kit.export.options import CardOptions
from gpt2kit.runs.pages import render

APP, REQUIREMENTS = "app.py", "requirements.txt"
FILES = {*huggingface.FILES, APP, REQUIREMENTS}
# The versions of the page's packages; a test compares them with those of requirements.txt of this project.
PACKAGES = {"gradio": "6.31.0", "torch": "2.13.0", "transformers": "5.23.0"}
_PYTHON = "3.11"
# The build of torch for CPUs: a tenth of the size of PyPI's, and free Spaces have no GPU.
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_TEMPLATES = Path(__file__).parent / "templates"


def folder_of(output_dir: Path) -> Path:
    """Return the folder of the Space of a model that is exported to `output_dir`."""
    return output_dir.parent / f"{output_dir.name}-space"


def refuse_other_files(output_dir: Path, force: bool) -> None:
    """Raise unless the folder of the Space is new or empty, or contains only one that may be replaced."""
    folder = folder_of(output_dir)
    huggingface.refuse_other_files(
        folder, force, f"--output_dir {output_dir}: the folder of its Space ({folder})", FILES
    )


def write(
    model: Path, folder: Path, name: str, repository: str | None, options: CardOptions, prompts: Sequence[str]
) -> None:
    """Write the files of the Space.

    Args:
        model: the exported model.
        folder: where to write.
        name: OWNER/NAME of the Space.
        repository: the model's own name on the hub, to which the Space links.
        options: those of the model's card.
        prompts: examples that a visitor can choose.
    """
    title = name.rpartition("/")[2]
    for path in model.iterdir():
        if path.name in huggingface.FILES - {huggingface.CARD}:
            shutil.copyfile(path, folder / path.name)
    app = render("space_app.py.jinja", _TEMPLATES, title=repr(title), prompts=repr(list(prompts)))
    files.write_text(folder / APP, app)
    pins = [f"{package}=={version}" for package, version in PACKAGES.items()]
    files.write_text(folder / REQUIREMENTS, "\n".join([f"--extra-index-url {_CPU_INDEX}", *pins, ""]))
    header = render_header(title, repository, options)
    files.write_text(folder / huggingface.CARD, render("space_card.md", _TEMPLATES, header=header, title=title))


def render_header(title: str, repository: str | None, options: CardOptions) -> str:
    """Return the YAML from which the hub builds and starts the Space."""
    from huggingface_hub import SpaceCardData  # here, because it imports slowly

    data = SpaceCardData(
        title=title,
        emoji="📝",
        colorFrom="gray",
        colorTo="indigo",
        sdk="gradio",
        sdk_version=PACKAGES["gradio"],
        python_version=_PYTHON,
        app_file=APP,
        license=options.license,
        models=[repository] if repository else None,
        tags=["gpt2", "gpt2kit"],
    )
    header: str = data.to_yaml()
    return header
