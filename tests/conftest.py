"""A few kilobytes of text, a tokenizer and a trained run, made once for all tests."""

from __future__ import annotations

import contextlib
import io
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # read as the hub's client is imported; no test needs a network
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from helpers import CHROMIUM, SENTENCE, Outcome, Run, train_tokenizer

from gpt2kit import logs
from gpt2kit.cli import failures, train
from gpt2kit.errors import CheckpointError
from gpt2kit.export import huggingface, reload_check

torch.set_num_threads(1)  # models this small are slower on more, and far slower beside another program
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return forbid_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return forbid_skip((yield))


def forbid_skip(report: Report) -> Report:
    """Let a skipped test fail in CI, where everything is installed, unless it needs a GPU."""
    if os.environ.get("GPT2KIT_FORBID_SKIPS") and report.skipped and "GPU" not in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def logs_on_stderr() -> None:
    """Print notes and warnings as the commands do, also if a test calls a function directly."""
    logs.configure()


@pytest.fixture(scope="session", autouse=True)
def no_sync() -> Iterator[None]:
    """Do not sync files: no test simulates a power failure, and on a busy disk syncing takes most of a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, numbers in {"train": range(300), "valid": range(300, 340), "test": range(340, 380)}.items():
        (folder / f"{name}.txt").write_text("".join(SENTENCE.format(n) for n in numbers), encoding="utf-8")
    train_tokenizer([str(folder / "train.txt")], folder / "tokenizer", vocab_size=320)
    return folder


@pytest.fixture(scope="session")
def options(corpus: Path) -> list[str]:
    """Arguments of trainer.py for a tiny model on the tiny corpus."""
    return [
        *(f"--data.{split}_files={corpus / split}.txt" for split in ("train", "valid", "test")),
        f"--data.tokenizer={corpus / 'tokenizer'}",
        "--data.reader.document=line",
        f"--data.cache_dir={corpus / 'cache'}",
        *("--data.block_size=16", "--data.batch_size=8"),
        *("--model.n_layer=2", "--model.n_head=2", "--model.n_embd=32", "--model.dropout=0.1"),
        *("--trainer.precision=32-true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    ]


@pytest.fixture(scope="session")
def run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    work = tmp_path_factory.mktemp("run")
    arguments = [
        *options,
        "--trainer.max_steps=40",
        "--trainer.val_check_interval=15",
        f"--trainer.default_root_dir={work}",
    ]
    train.main(arguments)
    return Run(work / "lightning_logs" / "version_0", arguments, work)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call a command as its script does; return exit code, stdout and stderr."""

    def outcome(main: Callable[[list[str]], object], *args: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            failures.guarded(main, [str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return outcome


@pytest.fixture
def own_runs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checkpoints of this session name their test text, as the runs in the user's `lightning_logs` may."""
    monkeypatch.setattr("gpt2kit.evaluation.test_set.LOGS", str(tmp_path_factory.getbasetemp()))


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Path]:
    """Change to an empty folder and return it."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@pytest.fixture
def reload_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check exported folders in this process, which is faster."""

    def reload_folder(folder: Path, *arguments: Any) -> dict[str, Any]:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                return reload_check.reload(str(folder), *arguments)
        except Exception as error:
            raise CheckpointError(f"transformers cannot load the exported folder: {error}") from None

    monkeypatch.setattr(huggingface, "reload_folder", reload_folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; modules that use it are skipped where it is not installed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
