"""A run with damaged, deleted or truncated files, or without its terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import Outcome, Run, final_weights, same_weights, train_run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import parser, plot, runs, train
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.runs import folder, lifecycle
from gpt2kit.training.checkpointing import discard_output_to_closed_terminal

FILES = ("metrics.csv", "start.json", "status.json", "config.yaml", "hparams.yaml", "samples.md", ".lock")


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def make_huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 60 << 30)  # a file with a hole, which takes no space on the disk


def make_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "file").touch()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: path.write_bytes(b"\xff\xfe"),
    "zeros": lambda path: path.write_bytes(bytes(1 << 18)),
    "nesting": lambda path: path.write_bytes(b"[" * 100_000),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "folder": make_folder,
    "fifo": make_fifo,
    "huge": make_huge,
}


@pytest.fixture
def copied(run: Run, inside: Path) -> Path:
    """A copy of the run's folder in the `lightning_logs` of the current folder."""
    target = shutil.copytree(run.folder, inside / paths.LOGS / "version_0")
    (target / "samples.md").write_text("# Samples\n")
    return target


@pytest.mark.parametrize("damage", ["bytes", "half", "fifo", "huge"])
def test_damaged_files_are_set_aside_when_a_run_is_resumed(
    damage: str, copied: Path, run: Run, call: Callable[..., Outcome]
) -> None:
    for name in FILES:
        DAMAGE[damage](copied / name)
    code, _, err = call(train.main, "--ckpt_path", "last", "--trainer.max_steps=42")
    assert code == 0, err
    aside = {path.name.removesuffix(".damaged") for path in copied.glob("*.damaged")}
    # A log that ends in the middle of a row is that of a killed run. The content of a lock and of hparams.yaml, which
    # is written again, means nothing.
    contents = set(FILES) - {".lock", "hparams.yaml"}
    expected = {"bytes": contents, "huge": contents, "half": {"start.json", "status.json", "config.yaml"}}
    assert aside == expected.get(damage, set(FILES))
    assert all(f"{copied.name}/{name}" in err for name in aside) and err.count("warning: ") == len(aside)
    assert paths.step_of(paths.checkpoints(copied)[0]) == 42
    assert folder.read_status(copied)["state"] == "done" and len(folder.read_run(copied).starts) >= 1
    settings = [(path / "config.yaml").read_text().replace("42", "40") for path in (copied, run.folder)]
    assert settings[0].split("model:")[1].split("data:")[0] == settings[1].split("model:")[1].split("data:")[0]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_listed_and_drawn_or_refused_in_one_line(
    damage: str, copied: Path, call: Callable[..., Outcome]
) -> None:
    pytest.importorskip("matplotlib", reason="optional: pip install matplotlib")
    for name in FILES:
        DAMAGE[damage](copied / name)
    code, out, _ = call(lambda args: parser.run(runs.runs, args))
    assert code == 0 and "version_0" in out
    code, _, err = call(lambda args: parser.run(plot.plot, args), "last", "--report", "page.html")
    assert code == 3 and err.startswith("error: ") and err.count("\n") == 1


def test_settings_in_a_checkpoint_never_import_another_package(copied: Path) -> None:
    file = paths.checkpoints(copied)[0]
    assert lifecycle.checkpoint_settings(file)["model"]["n_layer"] == 2
    raw = checkpoint.read(file)
    settings = raw["gpt2kit"]["settings"]
    for callbacks in (
        "os.system",
        [{"class_path": "os.system", "init_args": {}}],
        ["gpt2kit.callbacks.X", "os.system"],
    ):
        settings["trainer"]["callbacks"] = callbacks
        torch.save(raw, copied / "hostile.ckpt")
        assert lifecycle.checkpoint_settings(copied / "hostile.ckpt") == {}


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Call `act` in the forward pass of a training step."""
    nll, count = GPT2.nll, [0]

    def acting(self: GPT2, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count[0] += self.training
        if self.training and count[0] == step:
            act()
        return nll(self, batch)

    monkeypatch.setattr(GPT2, "nll", acting)


@contextlib.contextmanager
def handler_of_hangup(handler: signal.Handlers) -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize(
    ("handler", "code", "state"),
    [(signal.SIG_DFL, 129, "stopped"), (signal.SIG_IGN, 0, "done")],
    ids=["terminal", "nohup"],
)
def test_a_closed_terminal_saves_and_stops_unless_nohup_is_used(
    handler: signal.Handlers,
    code: int,
    state: str,
    options: list[str],
    call: Callable[..., Outcome],
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGHUP))
    with handler_of_hangup(handler):
        assert call(train.main, *options, "--trainer.max_steps=5")[0] == code
    run = inside / paths.LOGS / "version_0"
    status = folder.read_status(run)
    assert status["state"] == state
    assert paths.step_of(paths.checkpoints(run)[0]) == status["step"] == (3 if code else 5)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_output_to_a_closed_terminal_is_discarded() -> None:
    saved = os.dup(2)
    terminal, stream = os.openpty()
    try:
        os.dup2(stream, 2)
        os.close(stream)
        discard_output_to_closed_terminal()
        assert os.isatty(2), "an open terminal is kept"
        os.close(terminal)
        with pytest.raises(OSError):
            os.write(2, b"x")
        discard_output_to_closed_terminal()
        os.write(2, b"x")
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def test_a_run_whose_folder_is_deleted_stops_in_one_line(
    options: list[str], call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 3, lambda: shutil.rmtree(inside / paths.LOGS))
    code, _, err = call(train.main, *options, "--trainer.max_steps=9", "--save_every=4")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 5 and len(errors) == 1 and "Traceback" not in err and f"{paths.LOGS}/version_0" in errors[0]


def test_checkpoints_that_are_deleted_do_not_stop_a_run(
    options: list[str], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = train_run(inside / "reference", options, "--trainer.max_steps=5")
    at_step(monkeypatch, 4, lambda: shutil.rmtree(inside / paths.LOGS / "version_0/checkpoints"))
    run = train_run(inside, options, "--trainer.max_steps=5", "--save_every=2")
    assert same_weights(final_weights(run), final_weights(reference))


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    saves = [tmp_path / name / "checkpoints/.epoch=0-step=9.ckpt.77.tmp" for name in ("killed", "training")]
    for save in saves:
        save.parent.mkdir(parents=True)
        save.touch()
    lock = lifecycle.claim(tmp_path / "training")
    lifecycle.remove_leftovers_of_killed_runs(tmp_path)
    assert [save.exists() for save in saves] == [False, True]
    lock.release()
