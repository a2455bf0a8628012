"""What `auto` means: precision, attention and compilation, each chosen from what was measured, with its reason.

The measurements are bench/attention.py's and bench/train_step.py's; their figures are in docs/benchmarks.md. A choice
never depends on how busy the machine is, so that a resumed run makes the same one.
"""

from __future__ import annotations

import os
import shutil
from typing import Literal, NamedTuple

import torch

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


_ASKED = "as asked"


def choose_precision(wanted: Precision, accelerator: object) -> Choice:
    """`wanted`, with auto decided by what the device computes fast."""
    if wanted != "auto":
        return Choice(wanted, _ASKED)
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


def choose_attention(wanted: Attention, device: torch.device, n_positions: int, head_size: int) -> Choice:
    """`wanted`, with auto decided: on a CPU products beat the fused kernel, unless heads are thin and blocks long."""
    if wanted != "auto":
        return Choice(wanted, _ASKED)
    if device.type != "cpu":
        return Choice("sdpa", "this device has fused kernels")
    if n_positions <= 32 * head_size:
        return Choice("plain", "on a CPU matrix products are faster than the fused kernel")
    return Choice("sdpa", "on a CPU the fused kernel is faster for thin heads over long blocks")


def choose_compile(
    wanted: Compile, device: torch.device, precision: str, flops: float, seconds: float | None
) -> Choice:
    """`wanted`, with auto decided by how long the run will compute.

    `flops`: of the whole run; `seconds`: the time limit, if there is one.
    """
    if wanted != "auto":
        return Choice(wanted, _ASKED)
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


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile needs and this machine lacks; None if all is there."""
    if device.type == "cuda" and not torch.utils._triton.has_triton():
        return "needs triton, which is not installed"
    wanted = os.environ.get("CXX")
    found = shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, ("g++", "clang++", "cl"))), None)
    return None if found else "needs a C++ compiler (g++), which is not installed"
