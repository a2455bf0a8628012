"""Implements `gpt2kit env`: versions and devices as plain text, for a bug report."""

from __future__ import annotations

import os
import platform
from importlib import metadata

_PACKAGES = ("torch", "pytorch-lightning", "transformers", "tokenizers", "jsonargparse", "numpy", "gradio", "datasets")


def env() -> None:
    """Print versions and devices, to paste into a bug report. It names neither this machine nor its user."""
    print("\n".join(lines()))


def lines() -> list[str]:
    """Return a line for each version and device."""
    import torch  # here, so that --help does not import torch

    from gpt2kit import __version__, hardware
    from gpt2kit.model.backends import choose_precision

    cpu = torch.device("cpu")
    precision = choose_precision("auto", "auto")
    rows = {
        "gpt2kit": __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        **{name: version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "CPU": f"{hardware.device_name(cpu)}, {os.cpu_count()} cores",
        "memory": memory(hardware.device_memory(cpu)),
        "CUDA": f"{torch.version.cuda or 'not in this torch'}, {torch.cuda.device_count()} devices",
    }
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        rows[f"GPU {index}"] = f"{hardware.device_name(device)}, {memory(hardware.device_memory(device))}"
    rows["MPS"] = "available" if torch.backends.mps.is_available() else "not available"
    rows["precision"] = f"auto is {precision.value}: {precision.reason}"
    return [f"{name:<18}{value}" for name, value in rows.items()]


def version(package: str) -> str:
    """Return the version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def memory(sizes: tuple[int, int] | None) -> str:
    """Describe free and total bytes."""
    return "unknown" if sizes is None else f"{sizes[0] / 1e9:.1f} of {sizes[1] / 1e9:.1f} GB free"
