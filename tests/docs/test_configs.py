"""The files in configs/ name existing options and compose; public names stay. Recipes: test_recipes.py."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml
from helpers import ROOT

from gpt2kit import optim
from gpt2kit.cli.train_cli import TrainCLI
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.optim.adamw import parameter_groups
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.trainer import make_trainer

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
GROUPS = {"model": GPT2Module, "data": TextDataModule, "trainer": make_trainer}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_is_short_and_opens_with_a_comment(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 25


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in GROUPS], ids=lambda path: path.stem)
def test_group_file_names_existing_options(path: Path) -> None:
    parameters = inspect.signature(GROUPS[path.parent.name]).parameters
    options = {name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    lightning = set(inspect.signature(pl.Trainer.__init__).parameters) if path.parent.name == "trainer" else set()
    assert set(yaml.safe_load(path.read_text())) <= options | lightning


@pytest.mark.parametrize("path", sorted((CONFIGS / "optimizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_group_files_compose(path: Path, options: list[str], inside: Path) -> None:
    cli = TrainCLI(
        [
            *options,
            f"--model={CONFIGS / 'model/nano.yaml'}",
            f"--model.optimizer={path}",
            f"--trainer={CONFIGS / 'trainer/debug.yaml'}",
            "--model.n_layer=1",
        ]
    )
    assert cli.model.shape["n_layer"] == 1 and cli.model.shape["n_embd"] == 128
    assert cli.config.trainer.max_steps == 10
    config = yaml.safe_load(path.read_text())
    cli.model.take_vocabulary(cli.datamodule.vocab_size, None)
    cli.model.build()
    optimizer = cli.model.make_optimizer(parameter_groups(cli.model.model))
    assert type(optimizer).__name__ == config["class_path"].rsplit(".", 1)[1]
    assert optimizer.automatic == set(config["init_args"])  # all are auto, and follow from the width
    assert optimizer.param_groups[0]["lr"] == type(optimizer).rates(128)["lr"]


def test_later_config_wins(options: list[str], inside: Path) -> None:
    (inside / "one.yaml").write_text("model:\n  n_layer: 3\n  n_embd: 64\n")
    (inside / "two.yaml").write_text("model:\n  n_layer: 1\n")
    others = [option for option in options if "n_layer" not in option and "n_embd" not in option]
    cli = TrainCLI([*others, "--config", "one.yaml", "--config", "two.yaml"])
    assert (cli.model.shape["n_layer"], cli.model.shape["n_embd"]) == (1, 64)
    assert TrainCLI([*others, "--config=one.yaml", "--model.n_layer=2"]).model.shape["n_layer"] == 2


def test_public_option_names_exist() -> None:
    """Users' YAML files contain these names: renaming one is a breaking change and belongs in CHANGELOG.md."""
    public = {
        GPT2Module: "n_layer n_head n_embd n_inner activation_function dropout embd_pdrop attn_pdrop resid_pdrop "
        "initializer_range layer_norm_epsilon gradient_checkpointing attention optimizer schedule max_nonfinite_steps "
        "init_from replace_tokenizer freeze freeze_steps lora_r lora_alpha",
        TextDataModule: "train_files valid_files test_files valid_fraction test_fraction tokenizer block_size "
        "batch_size reader shuffle cache_dir streaming window_shards",
        make_trainer: "precision max_epochs max_steps max_tokens max_time val_check_interval",
        optim.Muon: "lr adamw_lr weight_decay momentum betas",
        optim.AdamW: "lr betas eps weight_decay",
        optim.WarmupStableDecay: "warmup min_lr_ratio decay_ratio",
        optim.Cosine: "warmup min_lr_ratio",
    }
    for owner, names in public.items():
        assert set(names.split()) <= set(inspect.signature(owner).parameters), owner.__name__


def test_public_class_paths_are_saved_and_importable(options: list[str], inside: Path) -> None:
    """Configs, saved configs and cache keys name classes by these paths, wherever the classes are defined."""
    (inside / "c.yaml").write_text(
        "trainer: {callbacks: [{class_path: gpt2kit.callbacks.TextSamples, init_args: {prompts: [the]}}]}\n"
        "model:\n"
        "  optimizer: {class_path: gpt2kit.optim.AdamW, init_args: {lr: 0.002}}\n"
        "  schedule: {class_path: gpt2kit.optim.Cosine, init_args: {min_lr_ratio: 0.1}}\n"
        "data: {reader: {class_path: gpt2kit.text.Reader, init_args: {document: file}}}\n",
        encoding="utf-8",
    )
    cli = TrainCLI([*options, "--config", "c.yaml"])
    saved = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    assert saved["trainer"]["callbacks"][0]["class_path"] == "gpt2kit.callbacks.TextSamples"
    assert saved["model"]["optimizer"]["class_path"] == "gpt2kit.optim.AdamW"
    assert saved["model"]["schedule"]["class_path"] == "gpt2kit.optim.Cosine"
    assert saved["data"]["reader"]["class_path"] == "gpt2kit.text.Reader"
    assert cli.datamodule.reader.identity()["reader"] == "gpt2kit.text.Reader"
    muon = TrainCLI([*options, "--model.optimizer=gpt2kit.optim.Muon"])
    assert yaml.safe_load(muon.parser.dump(muon.config))["model"]["optimizer"]["class_path"] == "gpt2kit.optim.Muon"
    for path in ("gpt2kit.callbacks.EpochExports", "gpt2kit.data.TextDataModule", "gpt2kit.optim.WarmupStableDecay"):
        module, name = path.rsplit(".", 1)
        assert getattr(importlib.import_module(module), name).__name__ == name
