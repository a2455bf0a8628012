"""Every recipe trains, on small texts in the form that it expects; only its sizes are smaller."""

from __future__ import annotations

import gzip
import json
import random
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import COMMANDS, ROOT, SENTENCE, Parsed, ParseOnly, Run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.cli import parser, train
from gpt2kit.errors import CheckpointError, MachineError
from gpt2kit.tokenization import tokenizer as tokenizers

sys.path.insert(0, str(ROOT / "data"))
import get

RECIPES = {path.stem: path for path in sorted((ROOT / "configs/recipe").glob("*.yaml"))}
RANDOM = random.Random(1)
LINES = [SENTENCE.format(n).strip() for n in range(150)]
VERSES = ["".join(RANDOM.choice("春江花月夜山水雲天") for _ in range(5)) for _ in range(300)]
POEMS = [f"{VERSES[n]}，{VERSES[n + 1]}。\n{VERSES[n + 2]}，{VERSES[n + 3]}。" for n in range(0, 297, 3)]
SONGS = "\n\n".join("\n".join(VERSES[n : n + 6]) for n in range(0, 290, 6))
BERT_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"春江花月夜山水雲天，。", "一", "##一"]
FRACTIONS = ["--data.valid_fraction=0.2", "--data.test_fraction=0.2"]
SMALL = [
    *("--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--data.block_size=16", "--data.batch_size=2"),
    *("--trainer.max_steps=3", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"),
    *("--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.enable_progress_bar=false"),
]
PAGE = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
COMMAND_LINES = re.findall(r"^    (python (?:\S+/)?\w+\.py .*)$", PAGE.replace("\\\n", " "), re.MULTILINE)


def read_recipe(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    return content


def write(name: str, text: str) -> None:
    path = Path("data", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_splits(folder: str, suffix: str, text: Callable[[int], str]) -> None:
    for number, name in enumerate(("train", "valid", "test")):
        write(f"{folder}/{name}{suffix}", text(number))


def write_parquet(folder: str) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    path = Path("data", folder)
    path.mkdir(parents=True)
    parquet.write_table(arrow.table({"text": [*LINES, *POEMS]}), path / "train-00000-of-00001.parquet")


def prepare(recipe: str, corpus: Path, run: Run) -> list[str]:
    """Write the recipe's text into data/, and return the options that make the run small."""
    if recipe.startswith("lyrics"):
        write_splits("lyrics", ".txt", lambda n: SONGS if n == 0 else SONGS[: 200 * n])
    match recipe:
        case "poems":
            write_splits("poems", ".jsonl.gz", lambda n: "\n".join(json.dumps({"text": poem}) for poem in POEMS[n:]))
        case "shakespeare_char":
            write_splits("shakespeare_char", ".txt", lambda n: "\n".join(LINES[n * 50 :]))
        case "lyrics_finetune" | "lyrics_finetune_word":
            options = [option for option in SMALL if "--model.n_" not in option and "block_size" not in option]
            return [*options, f"--model.init_from={run.folder}", "--trainer.accumulate_grad_batches=2"]
        case "words":
            write_splits("words", ".txt", lambda n: "\n".join(LINES[n:]))
            write("words/vocab.txt", "\n".join(["<unk>", "<s>", "</s>", "<pad>", "the", "quick", "fox", "good"]) + "\n")
        case "japanese":
            write_parquet("japanese")
            return [*SMALL, *FRACTIONS, "--trainer.accumulate_grad_batches=2"]
        case "novels":
            novels = ["，".join(VERSES[n : n + 40]) + "。" for n in range(0, 250, 5)]
            write("novels/train.json", json.dumps([*novels, "太短"], ensure_ascii=False))
            write("novels/vocab.txt", "\n".join(BERT_VOCABULARY) + "\n")
            return [*SMALL, *FRACTIONS, "--data.block_size=64", "--data.stride=48", "--data.batch_size=32"]
        case "gpt2_124m":
            write_parquet("gpt2_124m")
            local_files = ["--data.train_files=data/gpt2_124m", f"--data.tokenizer={corpus / 'tokenizer'}"]
            return [*SMALL, *local_files, "--data.global_batch_size=4", "--data.valid_fraction=0.2"]
        case "python":
            for split in ("train", "valid", "test"):
                for number in range(20):
                    write(f"demo/{split}/{number}.txt", f"{split} {number}\n" + "\n".join(LINES[number : number + 9]))
            Path("tokenizers").mkdir()
            Path("tokenizers/demo").symlink_to(corpus / "tokenizer")
    return SMALL


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name: str, corpus: Path, run: Run, inside: Path, reload_in_process: None) -> None:
    train.main(["--config", str(RECIPES[name]), *prepare(name, corpus, run)])
    folder = inside / "lightning_logs/version_0"
    newest = paths.checkpoints(folder)[0]
    assert paths.step_of(newest) == 3 and "val_loss=" in newest.name, "not validated"
    opened, recipe = checkpoint.open(folder), read_recipe(name)
    metadata = opened.metadata
    assert metadata["settings"]["model"]["optimizer"]["class_path"].startswith("gpt2kit.optim.")
    for option, value in recipe["data"].get("reader", {}).get("init_args", {}).items():
        assert metadata["reader"][option] == value
    assert (metadata["document_start"] is not None) == bool(recipe["data"].get("mask_documents"))
    callbacks = [callback["class_path"] for callback in recipe["trainer"].get("callbacks", [])]
    assert (folder / "samples.md").is_file() == ("gpt2kit.callbacks.TextSamples" in callbacks)
    assert (folder / "exports/epoch_1").is_dir() == ("gpt2kit.callbacks.EpochExports" in callbacks)
    check_tokenizer(name, opened, run)


def check_tokenizer(name: str, opened: LoadedCheckpoint, run: Run) -> None:
    """Check that a recipe has the vocabulary that it names, or that of the model that it starts from."""
    is_base = tokenizers.fingerprint(opened.tokenizer) == tokenizers.fingerprint(checkpoint.open(run.folder).tokenizer)
    if name == "words":
        assert opened.tokenizer.encode("the quick good").ids == [4, 5, 7]
        assert opened.tokenizer.decode([4, 5]) == "the quick"
    elif name == "lyrics_finetune":
        assert is_base and opened.metadata["start"]["vocabulary"] is None
    elif name == "lyrics_finetune_word":
        assert not is_base and opened.metadata["start"]["vocabulary"]["copied"] > 200


def test_lyrics_recipes_share_their_tokenizer() -> None:
    word, finetuned = (read_recipe(name)["data"] for name in ("lyrics_word", "lyrics_finetune_word"))
    for option in ("tokenizer", "train_files", "reader"):
        assert word[option] == finetuned[option]


@pytest.mark.parametrize("name", RECIPES)
def test_first_line_has_a_result_or_says_not_measured(name: str) -> None:
    line = RECIPES[name].read_text(encoding="utf-8").splitlines()[0]
    assert any(text in line for text in ("bits per byte", "nats", "Not measured.")) and len(line) <= 120


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_of_the_page_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, script, *args = shlex.split(line, comments=True)
    if script == "data/get.py":
        assert args[0] in get.TEXTS
    elif script in COMMANDS:
        assert parser.parse(COMMANDS[script], args)
    else:
        assert script == "trainer.py"
        # The pretrained model and the GPUs of some commands are missing here.
        with pytest.raises((Parsed, CheckpointError, MachineError)):
            ParseOnly([arg for arg in args if arg != "--plan"])


def test_page_lists_every_recipe() -> None:
    assert all(f"`{name}`" in PAGE for name in RECIPES) and len(COMMAND_LINES) > 25
