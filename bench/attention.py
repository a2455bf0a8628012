"""Attention by itself, forward and backward: plain products in bands, torch's kernels, and the library's eager way.

    python bench/attention.py                         # not compiled, no dropout
    python bench/attention.py --compiled --dropout 0.1

Rows of 2,048 tokens in all, width 384, the layout that GPT-2 has (queries, keys, values out of one product). Median of
some turns, the ways in turn. What engine.choose_attention says is read off these tables.
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
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2kit.model.attention import plain_attention
from gpt2kit.model.cpu_layers import COMPILE_OPTIONS

Way = Callable[[Tensor, Tensor, Tensor, float], Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODULE = nn.Module()


def sdpa(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True).transpose(1, 2)


def plain(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    return plain_attention(MODULE, query, key, value, None, dropout=dropout)[0]


def library(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

    length = query.shape[2]
    lowest = torch.finfo(torch.float32).min  # its mask is float32, whatever the rest is
    mask = torch.full((length, length), lowest, device=query.device).triu(1)[None, None]
    out: Tensor = eager_attention_forward(MODULE, query, key, value, mask, dropout=dropout)[0]
    return out


def layer(way: Way, heads: int, dropout: float) -> Callable[[Tensor], Tensor]:
    """The part of a layer between its two products."""

    def attend(x: Tensor) -> Tensor:
        rows, length, width = x.shape[0], x.shape[1], x.shape[2] // 3
        parts = (part.view(rows, length, heads, width // heads).transpose(1, 2) for part in x.split(width, 2))
        return way(*parts, dropout).reshape(rows, length, width)

    return attend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--head_sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10**6
    dtype = torch.float32 if given.float32 else torch.bfloat16
    MODULE.train()
    options = COMPILE_OPTIONS if DEVICE == "cpu" else None  # as the module compiles itself
    rows: list[dict[str, object]] = []
    for block in given.blocks:
        for size in given.head_sizes:
            x = torch.randn(max(given.tokens // block, 1), block, 3 * given.width, dtype=dtype, device=DEVICE)
            slope = torch.randn_like(x[..., : given.width])
            ways: dict[str, Way] = {"plain": plain, "sdpa": sdpa, "library": library}
            steps = {name: layer(way, given.width // size, given.dropout) for name, way in ways.items()}
            if given.compiled:
                steps = {name: torch.compile(step, dynamic=False, options=options) for name, step in steps.items()}
            found: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(given.turns + 2):
                for name, step in steps.items():
                    seconds = timed(step, x, slope)
                    found[name] += [seconds] if turn > 1 else []
            times = {name: 1e3 * statistics.median(each) for name, each in found.items()}
            row: dict[str, object] = {"block": block, "head size": size}
            row |= {f"{name}, ms": f"{ms:.2f}" for name, ms in times.items()}
            rows.append({**row, "sdpa / plain": f"{times['sdpa'] / times['plain']:.2f}"})
            print(rows[-1], flush=True)
    finish(rows, given.output)


def timed(step: Callable[[Tensor], Tensor], x: Tensor, slope: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    x = x.detach().requires_grad_()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step(x).backward(slope)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
