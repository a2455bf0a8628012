"""Every option, script, file and class that docs/migration.md names in gpt2kit's column exists; its commands parse."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from helpers import COMMANDS, ROOT, Outcome, Parsed, ParseOnly

from gpt2kit.cli import cache as cli_cache
from gpt2kit.cli import parser as command
from gpt2kit.cli import train
from gpt2kit.cli.run_options import parse_early

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "data"))
import cli_page
import get
import migration_page

PAGE = (ROOT / "docs/migration.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = {**COMMANDS, "cache.py": cli_cache.manage, "data/get.py": get.get}
# Code spans of gpt2kit's column that are not an option, a script, a file or a class of this repository.
OTHER_SPANS = {"AutoTokenizer", "<|endoftext|>", "hf://", "lightning_logs/version_N", "weights_only=True"}
OTHER_SPANS |= {"torchrun ..."}


def gpt2kit_spans() -> list[str]:
    """Return each code span of the tables' second columns, those of gpt2kit."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in PAGE.splitlines() if line.startswith("|")]
    rows = [row for row in rows if set("".join(row)) - set("-")]
    return [span.replace("\\|", "|") for row in rows for span in re.findall("`([^`]+)`", row[1])]


option_names = cache(cli_page.option_names)


def find_missing(span: str) -> str | None:
    """Return the first name in a code span that does not exist; None if all exist."""
    parts = span.split()
    script = parts[0] if re.fullmatch(r"(data/)?\w+\.py", parts[0]) else "trainer.py"
    if not (ROOT / script).is_file():
        return script
    if span in OTHER_SPANS or span == script:
        return None
    if re.match(r"configs/", span):
        return None if (ROOT / parts[0]).exists() else parts[0]
    if match := re.fullmatch(r"(gpt2kit\.\w+)\.(\w+)", span):
        return None if hasattr(importlib.import_module(match[1]), match[2]) else span
    names = [part.removeprefix("--") for part in parts if part.startswith("--")]
    names += [part for part in parts[:1] if part != script and re.match(r"(data|model|trainer)\.", part)]
    if not names:
        return f"{span} (not an option, file or class; remove the code marks or correct the name)"
    return next((f"{script} {name}" for name in names if name not in option_names(script)), None)


def test_every_name_in_the_tables_exists() -> None:
    spans = gpt2kit_spans()
    assert len(spans) > 200
    missing = {span: reason for span in spans if (reason := find_missing(span))}
    assert not missing, "\n".join(f"{span}: {reason}" for span, reason in missing.items())


@pytest.mark.parametrize(
    "span",
    [
        *("data.blok_size", "--save_evry", "generate.py --topk", "sample.py --prompt", "configs/recipe/none.yaml"),
        *("gpt2kit.optim.Adam", "model.optimizer.beta1", "train.json", "data/fetch.py poems"),
    ],
)
def test_a_wrong_name_is_detected(span: str) -> None:
    assert find_missing(span)


@pytest.mark.parametrize("line", re.findall(r"^python .*$", PAGE, re.MULTILINE))
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, script, *args = shlex.split(line)
    if script in COMMANDS:
        assert command.parse(COMMANDS[script], args)
        return
    for recipe in re.findall(r"--config (\S+)", line):
        assert Path(recipe).is_file(), recipe
    if "--model.init_from" in line:  # the weights are not here, so only the names are checked
        parser = cli_page.trainer_parser()
        assert isinstance(parser, cli_page.ArgumentParser) and parser.parse_args(args)
        return
    with pytest.raises(Parsed):
        ParseOnly(args)
    assert parse_early(args)


def test_every_recipe_is_named() -> None:
    recipes = {f"configs/recipe/{path.name}" for path in (ROOT / "configs/recipe").glob("*.yaml")}
    assert recipes - set(re.findall(r"configs/recipe/\w+\.yaml", PAGE)) == {"configs/recipe/python.yaml"}, "the demo"


def test_the_tables_are_those_of_the_advice() -> None:
    page = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    assert migration_page.fill(page) == page, "run scripts/migration_page.py"


@pytest.mark.parametrize(
    ("script", "option", "advice"),
    [
        ("generate.py", "--prefix", "For Chinese-GPT-2's prefix: generate.py --prompt"),
        ("generate.py", "--nsamples", "For Chinese-GPT-2's nsamples: generate.py --num_samples"),
        ("generate.py", "--length", "For Chinese-GPT-2's length: generate.py --max_new_tokens"),
        ("generate.py", "--train_file", "For run_clm.py's train_file (in trainer.py): data.train_files"),
        ("trainer.py", "--train_file", "For run_clm.py's train_file: data.train_files"),
        ("trainer.py", "--trainer.max_iters", "For nanoGPT's max_iters: trainer.max_steps"),
        (
            "trainer.py",
            "--model.n_ctx",
            "For Chinese-GPT-2's n_ctx: data.block_size; the vocabulary is the tokenizer's",
        ),
        (
            "trainer.py",
            "--n_positions",
            "For Chinese-GPT-2's n_positions: data.block_size; the vocabulary is the tokenizer's",
        ),
        ("trainer.py", "--model.tokenizer_model", "For colorfulscoop's tokenizer_model: data.tokenizer"),
        (
            "trainer.py",
            "--raw_data_path",
            "For Chinese-GPT-2's raw_data_path: data.train_files: a JSON list, among other formats",
        ),
        ("test.py", "--eval_corpus", "For GPT2's eval_corpus: test.py --files"),
        ("train_tokenizer.py", "--train_file", "For colorfulscoop's train_file: train_tokenizer.py --files"),
        ("train_tokenizer.py", "--vocab_file", "For Chinese-GPT-2's vocab_file: train_tokenizer.py --output_dir"),
        ("train_tokenizer.py", "--config", "See --help"),
    ],
)
def test_an_option_of_another_program_gets_its_name_here(
    script: str, option: str, advice: str, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [script])
    run = train.main if script == "trainer.py" else lambda argv: command.run(COMMANDS[script], argv)
    code, _, err = call(run, option, "1")
    line = next(line for line in err.replace("; --", "\n--").splitlines() if option in line)
    assert code == 2 and line.endswith(f"no such option. {advice}") and "](" not in err


def test_advice_names_the_command_that_was_typed(call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/gpt2kit", "tokenize"])
    _, _, err = call(lambda argv: command.run(COMMANDS["train_tokenizer.py"], argv), "--train_file", "1")
    assert "For colorfulscoop's train_file: gpt2kit tokenize --files\n" in err
