"""docs/cli.md is what `make docs` writes."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import cli_page

from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.trainer import make_trainer

PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


def test_it_is_what_the_parsers_say() -> None:
    assert cli_page.page() == PAGE, "run `make docs` and look at what has changed"


def test_it_has_every_option_once_with_its_words() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) \| (.*) \|$", PAGE.split("## train_tokenizer.py")[0], re.M)
    names = [row[0] for row in rows]
    for part, owner in {"data": TextDataModule, "model": GPT2Module, "trainer": make_trainer}.items():
        wanted = {name for name, p in inspect.signature(owner).parameters.items() if p.kind is not p.VAR_KEYWORD}
        linked = {"data": {"seed"}, "model": {"vocab_size", "n_positions", "document_start"}}.get(part, set())
        for name in wanted:
            assert names.count(f"{part}.{name}") == (name not in linked), f"{part}.{name}"
    assert all(words for *_, words in rows), [row[0] for row in rows if not row[3]]


def test_every_script_is_there() -> None:
    scripts = {path.name for path in ROOT.glob("*.py")} - {"trainer.py"} | {"data/get.py"}
    assert set(cli_page.SCRIPTS) == scripts
    for script in [*scripts, "trainer.py"]:
        assert f"\n## {script}\n" in PAGE


def test_it_is_the_same_on_every_machine() -> None:
    for place in (str(ROOT), str(Path.home()), "0x", "<function", "object at"):
        assert place not in PAGE or place == "/", place
