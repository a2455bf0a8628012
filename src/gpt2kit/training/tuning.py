"""`trainer.py --find batch_size` and `--find lr`: what the device and the model like, from some steps of each.

Lightning's tuner scales batches until memory runs out, which on a CPU is when the system kills it, and its search for a
rate sets one rate for all parameters; Muon and AdamW have their own here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.errors import UserError
from gpt2kit.training.lightning_patches import set_max_steps
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.progress import SmoothedMean
from gpt2kit.training.trainer import make_trainer

STEPS, LOW, HIGH = 100, 1e-2, 1e2
"""Optimizer steps of a search for a rate, and the factors of the configured rates between which it goes."""

_CHILD = "import json, sys; from gpt2kit.cli import train; found = train.TrainCLI(sys.argv[1:]).planned_facts(); "
_CHILD += "print(json.dumps({'trial': found['trial'], 'memory': found['memory']['total']}))"


def find_batch_size(args: list[str]) -> None:
    """Try batches of 1, 2, 4, ... sequences, each in a process of its own, until one does not fit; print a table."""
    print(f"{'data.batch_size':>16}{'tokens/s':>12}{'memory, MB':>12}")
    rows: list[tuple[int, float]] = []
    size = 1
    while True:
        found, why = _tried([*args, "--plan", f"--data.batch_size={size}"])
        why = why or found["trial"].get("why_not", "")
        if why:
            if not rows:
                raise UserError(f"--find batch_size: not even one sequence can be trained on: {why}")
            print(f"{size:>16}  {why}")
            break
        rows.append((size, found["trial"]["tokens_per_s"]))
        print(f"{size:>16}{rows[-1][1]:>12,.0f}{(found['trial']['memory'] or found['memory']) / 1e6:>12,.0f}")
        if len(rows) > 3 and rows[-1][1] < 1.02 * max(speed for _, speed in rows[:-2]):
            break  # two doublings have gained nothing
        size *= 2
    best = max(speed for _, speed in rows)
    good = next(size for size, speed in rows if speed >= 0.95 * best)
    print(
        f"data.batch_size {good} is as fast as it gets, within 5 %. How many sequences an update learns from is "
        "another question: hold it with data.global_batch."
    )


def _tried(words: list[str]) -> tuple[dict[str, Any], str]:
    """What a plan says; or why there is none."""
    source = str(Path(__file__).resolve().parents[2])
    child = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r}); {_CHILD}", *words],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1]), ""
    last = (child.stderr.strip().splitlines() or ["it was killed, perhaps for its memory"])[-1]
    return {}, last.split("Error: ")[-1]


class Rising(Callback):
    """Notes the loss of each step, and ends the search when it has left the good range."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._sum, self._count = 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        assert isinstance(loss, Tensor)
        self._sum, self._count = self._sum + loss.item(), self._count + 1
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.losses.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if self.losses[-1] > 1.5 * min(self.losses) or not torch.isfinite(loss):
            set_max_steps(trainer, trainer.global_step)


def factor(step: int, _: int = STEPS) -> float:
    """Of the configured rates, at a step of the search: rising by the same share each step."""
    return float(LOW * (HIGH / LOW) ** (min(step, STEPS - 1) / (STEPS - 1)))


def find_learning_rate(options: dict[str, Any], data: TextDataModule, gpt2: GPT2Module) -> None:
    """Train some steps at rising rates; print the losses, and where they fall and lie best. Changes the weights."""
    watch = Rising()
    gpt2.schedule = factor  # type: ignore[assignment]
    trainer = make_trainer(**options | {"callbacks": [watch], "limit_val_batches": 0})
    set_max_steps(trainer, STEPS)
    trainer.fit(gpt2, data)
    rates = [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
    smooth = smoothed(watch.losses)
    print(f"{'factor':>9}  {'learning rates':<24}{'loss':>8}")
    for step in range(0, len(smooth), max(STEPS // 20, 1)):
        print(f"{factor(step):>9.3g}  {_told(rates, factor(step)):<24}{smooth[step]:>8.3f}")
    fast, low = steepest(smooth), smooth.index(min(smooth))
    print(
        f"The loss falls fastest at {factor(fast):.2g} times the configured rates ({_told(rates, factor(fast))}) and "
        f"is lowest at {factor(low):.2g} times ({_told(rates, factor(low))}). Try rates between them in short runs."
    )


def smoothed(losses: Sequence[float]) -> list[float]:
    """Running means."""
    return list(map(SmoothedMean(0.8).add, losses))


def steepest(losses: Sequence[float]) -> int:
    """The step at which the loss falls fastest, seen over five steps on each side."""
    width = 5
    if len(losses) <= 2 * width:
        return 0
    return min(range(width, len(losses) - width), key=lambda i: losses[i + width] - losses[i - width])


def _told(rates: Sequence[float], times: float) -> str:
    return ", ".join(dict.fromkeys(f"{rate * times:.2g}" for rate in rates))
