"""What only a GPU shows: `python bench/gpu_checks.py`. On a machine without one, it runs what a CPU can.

waits     how often the CPU waits for the GPU in five steps, and where
profile   the kernels of one step, by their time
overflow  whether float16 gradients that overflow leave weights and momentum as they are, and training continues
resume    the difference between a run from a CPU's checkpoint that continues on the GPU, and one on the CPU
"""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import pytorch_lightning as pl
import torch
from machine import report
from torch import Tensor
from train_step import DEVICE, SHAPES, make_cli

Row = dict[str, object]
FIRST, LAST = 3, 8  # the steps that are observed; those before them set up and compile


def fit(callback: pl.Callback, shape: str, rows: int, steps: int, *options: str) -> pl.Trainer:
    """Train some steps with a callback and return the trainer."""
    with tempfile.TemporaryDirectory() as folder:
        cli = make_cli(Path(folder), sizes(shape), tokens(shape, rows), [f"--trainer.max_steps={steps}", *options])
        cli.trainer.callbacks.append(callback)
        cli.trainer.fit(cli.model, cli.datamodule)
        return cli.trainer


def sizes(shape: str) -> dict[str, int]:
    return dict(zip(("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"), SHAPES[shape], strict=False))


def tokens(shape: str, rows: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, SHAPES[shape][3], (LAST + 2, rows, SHAPES[shape][4] + 1))


class Waits(pl.Callback):
    """Lets torch warn about each wait for the GPU during some steps."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("warn" if FIRST <= batch_idx < LAST else "default")


def waits(shape: str, rows: int) -> Row:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Waits(), shape, rows, LAST + 1, "--trainer.log_every_n_steps=1000")
    places = collections.Counter(
        f"{Path(warning.filename).name} line {warning.lineno}"
        for warning in caught
        if "synchronizing" in str(warning.message)
    )
    return {"check": "waits", "result": sum(places.values()), "details": str(dict(places.most_common(5)))}


class Profile(pl.Callback):
    """Records one step."""

    def __init__(self) -> None:
        activity = torch.profiler.ProfilerActivity
        kinds = [activity.CPU, *([activity.CUDA] if DEVICE == "cuda" else [])]
        self.profiler = torch.profiler.profile(activities=kinds)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == FIRST:
            self.profiler.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == FIRST:
            self.profiler.stop()


def profile(shape: str, rows: int) -> Row:
    recorded = Profile()
    fit(recorded, shape, rows, LAST)
    events = recorded.profiler.key_averages()
    by = f"self_{DEVICE}_time_total"
    print(events.table(sort_by=by, row_limit=15, max_name_column_width=60))
    kernels = sum(event.count for event in events if event.device_type != torch.autograd.DeviceType.CPU)
    return {"check": "profile", "result": f"{len(events)} kinds of events", "details": f"{kernels} kernels in a step"}


class Overflow(pl.Callback):
    """Starts with a scale at which gradients overflow, and records what the skipped steps have changed."""

    def __init__(self) -> None:
        self.skipped = self.changed = self.updates = 0

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        trainer.precision_plugin.scaler = torch.amp.GradScaler(init_scale=2.0**32)  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.before, self.scale = self._tensors(trainer, module), trainer.precision_plugin.scaler.get_scale()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        after = self._tensors(trainer, module)
        is_changed = any(name not in self.before or not torch.equal(after[name], self.before[name]) for name in after)
        if trainer.precision_plugin.scaler.get_scale() < self.scale:
            self.skipped += 1
            self.changed += is_changed
        else:
            self.updates += is_changed

    def _tensors(self, trainer: pl.Trainer, module: Any) -> dict[str, Tensor]:
        """Return copies of the weights and of the optimizer's moments."""
        state = trainer.optimizers[0].state_dict()["state"]
        moments = {f"{i} {name}": value for i, values in state.items() for name, value in values.items()}
        return {name: tensor.clone() for name, tensor in {**module.state_dict(), **moments}.items()}


def overflow(shape: str, rows: int) -> Row:
    if DEVICE == "cpu":
        return {"check": "overflow", "result": "not run", "details": "needs a GPU"}
    seen = Overflow()
    fit(seen, shape, rows, 40, "--trainer.precision=16-mixed", "--model.max_grad_scaler_skips=40")
    is_right = seen.skipped > 0 and seen.changed == 0 and seen.updates > 0
    details = f"{seen.skipped} skipped steps, {seen.changed} of them changed something; {seen.updates} updates"
    return {"check": "overflow", "result": "right" if is_right else "WRONG", "details": details}


def resume(shape: str, rows: int) -> Row:
    """Train four steps on the CPU and continue on both devices, in float32 without dropout."""
    options = ["--trainer.precision=32-true", "--model.dropout=0", "--model.compile=off", "--run_name=run"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        train(work / "cpu", shape, rows, [*options, "--trainer.max_steps=4", "--trainer.accelerator=cpu"])
        shutil.copytree(work / "cpu", work / "gpu")
        weights = {}
        for name, accelerator in {"cpu": "cpu", "gpu": "gpu" if DEVICE == "cuda" else "cpu"}.items():
            more = [f"--trainer.accelerator={accelerator}", "--trainer.max_steps=8", "--ckpt_path=run"]
            weights[name] = train(work / name, shape, rows, [*options, *more])
    difference = max(
        (weights["cpu"][name] - tensor.cpu()).abs().max().item() for name, tensor in weights["gpu"].items()
    )
    return {"check": "resume", "result": f"{difference:.1e}", "details": f"largest difference of a weight; {DEVICE}"}


def train(folder: Path, shape: str, rows: int, options: list[str]) -> dict[str, Tensor]:
    """Train in a folder and return the weights."""
    folder.mkdir(exist_ok=True)
    cli = make_cli(folder, sizes(shape), tokens(shape, rows), options)
    resumed = cli.options.resumed
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=str(resumed) if resumed else None)
    return {name: tensor.detach().cpu() for name, tensor in cli.model.state_dict().items()}


CHECKS = {check.__name__: check for check in (waits, profile, overflow, resume)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", nargs="+", default=list(CHECKS), choices=CHECKS)
    parser.add_argument("--shape", default="mini", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    report([CHECKS[name](args.shape, args.batch) for name in args.checks], args.output)


if __name__ == "__main__":
    main()
