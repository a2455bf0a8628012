"""How often a 95 % interval of test.py contains the true loss, for one long text that is cut into blocks.

    python bench/intervals.py [--texts 400]

A simulation. The loss of a token is noise plus a part that changes slowly along the text, as its subject does: an
autoregressive process whose correlation falls to 1/e after a number of tokens. The slow part has 6 % of the variance.
Prints a Markdown table: texts of 20,000, 80,000 and 320,000 tokens, each cut into 10, 20 and 40 blocks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from gpt2kit.evaluation.statistics import UnitScores, bootstrap

NOISE, SLOW, MEAN = 2.0, 0.5, 3.0  # standard deviations, and mean, in nats per token
CELL = 10  # tokens whose slow part is the same


def draw_losses(random: np.random.Generator, texts: int, tokens: int, correlation: float) -> NDArray[np.float64]:
    """Return the sums of the losses of CELL tokens at a time, `[texts, tokens / CELL]`."""
    decay = np.exp(-CELL / correlation)
    slow = random.normal(0, SLOW, (texts, tokens // CELL))
    for i in range(1, slow.shape[1]):
        slow[:, i] = decay * slow[:, i - 1] + np.sqrt(1 - decay**2) * slow[:, i]
    return CELL * (MEAN + slow) + random.normal(0, NOISE * np.sqrt(CELL), slow.shape)


def measure_coverage(losses: NDArray[np.float64], blocks: int) -> float:
    """Return the fraction of texts whose interval, from this number of blocks, contains the mean."""
    cells = losses.shape[1] // blocks
    counts = [np.full(blocks, cells * CELL) for _ in range(4)]
    hits = 0
    for sums in losses.reshape(len(losses), blocks, cells).sum(2):
        low, high = bootstrap(UnitScores(sums, *counts), seed=1)["loss"]
        hits += low <= MEAN <= high
    return hits / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=400)
    texts = parser.parse_args().texts
    random, blocks = np.random.default_rng(1), (10, 20, 40)
    print("| tokens | correlated over |" + "".join(f" {count} blocks |" for count in blocks))
    print("|---|---|" + "---|" * len(blocks))
    for tokens in (20_000, 80_000, 320_000):
        for correlation in (50, 200, 1000):
            losses = draw_losses(random, texts, tokens, correlation)
            cells = "".join(f" {measure_coverage(losses, count):.1%} |" for count in blocks)
            print(f"| {tokens:,} | {correlation:,} |{cells}", flush=True)


if __name__ == "__main__":
    main()
