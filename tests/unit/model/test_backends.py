"""What `auto` may choose, and what is said when a machine cannot do what is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import ROOT, Outcome, train_run

from gpt2kit.cli import train as cli
from gpt2kit.errors import MachineError
from gpt2kit.model import backends

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def matmul() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("device", "precision", "environment", "wanted"),
    [
        (GPU, "bf16-mixed", {}, "high"),
        (GPU, "16-mixed", {}, "high"),
        (GPU, "32-true", {}, "highest"),
        (GPU, "bf16-mixed", {"NVIDIA_TF32_OVERRIDE": "0"}, "highest"),
        (CPU, "bf16-mixed", {}, "highest"),
    ],
)
def test_tf32_is_for_mixed_precision_on_a_gpu(
    device: torch.device,
    precision: str,
    environment: dict[str, str],
    wanted: str,
    matmul: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    torch.set_float32_matmul_precision("highest")
    backends.allow_tf32(device, precision)
    assert torch.get_float32_matmul_precision() == wanted
    torch.set_float32_matmul_precision("medium")  # somebody's own wish
    backends.allow_tf32(device, precision)
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_compiler_that_is_not_there_is_said_in_one_line(
    options: list[str], inside: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(inside))
    monkeypatch.delenv("CXX", raising=False)
    code, _, err = call(cli.main, *options, "--trainer.max_steps=2", "--model.compile=blocks")
    assert code == 5 and err.count("error: ") == 1
    assert err.splitlines()[-1].startswith("error: model.compile blocks: needs a C++ compiler (g++), which is not")
    assert not (inside / "lightning_logs").exists()
    backends.refuse_missing_compiler("auto", CPU)
    backends.refuse_missing_compiler("off", CPU)


def test_pythons_headers_are_looked_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.shutil, "which", lambda name: name)
    monkeypatch.setattr(backends.sys, "platform", "linux")
    monkeypatch.setattr(backends.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(MachineError, match="Python's headers"):
        backends.refuse_missing_compiler("model", CPU)
    (tmp_path / "Python.h").touch()
    backends.refuse_missing_compiler("model", CPU)


def test_compiling_that_fails_is_said_in_one_line(options: list[str], tmp_path: Path) -> None:
    """A compiler that is there and does not work; in a process of its own, since torch remembers what it has found."""
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    broken.chmod(0o755)
    words = [*options, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=2", "--model.compile=blocks"]
    environment = {**os.environ, "CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "trainer.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("error: model.compile: torch.compile failed") and "model.compile off" in last
    assert backends.compile_failure(RuntimeError("other")) is None


def test_a_resumed_run_says_what_auto_has_chosen_otherwise(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are the same; the machine is not."""
    words = [word for word in options if "precision" not in word]
    monkeypatch.setattr(backends, "cpu_has_fast_bf16", lambda: True)
    run = train_run(tmp_path, words, "--trainer.max_steps=2")
    assert json.loads((run / "start.json").read_text())[-1]["start"]["chosen"]["precision"][0] == "bf16-mixed"
    train_run(tmp_path, words, "--trainer.max_steps=3", "--ckpt_path=last")
    assert "resume: precision" not in capsys.readouterr().err
    monkeypatch.setattr(backends, "cpu_has_fast_bf16", lambda: False)
    train_run(tmp_path, words, "--trainer.max_steps=4", "--ckpt_path=last")
    said = (
        "resume: precision was bf16-mixed, now 32-true (this CPU has no fast bfloat16); the same results up to rounding"
    )
    assert said in capsys.readouterr().err


def test_searches_and_proofs_do_not_go_on_in_a_run(options: list[str], call: Callable[..., Outcome]) -> None:
    for what in (["--verify_resume"], ["--tune=lr"]):
        code, _, err = call(cli.main, *options, *what, "--ckpt_path=last")
        assert code == 2 and "Leave out --ckpt_path" in err
