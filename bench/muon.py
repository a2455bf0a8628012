"""The time of an update: AdamW, torch's Muon (one matrix at a time), and gpt2kit's (matrices of one shape together).

gpt2kit's is also measured with queries, keys and values of all heads as three matrices, and with five Newton-Schulz
steps, as in earlier versions.

    python bench/muon.py --shapes 4,4,128 6,6,384 12,12,768

A shape is layers, heads and width. Only the hidden matrices are updated, with random gradients. The optimizers take
turns; a figure is the median.
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

# Newton-Schulz steps, and matrices in the queries, keys and values of one head; 0: three matrices of all heads.
WAYS = {
    "AdamW": (0, 0),
    "torch's Muon": (0, 0),
    "gpt2kit's Muon": (4, 3),
    "three matrices": (4, 0),
    "three matrices, five steps": (5, 0),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4,4,128", "6,6,384", "12,12,384"])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for shape in args.shapes:
        layers, heads, width = map(int, shape.split(","))
        optimizers = {name: make(name, layers, heads, width) for name in WAYS}
        seconds: dict[str, list[float]] = {name: [] for name in optimizers}
        for turn in range(args.turns + 1):
            for name, optimizer in optimizers.items():
                begin = now()
                optimizer.step()
                seconds[name] += [now() - begin] if turn else []  # the first one warms up
        times = {f"{name}, ms": f"{1e3 * statistics.median(each):.1f}" for name, each in seconds.items()}
        rows.append({"layers, heads, width": shape, **times})
        print(rows[-1], flush=True)
    report(rows, args.output)


def make(name: str, layers: int, heads: int, width: int) -> torch.optim.Optimizer:
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
    steps, per_head = WAYS[name]
    parts = [(per_head * heads or 3) if shape[1] == 3 * width else 1 for shape in shapes]
    muon = Muon([{"params": matrices, "parts": parts}, {"params": [bias]}])
    muon.param_groups[0]["newton_schulz_steps"] = steps
    return muon


def now() -> float:
    """Return the time once the device has finished its work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
