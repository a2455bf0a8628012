"""What data.mask_documents costs: the time of a training step with it, over that without, turn by turn in one process.

python bench/mask_documents.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from machine import ROOT, finish

sys.path.insert(0, str(ROOT / "src"))

from gpt2kit.model.backends import Attention, cpu_has_fast_bf16
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training.module import GPT2Module

SHAPES = ((128, 16), (256, 8), (512, 4), (1024, 2))
"""Blocks and batches of 2,048 tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--n_layer", type=int, default=4)
    parser.add_argument("--n_embd", type=int, default=256)
    parser.add_argument("--n_head", type=int, default=4)
    parser.add_argument("--document", type=int, default=100, help="tokens in a document")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict[str, object]] = []
    for block, batch_size in SHAPES:
        batch = torch.randint(1, 8192, (batch_size, block + 1), device=device)
        batch[:, :: given.document] = 0
        kinds: tuple[Attention, ...] = ("plain", "sdpa") if device == "cpu" else ("sdpa",)
        for attention in kinds:
            shape = {"n_layer": given.n_layer, "n_embd": given.n_embd, "n_head": given.n_head}
            gpt2 = GPT2Module(**shape, vocab_size=8192, n_positions=block).model.to(device)
            gpt2.use_attention(attention)
            times: dict[int | None, list[float]] = {None: [], 0: []}
            for turn in range(given.rounds + 1):
                for start, found in times.items():
                    gpt2.document_start = start
                    seconds = step(gpt2, batch)
                    found += [seconds] if turn else []  # the first warms up
            plain, masked = (statistics.median(found) for found in times.values())
            rows.append(
                {
                    "block": block,
                    "attention": attention,
                    "plain": f"{batch_size * block / plain:,.0f} tokens/s",
                    "masked": f"{batch_size * block / masked:,.0f} tokens/s",
                    "time": f"x {masked / plain:.2f}",
                }
            )
    finish(rows, given.output)


def step(gpt2: GPT2, batch: torch.Tensor) -> float:
    """Seconds of one forward and backward pass."""
    if batch.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    fast = batch.is_cuda or cpu_has_fast_bf16()
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=fast):
        nll, tokens = gpt2.nll(batch)
    (nll / tokens).backward()
    gpt2.zero_grad()
    if batch.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
