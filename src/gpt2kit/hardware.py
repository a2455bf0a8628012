"""The device's peak FLOP/s and memory, and the memory that this process uses."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path

import torch

# Dense TFLOP/s from the vendors' data sheets: in 16 bits with float32 accumulation, and in float32. Data sheets also
# list twice as much, for sparse matrices and, on GeForce cards, for float16 accumulation.
_CARDS = {
    "GB200": (2500.0, 80.0),
    "B200": (2250.0, 75.0),
    "H200 NVL": (835.5, 60.0),
    "H200": (989.4, 66.9),
    "GH200": (989.4, 66.9),
    "H100 NVL": (835.5, 60.0),
    "H100 PCIe": (756.0, 51.2),
    "H100": (989.4, 66.9),
    "H800": (989.4, 66.9),
    "H20": (148.0, 44.0),
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "A30": (165.0, 10.3),
    "A40": (149.7, 37.4),
    "A10G": (70.0, 31.2),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "RTX 6000 Ada": (364.2, 91.1),
    "RTX A6000": (154.8, 38.7),
    "RTX 5090": (209.5, 104.8),
    "RTX 4090": (165.2, 82.6),
    "RTX 4080": (97.5, 48.7),
    "RTX 3090": (71.0, 35.6),
    "V100 SXM2": (125.0, 15.7),
    "V100 PCIE": (112.0, 14.0),
    "T4": (65.0, 8.1),
}
# Cards older than Ampere, which have neither bfloat16 nor TF32.
_BEFORE_AMPERE = ("V100 SXM2", "V100 PCIE", "T4")
# A name with one of these words is of a variant that is not in the table.
_VARIANTS = {"ti", "super", "laptop", "d", "mig", "max"}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s in `dtype` from a GPU's data sheet; None if the device is not in the table.

    A short measurement depends on what else the machine does, so it could be exceeded.
    """
    if device.type != "cuda":
        return None
    uses_tf32 = torch.get_float32_matmul_precision() != "highest"
    return data_sheet_flops(torch.cuda.get_device_name(device), dtype, uses_tf32)


def data_sheet_flops(name: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """Return the FLOP/s of a card by its name; None if the card or the dtype is not in the table."""
    words = set(name.lower().replace("-", " ").split())
    cards = [card for card in _CARDS if set(card.lower().split()) <= words]
    if not cards or words & _VARIANTS:
        return None
    card = max(cards, key=len)
    half, single = _CARDS[card]
    flops = {torch.float16: half, torch.float32: single}
    if card not in _BEFORE_AMPERE:
        flops |= {torch.bfloat16: half, torch.float32: half / 2 if tf32 else single}  # TF32 has half the speed
    return flops[dtype] * 1e12 if dtype in flops else None


def compute_dtype(precision: str) -> torch.dtype:
    """Return the dtype of matrix products for one of Lightning's names of a precision."""
    dtypes = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return dtypes.get(precision.split("-")[0], torch.float32)


def peak_memory(device: torch.device) -> int | None:
    """Return this process's peak memory in bytes: GPU memory, or resident memory on a CPU. None if it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """Return this process's resident memory in bytes; its peak on systems other than Linux."""
    try:
        return int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory(torch.device("cpu")) or 0


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Return the device's free and total memory in bytes, within the limits of a container. None if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    sizes = _memory_sizes()
    try:
        physical = sizes.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
    free, total = sizes.get("MemAvailable", physical), physical
    for limit_file, usage_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit, usage = int(_read(limit_file)), int(_read(usage_file))
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
        free, total = min(free, max(limit - usage, 0)), min(total, limit)
    return free, total


def largest_memory(device: torch.device) -> int | None:
    """Return the bytes that can be used on the device at most, on a CPU with the swap space. None if it is unknown."""
    memory = device_memory(device)
    swap = 0 if device.type == "cuda" else _memory_sizes().get("SwapTotal", 0)
    return memory and memory[1] + swap


def device_name(device: torch.device) -> str:
    """Return the device's name for reports."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # not Linux
        lines = _read("/proc/cpuinfo").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def _memory_sizes() -> dict[str, int]:
    """Return what Linux reports in /proc/meminfo, in bytes; empty on other systems."""
    try:
        lines = _read("/proc/meminfo").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")
