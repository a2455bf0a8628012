"""Choose precision, attention and compilation where the user sets `auto`. Each choice is based on measurements.

bench/attention.py and bench/train_step.py measure; docs/benchmarks.md has the results. A choice never depends on how
busy the machine is, so that a resumed run makes the same choice.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from gpt2kit.errors import MachineError, first_line
from gpt2kit.model.config import Shape

Precision = Literal[
    "auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64", 32, 16, 64
]
# Lightning's short names, under which 16 bits mean mixed precision. YAML reads some of them as numbers.
_PRECISION_ALIASES = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}
Attention = Literal["auto", "sdpa", "plain"]
Compile = Literal["auto", "blocks", "model", "off"]

# Seconds of training above which compilation pays off: it takes 5 to 20 seconds and saves about a third of a step.
MIN_SECONDS_TO_COMPILE = 60.0

# The reason for a choice that the user made.
REQUESTED = "as requested"


class Choice(NamedTuple):
    """What is used, and why."""

    value: str
    reason: str


def full_precision_name(precision: Precision) -> str:
    """Return Lightning's full name of a precision: 16-mixed for 16."""
    return _PRECISION_ALIASES.get(str(precision), str(precision))


def choose_precision(requested: Precision, accelerator: object) -> Choice:
    """Choose a precision that is fast on the device, unless one is requested.

    On a CPU 16-mixed means auto, because configs for GPUs request it. Lightning replaces it there, too.
    """
    name = full_precision_name(requested)
    if name == "16-mixed" and is_cpu(accelerator):
        value, reason = choose_precision("auto", "cpu")
        return Choice(value, f"float16 is about a thousand times slower on a CPU; {reason}")
    if name != "auto":
        return Choice(name, REQUESTED)
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16-mixed", "this GPU supports bfloat16 in hardware")
        return Choice("16-mixed", "this GPU does not support bfloat16 in hardware")
    if torch.backends.mps.is_available() and accelerator in ("auto", "gpu", "mps"):
        return Choice("32-true", "bfloat16 is no faster on this device")
    if cpu_has_fast_bf16():
        return Choice("bf16-mixed", "this CPU multiplies bfloat16 in hardware")
    return Choice("32-true", "this CPU has no fast bfloat16")


def is_cpu(accelerator: object) -> bool:
    """Return whether training with this value of `trainer.accelerator` is on a CPU."""
    return accelerator == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())


def cpu_has_fast_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 matrices in hardware (avx512_bf16 or amx)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_attention(requested: Attention, device: torch.device, shape: Shape) -> Choice:
    """Choose the faster attention on a device, unless one is requested."""
    if requested != "auto":
        return Choice(requested, REQUESTED)
    if device.type != "cpu":
        return Choice("sdpa", "this device has fused kernels")
    head_size = shape["n_embd"] // shape["n_head"]
    if shape["n_positions"] <= 32 * head_size or shape["attn_pdrop"]:
        return Choice("plain", "on a CPU matrix products are faster than the fused kernel")
    return Choice("sdpa", "on a CPU with small heads and long blocks it takes less memory and about the same time")


def choose_compile(
    requested: Compile, device: torch.device, precision: str, flops: float, seconds: float | None
) -> Choice:
    """Choose what to compile, from the FLOPs of the whole run and its time limit in seconds, if it has one."""
    if requested != "auto":
        return Choice(requested, REQUESTED)
    if device.type not in ("cpu", "cuda"):
        return Choice("off", "not measured on this device")
    if problem := compiler_problem(device):
        return Choice("off", problem)
    duration = min(flops / typical_flops_per_second(device, precision), seconds or float("inf"))
    if duration < MIN_SECONDS_TO_COMPILE:
        return Choice("off", f"training takes about {duration:.0f} s, too short for compilation to pay off")
    return Choice("blocks", "the run is long enough for compilation to pay off")


def typical_flops_per_second(device: torch.device, precision: str) -> float:
    """Return a rough estimate of training speed without compilation: half of that of a good device."""
    if device.type == "cuda":
        return 100e12
    is_fast = precision.startswith("bf16") and cpu_has_fast_bf16()
    return torch.get_num_threads() * (150e9 if is_fast else 40e9)


def refuse_missing_compiler(requested: Compile, device: torch.device) -> None:
    """Raise if compilation is requested, not just chosen, and this machine lacks a compiler."""
    if requested in ("blocks", "model") and (problem := compiler_problem(device)):
        raise MachineError(f"model.compile {requested}: {problem}. Install it, or use model.compile auto")


def compiler_problem(device: torch.device) -> str | None:
    """Return what torch.compile needs and this machine lacks; None if it lacks nothing."""
    if device.type == "cuda" and not torch.utils._triton.has_triton():
        return "needs triton, which is not installed"
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # as torch does
    if not shutil.which(compiler):
        return f"needs a C++ compiler ({compiler}), which is not installed"
    headers = Path(sysconfig.get_path("include"))
    if sys.platform == "linux" and not (headers / "Python.h").is_file():
        return f"needs Python's headers ({headers}/Python.h, of the package python3-dev), which are not installed"
    return None


def compile_failure(error: BaseException) -> MachineError | None:
    """Return an error of torch.compile as a MachineError; None if the error is not from torch.compile."""
    if not any(kind.__module__.startswith(("torch._dynamo.", "torch._inductor.")) for kind in type(error).__mro__):
        return None
    reason = first_line(error)[:300]
    return MachineError(f"model.compile: torch.compile failed on this machine ({reason}). Use model.compile off")


def allow_tf32(device: torch.device, precision: str) -> None:
    """Let a GPU multiply float32 matrices in TF32 in mixed precision, where most products have 16 bits anyway.

    NVIDIA_TF32_OVERRIDE and a precision that was set in torch take precedence.
    """
    is_unset = torch.get_float32_matmul_precision() == "highest" and "NVIDIA_TF32_OVERRIDE" not in os.environ
    if device.type == "cuda" and precision.endswith("-mixed") and is_unset:
        torch.set_float32_matmul_precision("high")
