"""What `auto` means: precision, attention and compilation, each chosen from what was measured, with its reason."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Attention = Literal["auto", "sdpa", "eager"]


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
    """`wanted`, with auto decided: plain matrix products beat the CPU's fused kernel while blocks are short."""
    if wanted != "auto":
        return Choice(wanted, _ASKED)
    if device.type == "cpu" and n_positions <= 512:
        return Choice("eager", "plain products are faster on a CPU with blocks up to 512")
    return Choice("sdpa", "the fused kernel is faster here")
