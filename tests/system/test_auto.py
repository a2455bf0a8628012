"""Runs whose sizes and limits are `auto`, and what a run prints when it ends."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers import Outcome, train_run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import train

SIZES = ("--model.n_layer", "--model.n_head", "--model.n_embd", "--model.dropout")
OPTIMIZER = {"lr": 0.005, "adamw_lr": 0.012, "weight_decay": 0.1}


@pytest.fixture
def automatic(options: list[str]) -> list[str]:
    """The options of the tiny runs without the sizes of the model."""
    return [option for option in options if not option.startswith(SIZES)]


def test_the_config_of_a_run_has_numbers_and_print_config_has_auto(
    automatic: list[str], inside: Path, call: Callable[..., Outcome]
) -> None:
    code, printed, _ = call(train.main, *automatic, "--print_config")
    model = yaml.safe_load(printed)["model"]
    assert code == 0 and yaml.safe_load(printed)["trainer"]["max_epochs"] == "auto"
    chosen = [model["optimizer"]["init_args"][name] for name in ("lr", "adamw_lr", "weight_decay")]
    assert [model["n_layer"], model["dropout"], *chosen] == ["auto"] * 5
    Path("own.yaml").write_text(printed, encoding="utf-8")
    code, _, err = call(train.main, "--config=own.yaml", "--trainer.max_steps=2")
    assert code == 0, err
    assert "auto   4 layers, 4 heads, width 128, dropout 0, weight decay 0.1: for 0.0" in err
    run = inside / "lightning_logs/version_0"
    saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    metadata = checkpoint.read(paths.checkpoints(run)[0])["gpt2kit"]
    for settings in (saved, metadata["settings"]):
        assert [settings["model"][name.partition(".")[2]] for name in SIZES] == [4, 4, 128, 0.0]
        assert settings["model"]["optimizer"]["init_args"] == settings["model"]["optimizer"]["init_args"] | OPTIMIZER
        assert settings["trainer"]["max_epochs"] is None
    assert metadata["shape"]["n_embd"] == 128 and metadata["shape"]["resid_pdrop"] == 0.0


def test_without_a_limit_the_size_of_the_text_decides_the_passes(
    automatic: list[str], inside: Path, call: Callable[..., Outcome]
) -> None:
    automatic = [*automatic, "--model.compile=off"]  # which would take most of the time
    code, out, err = call(train.main, *automatic, "--plan")
    assert code == 0 and "= 6.00 epochs of" in out, err
    assert "4 layers, 4 heads, width 128, dropout 0.1, weight decay 0.5: for 6 passes over" in out
    code, out, _ = call(train.main, *automatic, "--plan", "--trainer.max_time=20m")
    assert code == 0 and "until the time limit" in out and "dropout 0.1, weight decay 2: for" in out


def test_auto_never_changes_a_resumed_run(
    automatic: list[str], options: list[str], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    decay = "--model.optimizer.weight_decay=0.3"
    run = train_run(tmp_path, options, "--model.dropout=0.2", decay, "--trainer.max_epochs=1", "--trainer.max_steps=2")
    code, printed, _ = call(train.main, *automatic, "--print_config")
    (tmp_path / "own.yaml").write_text(printed, encoding="utf-8")
    args = [f"--config={tmp_path / 'own.yaml'}", f"--trainer.default_root_dir={tmp_path}", "--ckpt_path=last"]
    code, _, err = call(train.main, *args, "--trainer.max_steps=4")
    assert code == 0 and "now auto" not in err and "auto   4 layers" not in err, err
    saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (saved["model"]["n_layer"], saved["model"]["dropout"], saved["trainer"]["max_epochs"]) == (2, 0.2, 1)
    raw = checkpoint.read(paths.checkpoints(run)[0])
    assert paths.step_of(paths.checkpoints(run)[0]) == 4 and raw["gpt2kit"]["shape"]["attn_pdrop"] == 0.2
    assert raw["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.3


def test_auto_means_the_sizes_of_pretrained_weights(
    automatic: list[str], run: object, inside: Path, call: Callable[..., Outcome]
) -> None:
    folder = run.folder  # type: ignore[attr-defined]
    args = [*automatic, f"--model.init_from={folder}", "--model.n_layer=auto", "--trainer.max_steps=1"]
    code, _, err = call(train.main, *args)
    assert code == 0, err
    shape = checkpoint.open(inside / "lightning_logs/version_0").shape
    assert (shape["n_layer"], shape["n_embd"], shape["resid_pdrop"]) == (2, 32, 0.0)


def test_a_fast_dev_run_has_sizes_and_writes_nothing(automatic: list[str], inside: Path) -> None:
    assert train.main([*automatic, "--trainer.fast_dev_run=1"]) is None
    assert not (inside / "lightning_logs").exists()


def test_the_end_of_a_run_has_its_scores_a_sample_and_the_next_commands(
    options: list[str], inside: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpt2kit", "train"])
    args = [*options, "--trainer.max_steps=25", "--trainer.val_check_interval=10", "--trainer.enable_progress_bar=true"]
    code, _, err = call(train.main, *args, "--trainer.log_every_n_steps=5")
    assert code == 0, err
    progress = next(line for line in err.splitlines() if line.startswith("step 15/25"))
    assert re.search(r"val_bpb \d\.\d{3} \(step 10\)", progress)
    report = err[err.index("\nlast   ") :]
    assert re.search(r"last   step 25: val_bpb \d\.\d{4}, val_loss \d\.\d{4}", report)
    assert re.search(r"best   step \d+: val_bpb", report) and "sample the quick" in report
    assert str(paths.find("lightning_logs/version_0")) in report
    assert "next   gpt2kit test last\n" in report
    line = next(line for line in report.splitlines() if "gpt2kit generate last --prompt" in line)
    assert shlex.split(line)[-1].startswith("the quick")
    monkeypatch.setattr("sys.argv", ["/home/me/trainer.py"])
    elsewhere = inside / "elsewhere"
    code, _, err = call(train.main, *options, "--trainer.max_steps=2", f"--trainer.default_root_dir={elsewhere}")
    assert f"next   python test.py --ckpt_path {elsewhere}/lightning_logs/version_0\n" in err


def test_the_choices_for_the_text_are_saved_and_kept(
    options: list[str], corpus: Path, inside: Path, call: Callable[..., Outcome]
) -> None:
    args = [option for option in options if not option.startswith(("--data.valid", "--data.test", "--data.tokenizer"))]
    code, _, err = call(train.main, *args, "--trainer.max_steps=2")
    assert code == 0, err
    run = inside / "lightning_logs/version_0"
    saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert saved["data"]["valid_fraction"] == saved["data"]["test_fraction"] > 0
    assert isinstance(saved["data"]["tokenizer"]["kind"], str)
    code, _, err = call(train.main, *args, "--trainer.max_steps=3", "--ckpt_path=last")
    assert code == 0 and paths.step_of(paths.checkpoints(run)[0]) == 3, err
    assert "resume: data" not in err
