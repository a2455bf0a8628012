"""The files of a Space, and what its page generates. tests/proofs/prove_space.py runs the page in a browser."""

from __future__ import annotations

import gc
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import GRADIO_WARNINGS, ROOT, Outcome, Run

import gpt2kit
from gpt2kit.cli import export, parser
from gpt2kit.export import space
from gpt2kit.export.options import CardOptions

pytestmark = GRADIO_WARNINGS


def main(args: list[str]) -> None:
    parser.run(export.export, args)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("space") / "model"
    export.export(str(run.folder), target, space="me/poems", card=CardOptions("mit"))
    return target.with_name("model-space")


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[dict[str, Any]]:
    """The names of app.py, which builds its page and does not serve it."""
    pytest.importorskip("gradio", reason="the demo's extra is not installed")
    names = runpy.run_path(str(folder / "app.py"), run_name="app")
    yield names
    names.clear()
    gc.collect()


def generate(app: dict[str, Any], prompt: str, tokens: int = 6, temperature: float = 0, seed: float | None = 1) -> str:
    """Return the text that the page shows in the end."""
    texts: Iterator[str] = app["generate"](prompt, tokens, temperature, 0.95, seed)
    return list(texts)[-1]


def test_the_folder_is_complete(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == space.FILES
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folder / name).read_bytes() == (folder.with_name("model") / name).read_bytes()
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["sdk"], header["app_file"], header["license"]) == ("gradio", "app.py", "mit")
    assert header["title"] == "poems" and "models" not in header
    requirements = (folder / "requirements.txt").read_text()
    assert f"gradio=={header['sdk_version']}\n" in requirements and "transformers==" in requirements


def test_the_versions_are_those_that_the_project_tests() -> None:
    tested = (ROOT / "requirements.txt").read_text()
    for package, version in space.PACKAGES.items():
        assert f"\n{package}=={version}\n" in tested, package


def test_the_page_generates_the_text_of_generate(run: Run, app: dict[str, Any]) -> None:
    model = gpt2kit.load(str(run.folder))
    for prompt in ("the quick brown", "", "春 <b>"):
        expected = model.generate(prompt, temperature=0, max_new_tokens=6, token_healing=False)
        assert generate(app, prompt) == expected


def test_a_text_depends_on_its_seed(app: dict[str, Any]) -> None:
    texts = [generate(app, "the", 8, 1.5, seed) for seed in (1, 1, 2, None)]
    assert texts[0] == texts[1] and len(set(texts)) == 3


def test_a_prompt_longer_than_the_context_is_continued(app: dict[str, Any]) -> None:
    prompt = "the quick brown fox " * 400
    assert generate(app, prompt, app["MAX_NEW_TOKENS"]).startswith(prompt)


def test_a_space_is_replaced_only_with_force(
    run: Run, tmp_path: Path, reload_in_process: None, call: Callable[..., Outcome]
) -> None:
    arguments = ["--ckpt_path", run.folder, "--output_dir", tmp_path / "model", "--space", "me/poems"]
    (tmp_path / "model-space").mkdir()
    (tmp_path / "model-space" / "thesis.txt").write_text("mine")
    code, _, err = call(main, *arguments)
    assert code == 2 and re.search(r"its Space \(.*model-space\) contains other files \(thesis.txt\)", err), err
    assert not (tmp_path / "model").exists()
    (tmp_path / "model-space" / "thesis.txt").unlink()
    assert call(main, *arguments)[0] == 0
    code, _, err = call(main, *arguments)
    assert code == 2 and "already exists" in err
    code, out, err = call(main, *arguments, "--force", "--push_to_hub", "no name")
    assert code == 2 and "--push_to_hub 'no name': not a name on the hub" in err
    code, out, _ = call(main, *arguments, "--force")
    assert code == 0 and "python app.py" in out
