"""The processor time that Lightning and gpt2kit's callbacks add to a training step.

    python bench/overhead.py

One thread and a model of one layer, width 16, over 32 tokens: there is next to nothing to compute, so nearly all of the
time is overhead. Each round takes the mean over all steps, including those that log (every 10th); a figure is the
median of the rounds. The loops take turns in one process. Lightning is compared with a plain loop over the same model,
trainer.py with a plain loop over gpt2kit's module and optimizer.
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

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all loops run on the CPU

import torch
import train_step
from machine import report

SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 16, "vocab_size": 65, "n_positions": 16}
# Steps at the start that do not count.
WARMUP = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    train_step.DEVICE, train_step.now = "cpu", time.process_time
    batches = torch.randint(0, SHAPE["vocab_size"], (8, 2, SHAPE["n_positions"] + 1))
    ways = {
        "a plain loop": ("plain_bf16", train_step.train_plain),
        "Lightning with its defaults": ("lightning", train_step.train_lightning),
        "gpt2kit's module in a plain loop": ("gpt2kit_loop", train_step.train_gpt2kit_loop),
        "trainer.py": ("gpt2kit_eager", train_step.train_gpt2kit),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (way, train) in ways.items():
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                times = list(train(way, dict(SHAPE), batches, args.steps + WARMUP, None))[WARMUP:]
            milliseconds[name].append(1e3 * (times[-1] - times[0]) / (len(times) - 1))
    means = {name: statistics.median(each) for name, each in milliseconds.items()}
    compared = {"Lightning with its defaults": "a plain loop", "trainer.py": "gpt2kit's module in a plain loop"}
    rows: list[dict[str, object]] = []
    for name, loop in compared.items():
        added = means[name] - means[loop]
        figures = {"ms per step": f"{means[name]:.2f}", "plain loop": f"{means[loop]:.2f}", "added": f"{added:.2f}"}
        rows.append({"way": name, **figures, "of a 10 ms step": f"{10 * added:.1f} %"})
    report(rows, args.output)


if __name__ == "__main__":
    main()
