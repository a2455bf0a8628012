"""`--plan`: what a run would be, or all that is wrong with it; and the shorter form that opens each run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Outcome, Run

from gpt2kit.cli import train
from gpt2kit.runs import folder
from gpt2kit.training import plan, run_info
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.progress import SmoothedMean, StepTimer


def test_a_plan_says_all_and_leaves_nothing(
    options: list[str], call: Callable[..., Outcome], inside: Path, corpus: Path
) -> None:
    more = ["--trainer.max_steps=30", "--trainer.val_check_interval=10", "--plan", "--trainer.precision=auto"]
    code, out, err = call(train.main, *options, *more)
    assert code == 0 and not list(inside.iterdir()), err
    for name in ("text", "model", "run", "memory", "time", "device", "auto", "files"):
        assert f"\n{name:<7}" in "\n" + out, name
    assert "train 300 documents" in out and "bytes per token" in out and "30 steps of 8 x 16 tokens" in out
    assert "weights" in out and "optimizer state" in out and "activations" in out and "logits" in out
    assert "3 validations" in out and "tokens/s" in out and "MFU" in out
    assert "precision: " in out and "attention: " in out and "free on the disk" in out
    assert "lightning_logs/version_0" in out
    assert len(out.splitlines()) <= 40


def test_all_problems_at_once(options: list[str], call: Callable[..., Outcome], inside: Path) -> None:
    wrong = ["--data.valid_files=nowhere.txt", "--data.tokenizer=./none", "--model.n_head=3", "--save_every=0"]
    code, out, err = call(train.main, *options, *wrong, "--plan")
    assert code == 2 and not out
    for problem in ("nowhere.txt", "./none", "model.n_head 3", "save_every 0"):
        assert problem in err
    assert len(err.strip().splitlines()) == 1


def test_weights_and_callbacks_are_problems_among_others(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    samples = ["--trainer.callbacks+=gpt2kit.callbacks.TextSamples", "--trainer.callbacks.temperature=-1"]
    wrong = [*samples, "--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"]
    wrong += ["--trainer.strategy=fsdp", "--model.init_from=./none", "--save_every=0", "--data.valid_files=nowhere.txt"]
    code, out, err = call(train.main, *options, *wrong, "--plan")
    assert code == 2 and not out and len(err.strip().splitlines()) == 1
    for problem in (
        *(
            "model.init_from: none: no such checkpoint",
            "save_every 0",
            "nowhere.txt",
            "StochasticWeightAveraging: waits for Lightning",
            "temperature -1",
        ),
        "TextSamples: does not work with sharded weights",
    ):
        assert err.count(problem) == 1, problem
    code, _, err = call(train.main, *options, *wrong[:4], "--trainer.strategy=fsdp", "--data.tokenizer=./none")
    assert code == 2 and "TextSamples: does not work with sharded weights" in err
    assert "temperature -1" in err and "waits for Lightning" in err


def test_freeze_is_looked_at_before_a_model_is_made(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    wrong = ["--model.freeze=[0-99,wt]", "--save_every=0"]
    code, _, err = call(train.main, *options, *wrong, "--plan")
    assert code == 2 and "model.freeze 0-99: the model has layers 0 to 1. Nearest: 0-1" in err
    assert "did you mean wte?" in err and "save_every 0" in err


def test_no_tokenizer_is_a_problem_among_others(options: list[str], call: Callable[..., Outcome], inside: Path) -> None:
    none = [word for word in options if not word.startswith("--data.tokenizer")]
    code, _, err = call(train.main, *none, "--data.valid_files=nowhere.txt", "--plan")
    assert code == 2 and "nowhere.txt" in err and "tokenizer: no such tokenizer" in err
    (inside / "bad.txt").write_bytes(b"\xff\xfe\xfa broken \x80\n" * 5)
    wrong = [f"--data.valid_files={inside}/bad.txt", "--data.global_batch_size=9"]
    code, _, err = call(train.main, *options, *wrong, "--plan")
    assert code == 2 and "bad.txt" in err and "data.global_batch_size 9: not a multiple" in err


def test_wrong_text_is_a_problem_of_the_plan(options: list[str], call: Callable[..., Outcome], inside: Path) -> None:
    (inside / "bad.txt").write_bytes(b"\xff\xfe\xfa broken \x80\n" * 5)
    (inside / "empty.txt").write_bytes(b"")
    wrong = [f"--data.valid_files={inside}/bad.txt", f"--data.test_files={inside}/empty.txt"]
    code, _, err = call(train.main, *options, *wrong, "--plan")
    assert code == 2 and "bad.txt" in err and "empty.txt" in err
    code, _, err = call(train.main, *options, "--data.batch_size=5000", "--plan")
    assert code == 2 and "fewer than the 5000" in err


def test_the_same_facts_open_each_run_and_stay_in_its_folder(
    options: list[str], call: Callable[..., Outcome], tmp_path: Path
) -> None:
    more = ["--trainer.max_steps=2", f"--trainer.default_root_dir={tmp_path}"]
    _, _, err = call(train.main, *options, *more)
    heads = [line.split()[0] for line in err.splitlines()[:8]]
    assert heads == ["text", "model", "run", "device", "auto", "auto", "auto", "folder"]
    assert "precision: 32-true (as requested)" in err and "attention: plain (on a CPU matrix products" in err
    call(train.main, *options, "--trainer.max_steps=3", *more[1:], "--ckpt_path=last")
    starts = folder.read_starts(tmp_path / "lightning_logs/version_0")
    assert [bool(one["start"]["resumed"]) for one in starts] == [False, True]
    first = starts[0]
    assert (
        first["start"]["command"][1:] == [*options, *more]
        and first["start"]["chosen"]["precision"][1] == "as requested"
    )
    assert first["text"]["splits"]["train"]["documents"] == 300 and first["model"]["shape"]["n_layer"] == 2
    json.dumps(starts)


def test_documents_that_come_twice_are_counted(options: list[str], call: Callable[..., Outcome], inside: Path) -> None:
    (inside / "twice.txt").write_text("one line here\n" * 3 + "".join(f"line {n} there\n" for n in range(100)))
    code, out, _ = call(train.main, *options, f"--data.train_files={inside}/twice.txt", "--plan")
    assert code == 0 and "2 documents repeat another" in out


def test_gpt2_small_has_the_parameters_it_is_known_for() -> None:
    with torch.device("meta"):
        gpt2 = GPT2Module(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, n_positions=1024)
    found = run_info.describe_model(gpt2)
    assert found["parameters"] == 124_439_808 and found["embeddings"] == (50257 + 1024) * 768


@pytest.mark.parametrize(
    ("tokens", "seen", "parameters", "word"),
    [
        (1_000, 10_000, 10_000, "memorize"),
        (9_000, 9_000, 10_000, "the model is large"),
        (100_000, 10_000, 10_000, "the run is short"),
        (10_000_000, 10_000_000, 10_000, "the model is small"),
        (200_000, 400_000, 10_000, "the sizes of model and text fit"),
    ],
)
def test_a_plain_word_on_the_size(tokens: int, seen: int, parameters: int, word: str) -> None:
    facts = {
        "text": {"splits": {"train": {"tokens": tokens}}},
        "run": {"tokens": seen, "epochs": seen / tokens},
        "model": {"parameters": parameters},
    }
    assert word in plan.compare_sizes(facts)


def test_memory_that_is_not_there_is_said() -> None:
    found = {"parts": {"weights": 5 * 10**9, "gradients": 0}, "total": 5 * 10**9, "free": 10**9, "machine": 2 * 10**9}
    lines = "\n".join(line for _, line in plan.memory_lines(found))
    assert "MORE THAN IS FREE" in lines and "weights 5.00 GB" in lines and "gradients" not in lines


def test_the_pace_leaves_the_first_step_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gpt2kit.training.progress.time.monotonic", lambda: now[0])
    timer = StepTimer(100)
    now[0] = 60.0  # the first step compiles
    timer.step(101)
    assert timer.seconds_until(102) == 60.0  # nothing better is known
    for step in range(102, 112):
        now[0] += 2.0
        timer.step(step)
    assert timer.seconds_until(121) == pytest.approx(20.0)


def test_the_smoothed_loss_starts_without_bias() -> None:
    smoothed = SmoothedMean(0.9)
    assert smoothed.add(4.0) == 4.0 and 3.0 < smoothed.add(3.0) < 4.0


def test_what_is_logged(run: Run) -> None:
    series = folder.read_run(run.folder).series
    assert {"mfu", "memory_gb", "hours", "hours_left", "tokens_per_s"} <= set(series)
    hours = [*series["hours"].values()]
    assert series["hours_left"][40] == 0 and all(0 < value < 2 for value in series["mfu"].values())
    assert hours == sorted(hours)
    assert [*series["hours"]] == [10, 15, 20, 30, 40]  # validations, too
