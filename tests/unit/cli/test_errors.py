"""A user's mistake is one line on stderr and an exit code, before the first step."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Outcome, Run

from gpt2kit import files
from gpt2kit.cli import failures, generate, test, train
from gpt2kit.cli.parser import parse
from gpt2kit.cli.parser import run as run_command
from gpt2kit.cli.train_tokenizer import train_tokenizer
from gpt2kit.errors import UserError


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
        (["--trainer.precision=16-true"], 2, "16-true"),
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

    from gpt2kit.checkpoint import checkpoint, paths

    raw = checkpoint.read(paths.find(run.folder))
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
    arguments = ["--ckpt_path", "last", "--reader.max_documents", "0"]
    assert call(lambda args: run_command(test.test, args), *arguments) == (
        2,
        "",
        "error: data.reader.max_documents 0: must be a whole number, at least 1\n",
    )


def test_control_characters_of_an_error_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    failures.print_error(UserError("\x1b[31m\x9bred\a " + "x" * 10**6))
    err = capsys.readouterr().err
    assert err.startswith(r"error: \x1b[31m\x9bred\x07 xxx") and len(err) < 21_000 and err.endswith("x ...\n")


def test_a_prompt_without_quotes_is_one_clear_error(call: Callable[..., Outcome], inside: Path) -> None:
    arguments = ["last", "--prompt", "Once", "upon", "a", "time"]
    code, _, err = call(lambda args: run_command(generate.generate, args), *arguments)
    advice = 'which takes one value. Quote it: --prompt "Once upon a time"'
    assert code == 2 and err == f"error: unexpected argument 'upon' after --prompt, {advice}\n"
    assert parse(generate.generate, ["last", "--prompt", "a b", "--prompt", "c"])["prompt"] == ["a b", "c"]


def test_a_list_takes_several_values_and_may_be_repeated() -> None:
    arguments = ["--files", "a", "b", "--output_dir", "o", "--files", "1.5"]
    assert parse(train_tokenizer, arguments)["files"] == ["a", "b", "1.5"]


class Panic(BaseException):
    """Like the exception of a library in Rust."""


@pytest.mark.parametrize("error", [KeyError("x"), Panic("the first line\nmore"), RecursionError()])
def test_a_bug_is_one_line_that_names_a_saved_report(
    error: BaseException, call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(args: list[str]) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["gpt2kit", "demo", "--auth", "me:secret", "https://me:secret@host/x"])
    code, out, err = call(broken)
    (report,) = inside.glob("gpt2kit-error-*.txt")
    assert code == 1 and not out and err.count("\n") == 1
    assert err.startswith(f"error: unexpected {type(error).__name__}: ") and " (test_errors.py line " in err
    assert err.endswith(f"This is a bug; please report it with {report.name}\n")
    text = report.read_text()
    assert "gpt2kit demo" in text and "torch" in text and "in broken" in text and "secret" not in text


def test_each_rank_reports_under_a_name_of_its_own(
    call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    code, _, err = call(lambda args: {}["x"])
    (report,) = inside.glob("*")
    assert code == 1 and err.startswith("rank 1: error: unexpected KeyError") and report.stem.endswith("-rank1")


def test_a_report_that_cannot_be_saved_is_printed(
    call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = inside / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, err = call(lambda args: {}["x"])
    assert code == 1 and "Traceback" in err and err.splitlines()[-1].startswith("error: unexpected KeyError: 'x'")


def test_an_error_in_a_thread_is_one_line(call: Callable[..., Outcome], inside: Path) -> None:
    def broken(args: list[str]) -> None:
        for error in (PermissionError(13, "Permission denied", b"/a/b"), SystemExit(0)):
            thread = threading.Thread(target=raises, args=(error,))
            thread.start()
            thread.join()

    def raises(error: BaseException) -> None:
        raise error

    code, _, err = call(broken)
    assert code == 0 and err.startswith("warning: /a/b: Permission denied. ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "here.bin"), "here.bin: no space left. Free some"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (OSError(errno.EIO, "Input/output error", "here.bin"), "here.bin: Input/output error"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "gloomy/run"),
            "gloomy/run: No such file or directory. It may",
        ),
        (Exception("while saving: No space left on device (os error 28)"), "no space left"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
            "not enough memory (",
        ),
        (MemoryError(), "not enough memory. Use"),
        (ConnectionError("Couldn't reach the hub"), "network: Couldn't reach the hub. Check the connection"),
    ],
)
def test_a_limit_of_the_machine_is_one_line(
    error: Exception, message: str, call: Callable[..., Outcome], inside: Path
) -> None:
    def fails(args: list[str]) -> None:
        raise error

    code, _, err = call(fails)
    assert code == 5 and message in err and err.count("\n") == 1 and not list(inside.iterdir())


def test_a_failed_write_names_its_file(call: Callable[..., Outcome], inside: Path) -> None:
    def fails(args: list[str]) -> None:
        with files.replacing(inside / "a.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")

    code, _, err = call(fails)
    assert code == 5 and f"{inside / 'a.bin'}: no space left" in err and not list(inside.iterdir())


def test_debug_shows_the_traceback(call: Callable[..., Outcome]) -> None:
    code, _, err = call(train.main, "--config=none.yaml", "--debug")
    assert code == 2 and "Traceback" in err
