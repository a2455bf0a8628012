"""Every recipe runs on generated text in its format, with smaller sizes; the commands of docs/recipes.md parse."""

from __future__ import annotations

import contextlib
import gzip
import io
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

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import parser, train
from gpt2kit.errors import CheckpointError, MachineError
from gpt2kit.export import huggingface, reload_check
from gpt2kit.tokenization import tokenizer as tokenizers

sys.path.insert(0, str(ROOT / "data"))
import get

RECIPES = sorted((ROOT / "configs/recipe").glob("*.yaml"))
DRAW = random.Random(1)
LINES = [SENTENCE.format(n).strip() for n in range(150)]
VERSES = ["".join(DRAW.choice("春江花月夜山水雲天") for _ in range(5)) for _ in range(300)]
POEMS = [f"{VERSES[n]}，{VERSES[n + 1]}。\n{VERSES[n + 2]}，{VERSES[n + 3]}。" for n in range(0, 297, 3)]
SONGS = "\n\n".join("\n".join(VERSES[n : n + 6]) for n in range(0, 290, 6))
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"春江花月夜山水雲天，。", "一", "##一"]
SHARES = ["--data.valid_fraction=0.2", "--data.test_fraction=0.2"]
SMALL = [
    *("--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--data.block_size=16", "--data.batch_size=2"),
    *("--trainer.max_steps=3", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"),
    *("--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.enable_progress_bar=false"),
]


def write(name: str, text: str) -> None:
    path = Path("data", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def splits(folder: str, suffix: str, text: Callable[[int], str]) -> None:
    for number, name in enumerate(("train", "valid", "test")):
        write(f"{folder}/{name}{suffix}", text(number))


def parquet(folder: str) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    path = Path("data", folder)
    path.mkdir(parents=True)
    parquet.write_table(arrow.table({"text": [*LINES, *POEMS]}), path / "train-00000-of-00001.parquet")


def lyrics() -> None:
    splits("lyrics", ".txt", lambda n: SONGS if n == 0 else SONGS[: 200 * n])


def made(recipe: str, corpus: Path, run: Run) -> list[str]:
    """Write the recipe's text into data/, and return the arguments that make it small."""
    match recipe:
        case "poems":
            splits("poems", ".jsonl.gz", lambda n: "\n".join(json.dumps({"text": poem}) for poem in POEMS[n:]))
        case "shakespeare_char":
            splits("shakespeare_char", ".txt", lambda n: "\n".join(LINES[n * 50 :]))
        case "lyrics_char" | "lyrics_word":
            lyrics()
        case "lyrics_finetune" | "lyrics_finetune_word":
            lyrics()
            base = [word for word in SMALL if "--model.n_" not in word and "block_size" not in word]
            return [*base, f"--model.init_from={run.folder}", "--trainer.accumulate_grad_batches=2"]
        case "words":
            splits("words", ".txt", lambda n: "\n".join(LINES[n:]))
            write("words/vocab.txt", "\n".join(["<unk>", "<s>", "</s>", "<pad>", "the", "quick", "fox", "good"]) + "\n")
        case "japanese":
            parquet("japanese")
            return [*SMALL, *SHARES, "--trainer.accumulate_grad_batches=2"]
        case "novels":
            novels = ["，".join(VERSES[n : n + 40]) + "。" for n in range(0, 250, 5)]
            write("novels/train.json", json.dumps([*novels, "太短"], ensure_ascii=False))
            write("novels/vocab.txt", "\n".join(BERT) + "\n")
            return [*SMALL, *SHARES, "--data.block_size=64", "--data.stride=48", "--data.batch_size=32"]
        case "gpt2_124m":
            parquet("gpt2_124m")
            place = ["--data.train_files=data/gpt2_124m", f"--data.tokenizer={corpus / 'tokenizer'}"]
            return [*SMALL, *place, "--data.global_batch_size=4", "--data.valid_fraction=0.2"]
        case "python":
            for split in ("train", "valid", "test"):
                for number in range(20):
                    write(f"demo/{split}/{number}.txt", f"{split} {number}\n" + "\n".join(LINES[number : number + 9]))
            Path("tokenizers").mkdir()
            Path("tokenizers/demo").symlink_to(corpus / "tokenizer")
    return SMALL


@pytest.fixture
def reload_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reload exported folders in this process, which is faster."""

    def reload_here(folder: Path, *arguments: Any) -> dict[str, Any]:
        with contextlib.redirect_stderr(io.StringIO()):
            return reload_check.reload(str(folder), *arguments)

    monkeypatch.setattr(huggingface, "reload_folder", reload_here)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs(recipe: Path, corpus: Path, run: Run, inside: Path, reload_in_process: None) -> None:
    train.main(["--config", str(recipe), *made(recipe.stem, corpus, run)])
    folder = inside / "lightning_logs/version_0"
    newest = checkpoint.checkpoints(folder)[0]
    assert checkpoint.step_of(newest) == 3 and "val_loss=" in newest.name, "it validates"
    facts = checkpoint.open(folder).metadata
    config = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert facts["settings"]["model"]["optimizer"]["class_path"].startswith("gpt2kit.optim.")
    for name, reader in config["data"].get("reader", {}).get("init_args", {}).items():
        assert facts["reader"][name] == reader
    assert bool(facts["document_start"] is not None) == bool(config["data"].get("mask_documents"))
    callbacks = [callback["class_path"] for callback in config["trainer"].get("callbacks", [])]
    assert (folder / "samples.md").is_file() == ("gpt2kit.callbacks.TextSamples" in callbacks)
    assert (folder / "exports/epoch_1").is_dir() == ("gpt2kit.callbacks.EpochExports" in callbacks)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_first_line_has_a_result_or_says_not_measured(recipe: Path) -> None:
    first = recipe.read_text(encoding="utf-8").splitlines()[0]
    assert any(word in first for word in ("bits per byte", "nats", "Not measured.")) and len(first) <= 120


def test_ids_of_words_are_their_line_numbers(corpus: Path, run: Run, inside: Path) -> None:
    train.main(
        ["--config", str(ROOT / "configs/recipe/words.yaml"), *made("words", corpus, run), "--trainer.max_steps=1"]
    )
    tokenizer = checkpoint.open(inside / "lightning_logs/version_0").tokenizer
    assert tokenizer.encode("the quick good").ids == [4, 5, 7] and tokenizer.decode([4, 5]) == "the quick"


def test_both_finetuned_models_start_from_the_base(corpus: Path, run: Run, inside: Path) -> None:
    """One keeps the tokenizer of the base, the other uses that of lyrics_word, which is trained once for both."""
    base = checkpoint.open(run.folder)
    for recipe in ("lyrics_finetune", "lyrics_finetune_word", "lyrics_word"):
        words = made(recipe, corpus, run)
        train.main(["--config", str(ROOT / f"configs/recipe/{recipe}.yaml"), *words, "--trainer.max_steps=1"])
    same, moved, word = (checkpoint.open(inside / f"lightning_logs/version_{n}") for n in range(3))
    assert same.metadata["start"]["vocabulary"] is None and moved.metadata["start"]["vocabulary"]["copied"] > 200
    assert tokenizers.fingerprint(same.tokenizer) == tokenizers.fingerprint(base.tokenizer)
    assert tokenizers.fingerprint(moved.tokenizer) == tokenizers.fingerprint(word.tokenizer)
    assert moved.model.shape["n_embd"] == base.model.shape["n_embd"]


DOCS = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
COMMAND_LINES = re.findall(r"^    (python (?:\S+/)?\w+\.py .*)$", DOCS.replace("\\\n", " "), re.MULTILINE)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_of_the_page_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, script, *words = shlex.split(line, comments=True)
    if script == "data/get.py":
        assert words[0] in get.TEXTS
    elif script in COMMANDS:
        assert parser.parse(COMMANDS[script], words)
    else:
        assert script == "trainer.py"
        with pytest.raises((Parsed, CheckpointError, MachineError)):  # the base model and the GPUs are missing here
            ParseOnly(words)


def test_page_names_every_recipe() -> None:
    assert all(f"`{recipe.stem}`" in DOCS for recipe in RECIPES) and len(COMMAND_LINES) > 25
