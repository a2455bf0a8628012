"""`trainer.py --plan` and `--tune`: what they print, what they refuse, and that they write nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Outcome

from gpt2kit.cli import train
from gpt2kit.runs import folder
from gpt2kit.training import tuning


def test_a_plan_describes_the_run_and_writes_nothing(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "twice.txt").write_text("one line here\n" * 3 + "".join(f"line {n} there\n" for n in range(400)))
    args = [*options, f"--data.train_files={inside}/twice.txt", "--trainer.precision=auto"]
    args += ["--trainer.max_steps=30", "--trainer.val_check_interval=10"]
    code, out, err = call(train.main, *args, "--plan")
    assert code == 0 and [path.name for path in inside.iterdir()] == ["twice.txt"], err
    for name in ("text", "model", "run", "memory", "time", "device", "auto", "files"):
        assert f"\n{name:<7}" in "\n" + out, name
    assert (
        "train 403 documents" in out
        and "2 documents repeat another" in out
        and "bytes per token" in out
        and "30 steps of 8 x 16 tokens" in out
    )
    assert "weights" in out and "optimizer state" in out and "activations" in out and "logits" in out
    assert "3 validations" in out and "tokens/s" in out
    assert "precision: " in out and "attention: " in out and "free on the disk" in out
    assert "lightning_logs/version_0" in out
    assert len(out.splitlines()) <= 40


def test_all_problems_are_reported_at_once(options: list[str], call: Callable[..., Outcome], inside: Path) -> None:
    wrong = ["--data.valid_files=nowhere.txt", "--data.tokenizer=./none", "--model.n_head=3", "--save_every=0"]
    code, out, err = call(train.main, *options, *wrong, "--plan")
    assert code == 2 and not out
    for problem in ("nowhere.txt", "./none", "model.n_head 3", "save_every 0"):
        assert problem in err
    assert len(err.strip().splitlines()) == 1


def test_problems_of_initial_weights_and_callbacks_are_reported_with_the_others(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    samples = ["--trainer.callbacks+=gpt2kit.callbacks.TextSamples", "--trainer.callbacks.temperature=-1"]
    wrong = [*samples, "--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"]
    wrong += ["--trainer.strategy=fsdp", "--model.init_from=./none", "--save_every=0", "--data.valid_files=nowhere.txt"]
    code, out, err = call(train.main, *options, *wrong, "--plan")
    assert code == 2 and not out and len(err.strip().splitlines()) == 1
    sharded, epochs = (
        "TextSamples: does not work with sharded weights",
        "StochasticWeightAveraging: waits for Lightning",
    )
    source = "model.init_from: none: no such checkpoint"
    for problem in (source, "save_every 0", "nowhere.txt", epochs, "temperature -1", sharded):
        assert err.count(problem) == 1, problem
    code, _, err = call(train.main, *options, *wrong[:4], "--trainer.strategy=fsdp", "--data.tokenizer=./none")
    assert code == 2 and sharded in err and epochs in err and "temperature -1" in err


def test_freeze_is_checked_before_the_model_is_built(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    wrong = ["--model.freeze=[0-99,wt]", "--save_every=0"]
    code, _, err = call(train.main, *options, *wrong, "--plan")
    assert code == 2 and "model.freeze 0-99: the model has layers 0 to 1. Nearest: 0-1" in err
    assert "did you mean wte?" in err and "save_every 0" in err


def test_a_missing_tokenizer_is_reported_with_the_others(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    code, _, err = call(train.main, *options, "--data.tokenizer=none", "--data.valid_files=nowhere.txt", "--plan")
    assert code == 2 and "nowhere.txt" in err and "none: no such tokenizer" in err


def test_problems_of_the_text_are_reported(options: list[str], call: Callable[..., Outcome], inside: Path) -> None:
    (inside / "bad.txt").write_bytes(b"\xff\xfe\xfa broken \x80\n" * 5)
    (inside / "empty.txt").write_bytes(b"")
    wrong = [
        f"--data.valid_files={inside}/bad.txt",
        f"--data.test_files={inside}/empty.txt",
        "--data.global_batch_size=9",
    ]
    code, _, err = call(train.main, *options, *wrong, "--plan")
    assert code == 2 and "bad.txt" in err and "empty.txt" in err and "data.global_batch_size 9: not a multiple" in err
    code, _, err = call(train.main, *options, "--data.batch_size=5000", "--plan")
    assert code == 2 and "fewer than the 5000" in err


def test_each_start_prints_a_summary_and_is_recorded_in_start_json(
    options: list[str], call: Callable[..., Outcome], tmp_path: Path
) -> None:
    args = [*options, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=2"]
    _, _, err = call(train.main, *args)
    labels = [line[:7].strip() for line in err[: err.index("\nlast")].splitlines()]
    assert [label for label in labels if label] == ["text", "model", "run", "auto", "device", *["auto"] * 3, "folder"]
    assert "precision: 32-true (as requested)" in err and "attention: plain (on a CPU matrix products" in err
    call(train.main, *args, "--trainer.max_steps=3", "--ckpt_path=last")
    starts = folder.read_starts(tmp_path / "lightning_logs/version_0")
    assert [bool(start["start"]["resumed"]) for start in starts] == [False, True]
    first = starts[0]
    assert (
        first["start"]["command"] == ["gpt2kit", "train", *args]
        and first["start"]["chosen"]["precision"][1] == "as requested"
    )
    assert first["text"]["splits"]["train"]["documents"] == 300 and first["model"]["shape"]["n_layer"] == 2


def test_find_lr_tries_rising_rates_and_writes_nothing(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--model.n_layer=1", "--model.n_head=1", "--model.n_embd=16", "--data.block_size=8"]
    train.main([*options, *small, "--tune", "lr", f"--trainer.default_root_dir={tmp_path / 'runs'}"])
    out = capsys.readouterr().out
    assert "5e-05, 0.00012" in out  # Muon's and AdamW's rates, at a hundredth
    assert "times the configured rates" in out and "lowest" in out
    assert not (tmp_path / "runs").exists()


def test_a_failed_measurement_returns_its_error(options: list[str]) -> None:
    result, problem = tuning.measure_in_child([*options, "--plan", "--data.batch_size=1000000"])
    assert not result and "fewer than the 1000000 of one optimizer step" in problem
