"""Dropout and GELU by themselves, forward and backward: ours, torch's and the library's, compiled and not.

    python bench/quick_layers.py

Dropout of attention weights [16, 12, 128, 128], GELU of activations [2048, 1536], both bfloat16; nanoseconds an
element, median of some turns, the ways in turn.
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
from transformers.activations import NewGELUActivation

from gpt2kit.model.cpu_layers import COMPILE_OPTIONS, dropout, gelu


def torchs_dropout(x: Tensor) -> Tensor:
    return F.dropout(x, 0.1)


def our_dropout(x: Tensor) -> Tensor:
    return dropout(x, 0.1, training=True)


def librarys_gelu(x: Tensor) -> Tensor:
    return NewGELUActivation()(x)


def torchs_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def compiled(way: Callable[[Tensor], Tensor], **options: object) -> Callable[[Tensor], Tensor]:
    return torch.compile(way, dynamic=False, **options)


LAYERS: dict[str, tuple[tuple[int, ...], dict[str, Callable[[Tensor], Tensor]]]] = {
    "dropout": (
        (16, 12, 128, 128),
        {
            "torch's": torchs_dropout,
            "torch's, compiled": compiled(torchs_dropout),
            "torch's, compiled, fallback_random": compiled(torchs_dropout, options=COMPILE_OPTIONS),
            "ours": our_dropout,
            "ours, compiled": compiled(our_dropout, options=COMPILE_OPTIONS),
        },
    ),
    "GELU": (
        (2048, 1536),
        {
            "the library's": librarys_gelu,
            "the library's, compiled": compiled(librarys_gelu),
            "torch's, compiled": compiled(torchs_gelu),
            "ours (torch's)": gelu,
            "ours, compiled": compiled(gelu),
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    for layer, (shape, ways) in LAYERS.items():
        x = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
        slope = torch.randn_like(x)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(given.turns + 2):
            for name, way in ways.items():
                begin = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16):
                    y = way(x)
                y.to(slope.dtype).backward(slope)
                found[name] += [time.perf_counter() - begin] if turn > 1 else []
        times = {name: 1e9 * statistics.median(each) / x.numel() for name, each in found.items()}
        last = list(times.values())[-1]
        rows += [
            {"layer": layer, "way": name, "ns an element": f"{ns:.1f}", "times the last": f"{ns / last:.1f}"}
            for name, ns in times.items()
        ]
    finish(rows, given.output)


if __name__ == "__main__":
    main()
