"""Attention alone, forward and backward: gpt2kit's matrix products, torch's kernels, transformers' eager attention.

    python bench/attention.py                         # not compiled, no dropout
    python bench/attention.py --compiled --dropout 0.1
    python bench/attention.py --documents 4           # each block has several documents, which do not see each other

2,048 tokens of width 384 in rows of one block each; queries, keys and values are parts of one tensor, as in GPT-2. The
implementations take turns; a figure is the median. `backends.choose_attention` follows these tables.
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
from machine import report
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2kit.model.attention import plain_attention
from gpt2kit.model.cpu_layers import COMPILE_OPTIONS

Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODULE = nn.Module()


def sdpa(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True).transpose(1, 2)


def plain(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    return plain_attention(MODULE, query, key, value, None, dropout=dropout)[0]


def eager(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

    length = query.shape[2]
    lowest = torch.finfo(torch.float32).min  # its mask is float32, whatever the dtype of the scores
    mask = torch.full((length, length), lowest, device=query.device).triu(1)[None, None]
    attended: Tensor = eager_attention_forward(MODULE, query, key, value, mask, dropout=dropout)[0]
    return attended


def separated(documents: int) -> dict[str, Attention]:
    """Return the implementations for blocks of several documents of equal length; on a GPU also the kernel for them."""

    def masked(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        length, device = query.shape[2], query.device
        document = torch.arange(length, device=device) // (length // documents)
        mask = (document[:, None] == document).tril()[None, None]  # (1, 1, T, T)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout).transpose(1, 2)

    def varlen(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        length = query.shape[2] // documents
        starts = torch.arange(0, query.shape[0] * query.shape[2] + 1, length, dtype=torch.int32, device=DEVICE)
        packed = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]  # (rows * T, heads, head size)
        attended: Tensor = varlen_attn(*packed, starts, starts, length, length, window_size=(-1, 0))
        return attended

    ways: dict[str, Attention] = {"sdpa without documents": sdpa, "masked": masked}
    return {**ways, "varlen": varlen} if DEVICE == "cuda" else ways


def layer(attention: Attention, heads: int, dropout: float) -> Callable[[Tensor], Tensor]:
    """Return the part of a layer between its two linear maps."""

    def attend(x: Tensor) -> Tensor:
        rows, length, width = x.shape[0], x.shape[1], x.shape[2] // 3
        parts = (part.view(rows, length, heads, width // heads).transpose(1, 2) for part in x.split(width, 2))
        return attention(*parts, dropout).reshape(rows, length, width)

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
    parser.add_argument("--documents", type=int, help="compare masks for this number of documents in a block")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10**6
    dtype = torch.float32 if args.float32 else torch.bfloat16
    MODULE.train()
    options = COMPILE_OPTIONS if DEVICE == "cpu" else None  # as in GPT2.compile_for_training
    rows: list[dict[str, object]] = []
    for block in args.blocks:
        for size in args.head_sizes:
            x = torch.randn(max(args.tokens // block, 1), block, 3 * args.width, dtype=dtype, device=DEVICE)
            slope = torch.randn_like(x[..., : args.width])
            ways: dict[str, Attention] = {"plain": plain, "sdpa": sdpa, "eager": eager}
            ways = separated(args.documents) if args.documents else ways
            layers = {name: layer(way, args.width // size, args.dropout) for name, way in ways.items()}
            if args.compiled:
                layers = {name: torch.compile(step, dynamic=False, options=options) for name, step in layers.items()}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(args.turns + 2):
                for name, step in layers.items():
                    elapsed = time_step(step, x, slope)
                    seconds[name] += [elapsed] if turn > 1 else []  # the first two warm up
            times = {name: 1e3 * statistics.median(each) for name, each in seconds.items()}
            row: dict[str, object] = {"block": block, "head size": size}
            row |= {f"{name}, ms": f"{ms:.2f}" for name, ms in times.items()}
            one, other = list(times)[1::-1]
            rows.append({**row, f"{one} / {other}": f"{times[one] / times[other]:.2f}"})
            print(rows[-1], flush=True)
    report(rows, args.output)


def time_step(step: Callable[[Tensor], Tensor], x: Tensor, slope: Tensor) -> float:
    """Return the seconds of a forward and a backward pass."""
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
