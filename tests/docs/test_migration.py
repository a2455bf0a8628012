"""docs/migration.md names nothing of ours that is not there."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers import COMMANDS, ROOT, Parsed, ParseOnly

from gpt2kit import optim
from gpt2kit.cli import cache as cli_cache
from gpt2kit.cli import parser as command
from gpt2kit.cli.train_options import parse_early
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization.trainers import TokenizerSpec

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "data"))
import cli_page
import get

PAGE = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
COMMANDS = {**COMMANDS, "cache.py": cli_cache.manage, "data/get.py": get.get}
NESTED = {
    "data.reader": [Reader],
    "data.tokenizer": [TokenizerSpec],
    "model.optimizer": [optim.Muon, optim.AdamW],
    "model.schedule": [optim.WarmupStableDecay, optim.Linear, optim.Cosine, optim.Constant],
}
WORDS = {"AutoTokenizer", "<|endoftext|>", "hf://", "lightning_logs/version_N"}
"""What is ours, or a library's, without being an option, a script, a file or a class of this repository."""


def ours() -> list[str]:
    """Each code span of the tables' second columns, where our names are."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in PAGE.splitlines() if line.startswith("|")]
    rows = [row for row in rows if set("".join(row)) - set("-")]
    return [span.replace("\\|", "|") for row in rows for span in re.findall("`([^`]+)`", row[1])]


@cache
def options(script: str) -> set[str]:
    """The names of a script's options."""
    parser = cli_page.trainer_parser() if script == "trainer.py" else command.parser_of(COMMANDS[script])
    found = {action.dest for action in cli_page.options(parser)}
    if script != "trainer.py":
        return found
    for name, kinds in NESTED.items():
        for kind in kinds:
            inner = cli_page.ArgumentParser(exit_on_error=False)
            inner.add_class_arguments(kind, skip={"params"})
            found |= {f"{name}.{action.dest}" for action in cli_page.options(inner)}
    return found | {"config"}


def missing(span: str) -> str | None:
    """What a span names that is not there; None if all is."""
    words = span.split()
    script = words[0] if re.fullmatch(r"(data/)?\w+\.py", words[0]) else "trainer.py"
    if not (ROOT / script).is_file():
        return script
    if span in WORDS or span == script:
        return None
    if re.match(r"configs/", span):
        return None if (ROOT / words[0]).exists() else words[0]
    if found := re.fullmatch(r"(gpt2kit\.\w+)\.(\w+)", span):
        return None if hasattr(importlib.import_module(found[1]), found[2]) else span
    named = [word.removeprefix("--") for word in words if word.startswith("--")]
    named += [word for word in words[:1] if word != script and re.match(r"(data|model|trainer)\.", word)]
    if not named:
        return f"{span} (neither an option nor a file nor a class; take the code marks away, or name it rightly)"
    return next((f"{script} {name}" for name in named if name not in options(script)), None)


def test_all_that_is_named_exists() -> None:
    spans = ours()
    assert len(spans) > 200
    lacking = {span: why for span in spans if (why := missing(span))}
    assert not lacking, "\n".join(f"{span}: {why}" for span, why in lacking.items())


@pytest.mark.parametrize(
    "span",
    [
        *("data.blok_size", "--save_evry", "generate.py --topk", "sample.py --prompt", "configs/recipe/none.yaml"),
        *("gpt2kit.optim.Adam", "model.optimizer.beta1", "train.json", "data/fetch.py poems"),
    ],
)
def test_a_name_that_is_not_there_is_seen(span: str) -> None:
    assert missing(span)


def test_its_links_lead_somewhere() -> None:
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", PAGE, re.M)}
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        page, _, anchor = link.partition("#")
        assert not page or (ROOT / "docs" / page).is_file(), link
        assert not anchor or anchor in anchors, link


@pytest.mark.parametrize("line", re.findall(r"^python .*$", PAGE, re.MULTILINE))
def test_its_commands_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, script, *words = shlex.split(line)
    if script in COMMANDS:
        assert command.parse(COMMANDS[script], words)
        return
    for recipe in re.findall(r"--config (\S+)", line):
        assert Path(recipe).is_file(), recipe
    if "hf://" in line:  # opening the weights needs a network; the names are checked
        parser = cli_page.trainer_parser()
        assert isinstance(parser, cli_page.ArgumentParser) and parser.parse_args(words)
        return
    with pytest.raises(Parsed):
        ParseOnly(words)
    assert parse_early(words)


def test_every_recipe_has_its_place() -> None:
    recipes = {f"configs/recipe/{path.name}" for path in (ROOT / "configs/recipe").glob("*.yaml")}
    assert recipes - set(re.findall(r"configs/recipe/\w+\.yaml", PAGE)) == {"configs/recipe/python.yaml"}, "the demo"
