"""A user's mistake is one line on stderr and an exit code, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Outcome, Run

from gpt2kit.cli import generate, test, train
from gpt2kit.cli.parser import parse
from gpt2kit.cli.parser import run as run_command
from gpt2kit.cli.train_tokenizer import train_tokenizer


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data.blok_size=3"], 2, "Did you mean --data.block_size?"),
        (["--model.n_layer=x"], 2, "--model.n_layer"),
        (["--config=none.yaml"], 2, "none.yaml"),
        (
            ["--model.n_embd=33", "--data.batch_size=0", "--save_every=0"],
            2,
            "data.batch_size 0: must be at least 1; save_every 0: must be at least 1; model.n_embd 33",
        ),
        (["--model.n_embd=33", "--data.batch_size=0"], 2, "n_embd 33: not a multiple of model.n_head 2"),
        (["--trainer.precision=16-mixed"], 2, "16-mixed"),
        (["--trainer.max_steps=0"], 2, "trainer.max_steps 0: must be at least 1"),
        (["--trainer.limit_train_batches=3"], 2, "use trainer.max_steps"),
        (["--trainer.callbacks=Timer", "--trainer.callbacks.duration=00:00:00:01"], 2, "Timer"),
        (["--data.train_files=none.txt"], 3, "none.txt"),
        (["--data.tokenizer=none"], 3, "none"),
        (["--data.block_size=5000"], 3, "fewer than the 8 of one optimizer step"),
        (["--ckpt_path=none"], 4, "none"),
        (["--ckpt_path=last"], 4, "contains no run"),
        (["--trainer.accelerator=gpu"], 5, "has no GPU that torch can use"),
    ],
)
def test_training_mistakes_are_reported_in_one_line(
    arguments: list[str], code: int, message: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    exit_code, _, err = call(train.main, *options, *arguments)
    assert exit_code == code and message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not list(inside.iterdir()), "nothing was written"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "config.yaml: empty"),
        ("a\n", "config.yaml: not a mapping"),
        ("model:\n\tn_layer: 1\n", "config.yaml line 2, column 1"),
        (
            "model:\n  n_layer: 1\n  n_layer: 2\n",
            "config.yaml line 3, column 3: n_layer is set twice. Remove this line or line 2",
        ),
        ("model:\n  n_layr: 1\n", "Did you mean model.n_layer"),
    ],
)
def test_config_file_mistakes_are_reported_in_one_line(
    content: str, message: str, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "config.yaml").write_text(content)
    code, _, err = call(train.main, "--config", "config.yaml")
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_tokenizer_larger_than_the_model_is_refused(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    import torch

    from gpt2kit.checkpoint import checkpoint

    raw = checkpoint.read(checkpoint.find(run.folder))
    raw["gpt2kit"]["shape"]["vocab_size"] = 128
    for name in ("model.transformer.wte.weight", "model.lm_head.weight"):
        raw["state_dict"][name] = raw["state_dict"][name][:128].clone()
    torch.save(raw, inside / "small.ckpt")
    code, _, err = call(lambda args: run_command(test.test, args), "--ckpt_path", "small.ckpt")
    assert code == 4 and "320 tokens" in err


@pytest.mark.parametrize("function", [test.test, generate.generate])
def test_files_that_are_not_checkpoints_are_refused(
    function: Callable[..., None], call: Callable[..., Outcome], inside: Path, corpus: Path
) -> None:
    import torch

    torch.save({"state_dict": {}}, inside / "other.ckpt")
    (inside / "cut.ckpt").write_bytes((inside / "other.ckpt").read_bytes()[:100])
    (inside / "folder").mkdir()
    for path in ("none", "other.ckpt", "cut.ckpt", "folder", corpus / "train.txt"):
        code, _, err = call(lambda args: run_command(function, args), "--ckpt_path", path)
        assert code == 4 and err.count("\n") == 1 and str(path) in err


def test_mistakes_in_generate_and_train_tokenizer_are_reported(call: Callable[..., Outcome], inside: Path) -> None:
    code, _, err = call(
        lambda args: run_command(generate.generate, args), "--ckpt_path", "x", "--top_p", "3", "--temperature", "-1"
    )
    assert code == 2 and "--top_p 3" in err and "--temperature -1" in err
    code, _, err = call(lambda args: run_command(train_tokenizer, args), "--files", "a.txt", "--output_dir", "out")
    assert code == 3 and "a.txt" in err and not list(inside.iterdir())
    code, _, err = call(lambda args: run_command(train_tokenizer, args), "--file", "a.txt", "--output_dir", "out")
    assert code == 2 and "Did you mean --files?" in err


def test_a_prompt_without_quotes_is_one_clear_error(call: Callable[..., Outcome], inside: Path) -> None:
    arguments = ["last", "--prompt", "Once", "upon", "a", "time"]
    code, _, err = call(lambda args: run_command(generate.generate, args), *arguments)
    advice = 'which takes one value. Quote it: --prompt "Once upon a time"'
    assert code == 2 and err == f"error: unexpected argument 'upon' after --prompt, {advice}\n"
    assert parse(generate.generate, ["last", "--prompt", "a b", "--prompt", "c"])["prompt"] == ["a b", "c"]


def test_a_list_takes_several_values_and_may_be_repeated() -> None:
    arguments = ["--files", "a", "b", "--output_dir", "o", "--files", "1.5"]
    assert parse(train_tokenizer, arguments)["files"] == ["a", "b", "1.5"]


def test_a_bug_keeps_its_traceback(call: Callable[..., Outcome]) -> None:
    def broken(args: list[str]) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        call(broken)


def test_a_full_disk_or_memory_is_a_machine_error(call: Callable[..., Outcome]) -> None:
    def full(args: list[str]) -> None:
        raise OSError(28, "No space left on device", "here.bin")

    def memory(args: list[str]) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    assert call(full)[0] == 5 and "here.bin" in call(full)[2]
    assert call(memory)[0] == 5


def test_debug_shows_the_traceback(call: Callable[..., Outcome]) -> None:
    code, _, err = call(train.main, "--config=none.yaml", "--debug")
    assert code == 2 and "Traceback" in err
