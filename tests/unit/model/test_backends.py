"""The choices of `auto` for precision, attention, compilation and TF32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import SMALL_SHAPE

from gpt2kit.errors import MachineError
from gpt2kit.model import backends
from gpt2kit.model.backends import choose_attention, choose_compile, choose_precision

CPU, CUDA, OTHER = (torch.device(name) for name in ("cpu", "cuda", "meta"))


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("device", "precision", "environment", "expected"),
    [
        (CUDA, "bf16-mixed", {}, "high"),
        (CUDA, "16-mixed", {}, "high"),
        (CUDA, "32-true", {}, "highest"),
        (CUDA, "bf16-mixed", {"NVIDIA_TF32_OVERRIDE": "0"}, "highest"),
        (CPU, "bf16-mixed", {}, "highest"),
    ],
)
def test_tf32_is_for_mixed_precision_on_a_gpu(
    device: torch.device,
    precision: str,
    environment: dict[str, str],
    expected: str,
    matmul_precision: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    torch.set_float32_matmul_precision("highest")
    backends.allow_tf32(device, precision)
    assert torch.get_float32_matmul_precision() == expected
    torch.set_float32_matmul_precision("medium")  # set by the user
    backends.allow_tf32(device, precision)
    assert torch.get_float32_matmul_precision() == "medium"


def test_precision_depends_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "cpu_has_fast_bf16", lambda: True)
    assert choose_precision("auto", "cpu").value == "bf16-mixed"
    monkeypatch.setattr(backends, "cpu_has_fast_bf16", lambda: False)
    assert choose_precision("auto", "cpu").value == "32-true"


@pytest.mark.parametrize(
    ("name", "full"),
    [("16", "16-mixed"), (16, "16-mixed"), ("bf16", "bf16-mixed"), (32, "32-true"), ("bf16-true", "bf16-true")],
)
def test_short_names_of_precisions_mean_the_same_as_in_lightning(
    name: backends.Precision, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "is_cpu", lambda accelerator: accelerator == "cpu")
    assert choose_precision(name, "cuda") == (full, "as requested")


@pytest.mark.parametrize("name", ["16", 16, "16-mixed"])
def test_mixed_float16_on_a_cpu_means_what_is_fast_there(name: backends.Precision) -> None:
    value, reason = choose_precision(name, "cpu")
    assert value == choose_precision("auto", "cpu").value
    assert reason.startswith("float16 is about a thousand times slower on a CPU; this CPU")


def test_attention_depends_on_device_block_size_and_dropout() -> None:
    shape = {**SMALL_SHAPE, "n_positions": 2048, "n_head": 2, "n_embd": 64, "attn_pdrop": 0.0}
    assert choose_attention("auto", CPU, {**shape, "n_head": 1}).value == "plain"
    assert choose_attention("auto", CPU, shape).value == "sdpa"
    assert choose_attention("auto", CPU, {**shape, "attn_pdrop": 0.1}).value == "plain"
    assert choose_attention("auto", OTHER, SMALL_SHAPE).value == "sdpa"
    assert choose_attention("sdpa", CPU, SMALL_SHAPE) == ("sdpa", "as requested")


def test_only_long_runs_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_compile("auto", CPU, "32-true", 1e12, None).value == "off"
    assert choose_compile("auto", CPU, "32-true", 1e16, None).value == "blocks"
    assert choose_compile("auto", CPU, "32-true", 1e16, 30.0).value == "off"
    assert choose_compile("model", CPU, "32-true", 1.0, None) == ("model", "as requested")
    assert choose_compile("auto", OTHER, "32-true", 1e16, None).value == "off"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "C++ compiler" in choose_compile("auto", CPU, "32-true", 1e16, None).reason


def test_a_requested_compilation_needs_pythons_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/sh")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(MachineError, match="Python's headers"):
        backends.refuse_missing_compiler("model", CPU)
    backends.refuse_missing_compiler("auto", CPU)
    backends.refuse_missing_compiler("off", CPU)
    (tmp_path / "Python.h").touch()
    backends.refuse_missing_compiler("model", CPU)
