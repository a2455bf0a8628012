"""torch.compile on the model and its layers, and the errors where it does not work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, SMALL, Outcome
from torch import Tensor
from torch._dynamo.utils import counters

from gpt2kit.cli import train
from gpt2kit.model import backends
from gpt2kit.model.backends import Compile
from gpt2kit.model.cpu_layers import COMPILE_OPTIONS, dropout, gelu
from gpt2kit.training.module import GPT2Module


@pytest.mark.parametrize("kind", ["blocks", "model"])
def test_a_model_is_compiled_once_for_training_and_once_for_validation(kind: Compile) -> None:
    torch.manual_seed(1)
    gpt2 = GPT2Module(**SMALL, compile=kind)
    batches = torch.randint(0, 40, (4, 2, 17))
    eager = [gpt2.model.nll(batch)[0].item() for batch in batches]
    torch._dynamo.reset()
    counters.clear()
    gpt2.model.compile_for_training(kind)
    graphs = []
    for _ in range(3):
        for batch in batches[:2]:
            gpt2.train().model.nll(batch)[0].backward()
        with torch.no_grad():
            compiled = [gpt2.eval().model.nll(batch)[0].item() for batch in batches]
        graphs.append(counters["stats"]["unique_graphs"])
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert graphs == [graphs[0]] * 3 and graphs[0] <= (4 if kind == "blocks" else 2)
    assert list(gpt2.state_dict()) == list(GPT2Module(**SMALL).state_dict())


def test_compiled_dropout_draws_the_same_random_numbers() -> None:
    def two_layers(x: Tensor) -> Tensor:
        return dropout(torch.sin(dropout(x, 0.5, True)) + 1, 0.25, True)

    def value_and_gradient(function: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        x = torch.linspace(1, 2, 4096, requires_grad=True)
        y = function(x)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]

    eager = value_and_gradient(two_layers)
    compiled = value_and_gradient(torch.compile(two_layers, dynamic=False, options=COMPILE_OPTIONS))
    torch.testing.assert_close(compiled, eager)
    assert 0.3 < (eager[1] == 0).double().mean() < 0.8


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6), (torch.bfloat16, 2**-7)]
)
def test_compiled_gelu_is_that_of_transformers(dtype: torch.dtype, tolerance: float) -> None:
    """Values and gradients, also where a cube would overflow float16."""
    from transformers.activations import NewGELUActivation

    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -60.0, 60.0, 1e4])]).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    expected = NewGELUActivation()(exact)
    actual = torch.compile(gelu, dynamic=False)(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(y.sum(), at)[0].double() for y, at in ((actual, x), (expected, exact))]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


def test_a_missing_compiler_is_reported_before_the_run_has_a_folder(
    options: list[str], inside: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(inside))
    monkeypatch.delenv("CXX", raising=False)
    code, _, err = call(train.main, *options, "--trainer.max_steps=2", "--model.compile=blocks")
    assert code == 5 and err.count("error: ") == 1
    assert err.splitlines()[-1].startswith("error: model.compile blocks: needs a C++ compiler (g++), which is not")
    assert not (inside / "lightning_logs").exists()


def test_a_failed_compilation_is_reported_in_one_line(options: list[str], tmp_path: Path) -> None:
    """Run in a separate process, since torch caches the compiler that it uses."""
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    compiler.chmod(0o755)
    arguments = [*options, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=2", "--model.compile=blocks"]
    environment = {**os.environ, "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "trainer.py"), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 5 and "Traceback" not in process.stderr, process.stderr
    assert last.startswith("error: model.compile: torch.compile failed") and "model.compile off" in last
    assert backends.compile_failure(RuntimeError("other")) is None
