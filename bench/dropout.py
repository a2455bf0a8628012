"""Dropout by itself, forward and backward: ours and torch's, compiled and not.

    python bench/dropout.py

On attention weights [16, 12, 128, 128] in bfloat16; nanoseconds an element, median of some turns, the ways in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from machine import finish
from torch import Tensor
from torch.nn import functional as F

from gpt2kit.dropout import COMPILED, dropout


def torchs(x: Tensor) -> Tensor:
    return F.dropout(x, 0.1)


def ours(x: Tensor) -> Tensor:
    return dropout(x, 0.1, training=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "torch's": torchs,
        "torch's, compiled": torch.compile(torchs, dynamic=False),
        "torch's, compiled, fallback_random": torch.compile(torchs, dynamic=False, options=COMPILED),
        "ours": ours,
        "ours, compiled": torch.compile(ours, dynamic=False, options=COMPILED),
    }
    x = torch.randn(16, 12, 128, 128, dtype=torch.bfloat16, requires_grad=True)
    slope = torch.randn_like(x)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(given.turns + 2):
        for name, way in ways.items():
            begin = time.perf_counter()
            way(x).backward(slope)
            found[name] += [time.perf_counter() - begin] if turn > 1 else []
    times = {name: 1e9 * statistics.median(each) / x.numel() for name, each in found.items()}
    rows: list[dict[str, object]] = [
        {"way": name, "ns an element": f"{ns:.1f}", "times ours": f"{ns / times['ours']:.1f}"}
        for name, ns in times.items()
    ]
    finish(rows, given.output)


if __name__ == "__main__":
    main()
