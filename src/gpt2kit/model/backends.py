"""What `auto` means: precision, attention and compilation, each chosen from what was measured, with its reason.

The measurements are bench/attention.py's and bench/train_step.py's; their figures are in docs/benchmarks.md. A choice
never depends on how busy the machine is, so that a resumed run makes the same one.
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
from gpt2kit.model.config import Shape, head_size

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Attention = Literal["auto", "sdpa", "plain"]
Compile = Literal["auto", "blocks", "model", "off"]

REPAID = 60.0
"""Seconds of computing from which on compiling (some 5 to 20 seconds, a third less time a step) is sure to pay."""


class Choice(NamedTuple):
    """What is used, and why: one line at the start of a run."""

    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


ASKED = "as asked"
"""The reason of a choice that was the user's."""


def choose_precision(wanted: Precision, accelerator: object) -> Choice:
    """`wanted`, with auto decided by what the device computes fast."""
    if wanted != "auto":
        return Choice(wanted, ASKED)
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16-mixed", "this GPU computes bfloat16")
        return Choice("16-mixed", "this GPU has no bfloat16")
    if torch.backends.mps.is_available() and accelerator in ("auto", "gpu", "mps"):
        return Choice("32-true", "bfloat16 gains nothing on this device")
    if cpu_has_fast_bf16():
        return Choice("bf16-mixed", "this CPU multiplies bfloat16 in hardware")
    return Choice("32-true", "this CPU has no fast bfloat16")


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware (avx512_bf16 or amx)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_attention(wanted: Attention, device: torch.device, shape: Shape) -> Choice:
    """`wanted`, with auto decided: on a CPU products beat the fused kernel, above all with dropout."""
    if wanted != "auto":
        return Choice(wanted, ASKED)
    if device.type != "cpu":
        return Choice("sdpa", "this device has fused kernels")
    if shape["n_positions"] <= 32 * head_size(shape) or shape["attn_pdrop"]:
        return Choice("plain", "on a CPU matrix products are faster than the fused kernel")
    return Choice("sdpa", "on a CPU, for thin heads over long blocks, hardly slower, and with less memory")


def choose_compile(
    wanted: Compile, device: torch.device, precision: str, flops: float, seconds: float | None
) -> Choice:
    """`wanted`, with auto decided by how long the run will compute.

    `flops`: of the whole run; `seconds`: the time limit, if there is one.
    """
    if wanted != "auto":
        return Choice(wanted, ASKED)
    if device.type not in ("cpu", "cuda"):
        return Choice("off", "not tried on this device")
    if missing := missing_compiler(device):
        return Choice("off", missing)
    about = min(flops / usual_rate(device, precision), seconds or float("inf"))
    if about < REPAID:
        return Choice("off", f"computing will take about {about:.0f} s, too little to repay it")
    return Choice("blocks", "the run is long enough to repay it")


def usual_rate(device: torch.device, precision: str) -> float:
    """FLOPs a second that training without compiling reaches on such a device, roughly: half of a good one's."""
    if device.type == "cuda":
        return 100e12
    fast = precision.startswith("bf16") and cpu_has_fast_bf16()
    return torch.get_num_threads() * (150e9 if fast else 40e9)


def refuse_missing_compiler(wanted: Compile, device: torch.device) -> None:
    """Raise if compiling is asked for by name and cannot be; `auto` does without."""
    if wanted in ("blocks", "model") and (missing := missing_compiler(device)):
        raise MachineError(f"model.compile {wanted}: {missing}. Install it, or use model.compile auto")


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile needs and this machine lacks; None if all is there."""
    if device.type == "cuda" and not torch.utils._triton.has_triton():
        return "needs triton, which is not installed"
    names = {"darwin": "clang++", "win32": "cl"}
    compiler = os.environ.get("CXX") or names.get(sys.platform, "g++")  # as torch looks for it
    if not shutil.which(compiler):
        return f"needs a C++ compiler ({compiler}), which is not installed"
    headers = Path(sysconfig.get_path("include"))
    if sys.platform == "linux" and not (headers / "Python.h").is_file():
        return f"needs Python's headers (the package python3-dev; {headers}/Python.h), which are not installed"
    return None


def compile_failure(error: BaseException) -> MachineError | None:
    """What torch.compile says when it fails, in one line; None if it was something else."""
    if not any(kind.__module__.startswith(("torch._dynamo.", "torch._inductor.")) for kind in type(error).__mro__):
        return None
    why = first_line(error)[:300]
    return MachineError(f"model.compile: torch.compile failed on this machine ({why}). Use model.compile off")


def multiply_fast(device: torch.device, precision: str) -> None:
    """Let a GPU multiply float32 matrices in TF32 where most products are in 16 bits anyway.

    Not where 32 bits were asked for, nor where NVIDIA_TF32_OVERRIDE or an earlier setting of torch's says otherwise.
    """
    free = torch.get_float32_matmul_precision() == "highest" and "NVIDIA_TF32_OVERRIDE" not in os.environ
    if device.type == "cuda" and precision.endswith("-mixed") and free:
        torch.set_float32_matmul_precision("high")
