"""The design card, followed as a user would: top-level names; a config is printed, edited, trained and tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml
from helpers import ROOT, run_script
from pytorch_lightning.cli import LightningCLI
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import GPT2LMHeadModel

from gpt2kit import GPT2Module, TextDataModule
from gpt2kit.cli.train_cli import TrainCLI

FILES = ("trainer.py", "test.py", "train_tokenizer.py", "requirements.txt", "README.md")
FOLDERS = ("src", "configs", "data", "lightning_logs")


def test_the_top_level_has_the_files_and_folders_of_the_card() -> None:
    assert [name for name in FILES if not (ROOT / name).is_file()] == []
    assert [name for name in FOLDERS if not (ROOT / name).is_dir()] == []


def test_the_classes_are_those_of_lightning_and_hugging_face() -> None:
    assert issubclass(GPT2Module, pl.LightningModule)
    assert issubclass(TextDataModule, pl.LightningDataModule)
    assert issubclass(TrainCLI, LightningCLI)
    gpt2 = GPT2Module(n_layer=1, n_head=1, n_embd=8, vocab_size=64, n_positions=8)
    assert isinstance(gpt2.model, GPT2LMHeadModel)


def test_a_config_is_printed_edited_trained_and_tested(
    corpus: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(ROOT / "trainer.py", "--print_config")
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    config["data"] |= {f"{split}_files": str(corpus / f"{split}.txt") for split in ("train", "valid", "test")}
    config["data"] |= {"tokenizer": str(corpus / "tokenizer"), "block_size": 16, "batch_size": 4}
    config["model"] |= {"n_layer": 2, "n_head": 2, "n_embd": 32, "compile": "off"}
    config["trainer"] |= {"accelerator": "cpu", "precision": "bf16-mixed", "accumulate_grad_batches": 2}
    config["trainer"] |= {"gradient_clip_val": 1.0, "max_steps": 20, "val_check_interval": 10, "log_every_n_steps": 1}
    (inside / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    run_script(ROOT / "trainer.py", "--config", "c.yaml")
    run = inside / "lightning_logs" / "version_0"
    saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert saved["trainer"]["precision"] == "bf16-mixed" and saved["trainer"]["accumulate_grad_batches"] == 2

    events = EventAccumulator(str(run)).Reload()
    losses = events.Scalars("loss/train")
    assert [loss.step for loss in losses] == list(range(1, 21)) and losses[-1].value < losses[0].value
    validated = events.Scalars("loss/valid")
    assert [loss.step for loss in validated] == [10, 20]

    capsys.readouterr()
    run_script(ROOT / "test.py", "--config", "c.yaml", "--ckpt_path", run)
    printed = capsys.readouterr().out
    figures = {line.rsplit(None, 1)[0]: line for line in printed.splitlines() if line.strip()}
    assert any(name.startswith("bits per byte") for name in figures)
    assert any(name.startswith("perplexity") for name in figures)
