"""What Lightning and this project's own callbacks take of a step, beside the arithmetic, in processor time.

    python bench/overhead.py

One thread, a model of one layer, 16 wide, over 32 tokens: next to nothing to compute, so that the rest stands out. Mean
over all steps, those that log (every 10th) included; the ways in turn in one process; the median of the rounds.
Lightning is compared with a plain loop over the same model, ours with a plain loop over our module and optimizer.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import statistics
import time
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all four on the processor

import torch
import train_step
from machine import finish

SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 16, "vocab_size": 65, "n_positions": 16}
WARM = 50
"""Steps that are left out at the beginning."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    train_step.DEVICE, train_step.now = "cpu", time.process_time
    batches = torch.randint(0, SHAPE["vocab_size"], (8, 2, SHAPE["n_positions"] + 1))
    ways = {
        "a plain loop": ("bare_bf16", train_step.bare),
        "Lightning with its defaults": ("lightning", train_step.lightning),
        "our module in a plain loop": ("ours_loop", train_step.ours_loop),
        "trainer.py": ("ours_eager", train_step.ours),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, (way, train) in ways.items():
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                times = list(train(way, dict(SHAPE), batches, given.steps + WARM, None))[WARM:]
            found[name].append(1e3 * (times[-1] - times[0]) / (len(times) - 1))
    means = {name: statistics.median(each) for name, each in found.items()}
    rows: list[dict[str, object]] = []
    for name, loop in (("Lightning with its defaults", "a plain loop"), ("trainer.py", "our module in a plain loop")):
        more = means[name] - means[loop]
        figures = {"ms a step": f"{means[name]:.2f}", "in the loop": f"{means[loop]:.2f}", "more": f"{more:.2f}"}
        rows.append({"way": name, **figures, "of a 10 ms step": f"{10 * more:.1f} %"})
    finish(rows, given.output)


if __name__ == "__main__":
    main()
