"""docs/cli.md is the output of `make cli_page`, names every option, and agrees with `--help`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from helpers import ROOT, Outcome

sys.path.insert(0, str(ROOT / "scripts"))
import cli_page

from gpt2kit.cli import train, train_help
from gpt2kit.cli.help import is_option, text_of
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.trainer import make_trainer

PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


def test_page_matches_the_parsers() -> None:
    assert cli_page.page() == PAGE, "run `make cli_page` and review the difference"


def test_every_option_is_listed_once_with_a_description() -> None:
    rows = re.findall(r"^\| `([^` ]+)[^`]*` \| (.*?) \| (.*) \|$", PAGE.split("## train_tokenizer.py")[0], re.M)
    names = [row[0] for row in rows]
    for section, owner in {"data": TextDataModule, "model": GPT2Module, "trainer": make_trainer}.items():
        options = {name for name, p in inspect.signature(owner).parameters.items() if p.kind is not p.VAR_KEYWORD}
        linked = {"data": {"seed"}, "model": {"vocab_size", "n_positions", "document_start"}}.get(section, set())
        for name in options:
            assert names.count(f"{section}.{name}") == (name not in linked), f"{section}.{name}"
    assert all(text for *_, text in rows), [row[0] for row in rows if not row[2]]


def test_help_comments_and_page_have_the_same_texts(call: Callable[..., Outcome]) -> None:
    short, full, comments = (
        " ".join(call(train.main, argument)[1].replace("#", " ").split())
        for argument in ("--help", "--help=all", "--print_config=comments")
    )
    for action in cli_page.trainer_parser()._actions:
        if not is_option(action) or train_help.is_unchanged(action):
            continue
        text = text_of(action)
        assert text in full and text.replace("|", "\\|") in PAGE, action.dest
        assert text in comments or action.dest in ("config", "print_config"), action.dest
        assert text_of(action, is_short=True) in short, action.dest


def test_every_script_has_a_section() -> None:
    scripts = {path.name for path in ROOT.glob("*.py")} - {"trainer.py"} | {"data/get.py"}
    assert set(cli_page.SCRIPTS) == scripts
    for script in [*scripts, "trainer.py"]:
        assert f"\n## {script}\n" in PAGE


def test_page_does_not_depend_on_the_machine() -> None:
    for text in (str(ROOT), str(Path.home()), "0x", "<function", "object at"):
        assert text not in PAGE or text == "/", text
