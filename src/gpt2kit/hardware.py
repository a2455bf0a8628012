"""What the device can do: its fastest matrix product, its memory, and what this process has used of it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

_CARDS: dict[str, tuple[float, float, float]] = {
    "GB200": (2500.0, 1250.0, 80.0),
    "B200": (2250.0, 1125.0, 75.0),
    "H200 NVL": (835.5, 417.5, 60.0),
    "H200": (989.4, 494.7, 66.9),
    "GH200": (989.4, 494.7, 66.9),
    "H100 NVL": (835.5, 417.5, 60.0),
    "H100 PCIe": (756.0, 378.0, 51.2),
    "H100": (989.4, 494.7, 66.9),
    "H800": (989.4, 494.7, 66.9),
    "H20": (148.0, 74.0, 44.0),
    "A100": (312.0, 156.0, 19.5),
    "A800": (312.0, 156.0, 19.5),
    "A30": (165.0, 82.0, 10.3),
    "A40": (149.7, 74.8, 37.4),
    "A10G": (70.0, 35.0, 31.2),
    "A10": (125.0, 62.5, 31.2),
    "L40S": (362.0, 183.0, 91.6),
    "L40": (181.0, 90.5, 90.5),
    "L4": (121.0, 60.0, 30.3),
    "RTX 6000 Ada": (364.2, 182.1, 91.1),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 5090": (209.5, 104.8, 104.8),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 4080": (97.5, 48.7, 48.7),
    "RTX 3090": (71.0, 35.6, 35.6),
    "V100 SXM2": (125.0, 15.7, 15.7),
    "V100 PCIE": (112.0, 14.0, 14.0),
    "T4": (65.0, 8.1, 8.1),
}
"""Dense TFLOP/s of the makers' data sheets: 16 bits with 32-bit sums, TF32, float32. Dense: sheets print twice as much
for matrices of which half are zeros. On GeForce cards, 16-bit products with 32-bit sums go at half the printed rate."""

_OTHERS = {"ti", "super", "laptop", "d", "mig", "max"}
"""Words that make another card of a name; it is measured."""

_SECONDS = 0.3


class Peak(NamedTuple):
    """A device's fastest matrix product in FLOP/s, and where the figure comes from."""

    flops: float
    source: str


def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The most FLOP/s to be had in `dtype`: by the data sheet of a card that is known, else measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if known := known_peak(name, dtype, torch.get_float32_matmul_precision() != "highest"):
            return Peak(known, f"{name}'s data sheet")
    return Peak(measured_peak(device, dtype), "a measured matrix product")


def known_peak(name: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """FLOP/s of a card by its name; None for one that is not in the table, or another dtype."""
    found = max((card for card in _CARDS if _named(card, name)), key=len, default=None)
    if found is None or dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return None
    if dtype == torch.bfloat16 and found in ("V100 SXM2", "V100 PCIE", "T4"):
        return None  # they have none
    half, tensor, single = _CARDS[found]
    return (half if dtype != torch.float32 else tensor if tf32 else single) * 1e12


def _named(card: str, name: str) -> bool:
    """Whether all words of a card stand in a device's name as words, and none that makes it another card."""
    words = set(name.lower().replace("-", " ").split())
    return set(card.lower().split()) <= words and not words & _OTHERS


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product, the best of those that fit into a third of a second. No random number is drawn."""
    end = time.perf_counter() + _SECONDS
    side, largest = 256, 2048 if device.type == "cpu" else 8192
    _seconds(_square(side, device, dtype), device)  # the first call sets up threads and kernels
    seconds = _seconds(_square(side, device, dtype), device)
    while side < largest and time.perf_counter() + 8 * seconds < end:
        side *= 2
        seconds = _seconds(_square(side, device, dtype), device)
    a = _square(side, device, dtype)
    while time.perf_counter() < end:
        seconds = min(seconds, _seconds(a, device))
    return 2 * side**3 / seconds


def _square(side: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(side * side, device=device) % 7 - 3).view(side, side).to(dtype)


def _seconds(a: torch.Tensor, device: torch.device) -> float:
    start = time.perf_counter()
    torch.mm(a, a)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start


def compute_dtype(precision: str) -> torch.dtype:
    """What matrix products are computed in under Lightning's name of a precision."""
    return {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(
        precision.split("-")[0], torch.float32
    )


def peak_memory(device: torch.device) -> int | None:
    """Bytes that this process has held at most: on a GPU, of its memory; on a CPU, resident. None: not known here."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Bytes of memory that this process holds now (its peak, where the system does not tell)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_memory(torch.device("cpu")) or 0


class Room(NamedTuple):
    """Bytes of a device's memory: free now, and in all."""

    free: int
    total: int


def room(device: torch.device) -> Room | None:
    """The device's memory, within the limits that a container sets. None: not known here."""
    if device.type == "cuda":
        return Room(*torch.cuda.mem_get_info(device))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        free, total = found["MemAvailable"], found["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None
        free = total
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            most = int(Path(limit).read_text(encoding="ascii"))
            free, total = min(free, max(most - int(Path(used).read_text(encoding="ascii")), 0)), min(total, most)
        except (OSError, ValueError):
            continue
    return Room(free, total)


def described(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return f"{processor()}, {torch.get_num_threads()} threads"
    return device.type


def processor() -> str:
    """The processor's name, where the system tells it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
