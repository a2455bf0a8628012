"""Fit the law to the runs in the journal, and write its coefficients.

    python bench/autopilot/fit.py --output law.json

The coefficients minimize the squared errors of the logarithm of bits per byte, plus the squared distances from their
priors. The interval is that of runs on a text that the fit has not seen: for each corpus, the law is fitted to the
others, and nine of ten of these errors are smaller than half of the interval. Runs on held-out corpora are never
fitted; the last table compares them with the law.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "src"))

import numpy as np
from law import PRIORS, Law, log_bits
from machine import table
from numpy.typing import NDArray

JOURNAL = Path(__file__).resolve().parent / "journal.jsonl"
# The error of a run that no law explains, as a difference of logarithms: it weighs runs against priors.
_NOISE = 0.04
_ROUNDS = 60
# With fewer runs, or on fewer corpora, neither the coefficients nor the interval would mean much.
_FEWEST_RUNS, _FEWEST_CORPORA = 100, 12
Runs = dict[str, NDArray[Any]]


def read_runs(journal: Path, use: str) -> Runs:
    """Return the columns of the runs of one use."""
    entries = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    rows = [{**setting, **entry["result"]} for entry in entries for kind, setting in [entry["key"]] if kind == use]
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else [])}


def select(runs: Runs, chosen: NDArray[np.bool_]) -> Runs:
    """Return some of the runs."""
    return {name: column[chosen] for name, column in runs.items()}


def minimize(residuals: Callable[[NDArray[np.float64]], NDArray[np.float64]], start: NDArray[np.float64]) -> Any:
    """Return the point with the smallest sum of squared residuals, by Levenberg and Marquardt's method."""
    point, damping = start, 1e-2
    current = residuals(point)
    for _ in range(_ROUNDS):
        steps = np.eye(len(point)) * 1e-5
        slopes = np.stack([residuals(point + step) - residuals(point - step) for step in steps], axis=1) / 2e-5
        normal = slopes.T @ slopes
        move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ current)
        moved = residuals(point + move)
        gain = current @ current - moved @ moved
        damping = max(damping / 4, 1e-9) if gain > 0 else damping * 4
        if gain > 0:
            point, current = point + move, moved
        if 0 <= gain < 1e-8:
            break
    return point


def fit(runs: Runs) -> dict[str, float]:
    """Return the coefficients for some runs."""
    means = np.array([prior.mean for prior in PRIORS.values()])
    deviations = np.array([prior.deviation for prior in PRIORS.values()])
    target = np.log(runs["bpb"])

    def residuals(point: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            errors = (log_bits(runs, dict(zip(PRIORS, point, strict=True))) - target) / _NOISE
        return np.concatenate([np.clip(np.nan_to_num(errors, nan=1e3), -1e3, 1e3), (point - means) / deviations])

    return dict(zip(PRIORS, (round(float(value), 4) for value in minimize(residuals, means)), strict=True))


def errors_of(runs: Runs, coefficients: dict[str, float]) -> NDArray[np.float64]:
    """Return how much the runs exceed the law, as differences of logarithms."""
    return np.log(runs["bpb"]) - log_bits(runs, coefficients)


def cross_validate(runs: Runs) -> NDArray[np.float64]:
    """Return the error of each run by the law that is fitted to the other corpora."""
    errors = np.zeros(len(runs["bpb"]))
    for corpus in np.unique(runs["corpus"]):
        is_left_out = runs["corpus"] == corpus
        errors[is_left_out] = errors_of(select(runs, is_left_out), fit(select(runs, ~is_left_out)))
    return errors


def half_width(errors: NDArray[np.float64]) -> float:
    """Return the size that nine of ten errors of a further run are expected not to exceed."""
    rank = min(math.ceil(0.9 * (len(errors) + 1)), len(errors))
    return float(np.sort(np.abs(errors))[rank - 1])


def make_law(runs: Runs, errors: NDArray[np.float64]) -> Law:
    """Return the law of some runs, whose cross-validated errors are given."""
    return Law(fit(runs), round(half_width(errors), 4), float(runs["flops"].max()), len(errors))


def summarize(runs: Runs, errors: NDArray[np.float64], width: float) -> str:
    """Return a table of the errors on each corpus."""
    rows = []
    for corpus in [*np.unique(runs["corpus"]), "all"]:
        own = errors if corpus == "all" else errors[runs["corpus"] == corpus]
        rows.append(
            {
                "corpus": str(corpus),
                "runs": len(own),
                "mean error": f"{own.mean():+.1%}",
                "median size": f"{np.median(np.abs(own)):.1%}",
                "largest": f"{np.abs(own).max():.1%}",
                "in the interval": f"{(np.abs(own) <= width).mean():.0%}",
            }
        )
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--output", type=Path, help="a JSON file for the coefficients")
    args = parser.parse_args()
    runs = read_runs(args.journal, "fit")
    count, corpora = len(runs.get("bpb", [])), len(np.unique(runs.get("corpus", [])))
    if count < _FEWEST_RUNS or corpora < _FEWEST_CORPORA:
        sys.exit(
            f"{args.journal}: {count} runs on {corpora} corpora, and at least {_FEWEST_RUNS} on {_FEWEST_CORPORA} are "
            "needed. Run bench/autopilot/grid.py longer"
        )
    errors = cross_validate(runs)
    law = make_law(runs, errors)
    if args.output:
        args.output.write_text(json.dumps(asdict(law), indent=1) + "\n", encoding="utf-8")
    print(f"Errors on a corpus that is not fitted:\n\n{summarize(runs, errors, law.half_width)}\n")
    print(f"90 % interval: {math.exp(-law.half_width) - 1:+.1%} to {math.exp(law.half_width) - 1:+.1%}")
    held_out = read_runs(args.journal, "held_out")
    if held_out:
        print(f"\nHeld-out corpora:\n\n{summarize(held_out, errors_of(held_out, law.coefficients), law.half_width)}")


if __name__ == "__main__":
    main()
