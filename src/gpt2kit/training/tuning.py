"""Implements `trainer.py --tune batch_size` and `--tune lr`, which train a few steps with each value.

Lightning's tuner raises the batch size until memory runs out, at which point the system kills a process on a CPU. Its
search for a learning rate sets one rate for all parameters, but Muon and AdamW have one each.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.errors import UserError
from gpt2kit.training.lightning_patches import set_max_steps
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.progress import SmoothedMean
from gpt2kit.training.trainer import make_trainer

# Optimizer steps of a search for a learning rate, and its first and last factor of the configured rates.
STEPS, LOWEST, HIGHEST = 100, 1e-2, 1e2
# What a child process runs: it prints the speed and the estimated memory as JSON.
_MEASURE = """
import json, sys
sys.path.insert(0, sys.argv.pop(1))
from gpt2kit.cli.train_cli import TrainCLI
info = TrainCLI(sys.argv[1:]).measure_plan()
print(json.dumps({"speed": info["speed"], "memory": info["memory"]["total"]}))
"""


def measure_in_child(args: list[str]) -> tuple[dict[str, Any], str]:
    """Measure in a child process. Return the result, or the reason why it failed."""
    source = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", _MEASURE, source, *args]
    child = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1]), ""
    last_line = (child.stderr.strip().splitlines() or ["the process was killed, perhaps because memory ran out"])[-1]
    return {}, last_line.split("Error: ")[-1]


def find_batch_size(
    args: list[str], measure: Callable[[list[str]], tuple[dict[str, Any], str]] = measure_in_child
) -> None:
    """Measure batches of 1, 2, 4, ... sequences until one does not fit, and print a table.

    Each size is measured in its own process, because the system kills one that uses too much memory.
    """
    print(f"{'data.batch_size':>16}{'tokens/s':>12}{'memory, MB':>12}")
    speeds: dict[int, float] = {}
    size = 1
    while True:
        result, problem = measure([*args, "--plan", f"--data.batch_size={size}"])
        problem = problem or result["speed"].get("problem", "")
        if problem and not speeds:
            raise UserError(f"--tune batch_size: not even a batch of one sequence can be trained: {problem}")
        if problem:
            print(f"{size:>16}  {problem}")
            break
        speeds[size] = result["speed"]["tokens_per_s"]
        print(f"{size:>16}{speeds[size]:>12,.0f}{(result['speed']['memory'] or result['memory']) / 1e6:>12,.0f}")
        earlier = [*speeds.values()][:-2]
        if len(speeds) > 3 and speeds[size] < 1.02 * max(earlier):
            break  # the last two doublings have gained nothing
        size *= 2
    fastest = max(speeds.values())
    smallest = next(size for size, speed in speeds.items() if speed >= 0.95 * fastest)
    print(
        f"data.batch_size {smallest} is within 5 % of the fastest. To keep the number of sequences per optimizer step, "
        "set data.global_batch_size."
    )


class LRRangeTest(Callback):
    """Records the loss of each step, and ends training when it is far above the lowest."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            loss = trainer.callback_metrics["train_loss"].item()  # each step is a log step
            self.losses.append(loss)
            if loss > 1.5 * min(self.losses) or not math.isfinite(loss):
                set_max_steps(trainer, trainer.global_step)


def rate_factor(step: int, total: int = STEPS) -> float:
    """Return the factor of the configured rates at a step; it rises by the same ratio each step."""
    return float(LOWEST * (HIGHEST / LOWEST) ** (min(step, STEPS - 1) / (STEPS - 1)))


def find_learning_rate(options: dict[str, Any], data: TextDataModule, gpt2: GPT2Module) -> None:
    """Train with rising rates and print where the loss falls fastest and is lowest. Changes the weights."""
    test = LRRangeTest()
    gpt2.schedule = rate_factor  # type: ignore[assignment]
    trainer = make_trainer(**options | {"callbacks": [test], "limit_val_batches": 0, "log_every_n_steps": 1})
    set_max_steps(trainer, STEPS)
    trainer.fit(gpt2, data)
    rates = [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
    losses = smooth(test.losses)
    print(f"{'factor':>9}  {'learning rates':<24}{'loss':>8}")
    for step in range(0, len(losses), max(STEPS // 20, 1)):
        factor = rate_factor(step)
        print(f"{factor:>9.3g}  {_format_rates(rates, factor):<24}{losses[step]:>8.3f}")
    fastest, lowest = rate_factor(steepest_step(losses)), rate_factor(losses.index(min(losses)))
    print(
        f"The loss falls fastest at {fastest:.2g} times the configured rates ({_format_rates(rates, fastest)}) and is "
        f"lowest at {lowest:.2g} times ({_format_rates(rates, lowest)}). Try rates between them in short runs."
    )


def smooth(losses: Sequence[float]) -> list[float]:
    """Return exponential moving means."""
    mean = SmoothedMean(0.8)
    return [mean.add(loss) for loss in losses]


def steepest_step(losses: Sequence[float]) -> int:
    """Return the step at which the loss falls fastest, over five steps on each side."""
    width = 5
    if len(losses) <= 2 * width:
        return 0
    return min(range(width, len(losses) - width), key=lambda i: losses[i + width] - losses[i - width])


def _format_rates(rates: Sequence[float], factor: float) -> str:
    return ", ".join(dict.fromkeys(f"{rate * factor:.2g}" for rate in rates))
