"""The time of an update: AdamW, torch's Muon (one matrix at a time), and gpt2kit's (matrices of one shape together;
queries, keys and values as three matrices, or as one).

    python bench/muon.py --shapes 4,128 6,384 12,768

A shape is layers and width. Only the hidden matrices are updated, with random gradients. The optimizers take turns; a
figure is the median.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from machine import report
from torch import nn

from gpt2kit.optim.adamw import AdamW
from gpt2kit.optim.muon import Muon

WAYS = ("AdamW", "torch's Muon", "gpt2kit's Muon", "gpt2kit's Muon, fused QKV")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4,128", "6,384", "12,384"])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for shape in args.shapes:
        layers, width = map(int, shape.split(","))
        optimizers = {name: make(name, layers, width) for name in WAYS}
        seconds: dict[str, list[float]] = {name: [] for name in optimizers}
        for turn in range(args.turns + 1):
            for name, optimizer in optimizers.items():
                begin = now()
                optimizer.step()
                seconds[name] += [now() - begin] if turn else []  # the first one warms up
        times = {f"{name}, ms": f"{1e3 * statistics.median(each):.1f}" for name, each in seconds.items()}
        rows.append({"layers, width": shape, **times})
        print(rows[-1], flush=True)
    report(rows, args.output)


def make(name: str, layers: int, width: int) -> torch.optim.Optimizer:
    """Return an optimizer of a model's hidden matrices, which have gradients."""
    torch.manual_seed(1)
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)) * layers
    matrices = [nn.Parameter(0.02 * torch.randn(shape, device=DEVICE)) for shape in shapes]
    bias = nn.Parameter(torch.zeros(1, device=DEVICE))
    for parameter in (*matrices, bias):
        parameter.grad = torch.randn_like(parameter)
    if name == "AdamW":
        return AdamW(matrices)
    if name == "torch's Muon":
        return torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")
    parts = [3 if name == "gpt2kit's Muon" and shape[1] == 3 * width else 1 for shape in shapes]
    return Muon([{"params": matrices, "parts": parts}, {"params": [bias]}])


def now() -> float:
    """Return the time once the device has finished its work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
