"""The two heads, forward and backward, compiled and not: time, peak memory, and how far from float64 they are.

    python bench/head.py --sizes 1536,384,12966 6144,384,50257

A size is positions, width, vocabulary. Each way runs in a process of its own, so that its peak memory is its own; that
of the process with nothing but the inputs is taken off. What module.py chooses is read off this table.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from machine import finish, timed

from gpt2kit.model.loss import chunked_nll, full_nll

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAYS = ("nothing", "chunked", "chunked, compiled", "whole", "whole, compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1536,384,12966", "6144,384,50257"])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run(given.child, given.sizes[0], given.turns)
        return
    rows: list[dict[str, object]] = []
    for size in given.sizes:
        empty = 0.0
        for way in WAYS:
            words = [sys.executable, __file__, "--child", way, "--sizes", size, "--turns", str(given.turns)]
            figures = json.loads(timed(words)[2].splitlines()[-1])
            memory = figures["memory"]
            if way == "nothing":
                empty = memory
                continue
            row: dict[str, object] = {"positions, width, vocabulary": size, "way": way, "ms": f"{figures['ms']:.1f}"}
            rows.append(
                row | {"memory, MB": f"{memory - empty:,.0f}", "error of the gradient": f"{figures['error']:.1e}"}
            )
            print(rows[-1], flush=True)
    finish(rows, given.output)


def run(way: str, size: str, turns: int) -> None:
    """In a child: one way; prints a line of JSON."""
    positions, width, vocabulary = map(int, size.split(","))
    torch.manual_seed(1)
    hidden = torch.randn(1, positions, width, device=DEVICE, requires_grad=True)
    weight = torch.nn.Parameter(0.02 * torch.randn(-(-vocabulary // 64) * 64, width, device=DEVICE))
    targets = torch.randint(0, vocabulary, (1, positions), device=DEVICE)
    if way == "nothing":
        print(json.dumps(memory_now()))
        return
    head = chunked_nll if way.startswith("chunked") else full_nll
    head = torch.compile(head, dynamic=False) if way.endswith("compiled") else head
    seconds: list[float] = []
    for turn in range(turns + 2):
        hidden.grad = weight.grad = None
        begin = now()
        with torch.autocast(DEVICE, torch.bfloat16):
            nll = head(hidden, weight, targets, vocabulary)
        (nll / positions).backward()
        seconds += [now() - begin] if turn > 1 else []
    figures = {"ms": 1e3 * statistics.median(seconds), **memory_now()}
    print(json.dumps(figures | {"error": error(hidden, weight, targets, vocabulary)}))


def error(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, vocabulary: int) -> float:
    """Distance of the hidden states' gradient from that of float64, over its length, on some positions."""
    some = min(hidden.shape[1], 64)
    exact = hidden.detach()[:, :some].double().requires_grad_()
    (full_nll(exact, weight.detach().double(), targets[:, :some], vocabulary) / hidden.shape[1]).backward()
    assert exact.grad is not None and hidden.grad is not None
    return float((hidden.grad[:, :some].double() - exact.grad).norm() / exact.grad.norm())


def memory_now() -> dict[str, float]:
    """The largest memory so far, in MB."""
    if DEVICE == "cuda":
        return {"memory": torch.cuda.max_memory_allocated() / 2**20}
    return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
