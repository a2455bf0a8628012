"""The speed of two processes on this machine compared with one, and of Muon with and without sharing its work.

    python bench/distributed.py

Processes on one machine share its cores and memory, so this measures the cost of DDP and FSDP (they exchange gradients
through gloo and the loopback network), not the gain of two GPUs. Each figure is the best of three runs, with one thread
per process.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

LINE = "the quick brown fox jumps over the lazy dog and number {} says good morning\n"
STEPS = 12


class NoSharing(Callback):
    """Makes each rank orthogonalize all of Muon's matrices, as if there were no other ranks."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.optimizers[0].ranks = (0, 1)  # type: ignore[attr-defined]


def main() -> None:
    from gpt2kit.cli.train_tokenizer import train_tokenizer
    from gpt2kit.tokenization.options import TokenizerSpec

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "text.txt").write_text("".join(LINE.format(n) for n in range(20_000)))
        train_tokenizer([str(work / "text.txt")], work / "tokenizer", TokenizerSpec(vocab_size=512))
        results: dict[object, dict[str, float]] = {}
        print("| width | 1 process, tokens/s | DDP | efficiency | FSDP | efficiency |\n|---|---|---|---|---|---|")
        for n_embd in (128, 512):
            one = throughput(work, 1, "auto", n_embd, "AdamW")
            ddp, fsdp = (throughput(work, 2, strategy, n_embd, "AdamW") for strategy in ("ddp", "fsdp"))
            results[n_embd] = {"one": one, "ddp": ddp, "fsdp": fsdp}
            columns = [f"{two:,.0f} | {two / one / 2:.0%}" for two in (ddp, fsdp)]
            print(f"| {n_embd} | {one:,.0f} | {' | '.join(columns)} |", flush=True)
        print("\n| Muon, width 512 | not shared, tokens/s | shared | speedup |\n|---|---|---|---|")
        for strategy in ("ddp", "fsdp"):
            alone = throughput(work, 2, strategy, 512, "Muon", "--trainer.callbacks=distributed.NoSharing")
            shared = throughput(work, 2, strategy, 512, "Muon")
            results[f"muon_{strategy}"] = {"not_shared": alone, "shared": shared}
            print(f"| {strategy} | {alone:,.0f} | {shared:,.0f} | {shared / alone:.2f} |", flush=True)
        print(json.dumps(results))


def throughput(work: Path, ranks: int, strategy: str, n_embd: int, optimizer: str, *more: str) -> float:
    """Return tokens/s of the last steps of a run; a step is 16 sequences of 128 tokens on any number of ranks."""
    run_folder = work / f"{ranks}-{strategy}-{n_embd}"
    options = {
        "data.train_files": work / "text.txt",
        "data.tokenizer": work / "tokenizer",
        "data.cache_dir": work / "cache",
        "data.reader.document": "line",
        "data.valid_fraction": 0,
        "data.block_size": 128,
        "data.batch_size": 8,
        "data.global_batch_size": 16,
        "model.n_layer": 4,
        "model.n_head": 4,
        "model.n_embd": n_embd,
        "model.dropout": 0.0,
        "model.optimizer": f"gpt2kit.optim.{optimizer}",
        "trainer.max_steps": STEPS,
        "trainer.log_every_n_steps": 4,
        "trainer.precision": "32-true",
        "trainer.accelerator": "cpu",
        "trainer.devices": ranks,
        "trainer.strategy": strategy,
        "trainer.default_root_dir": run_folder,
        "trainer.enable_checkpointing": "false",
    }
    command = [sys.executable, str(ROOT / "trainer.py"), *(f"--{name}={value}" for name, value in options.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "bench")}
    best = 0.0
    for _ in range(3):
        process = subprocess.run([*command, *more], env=environment, capture_output=True, text=True)
        if process.returncode:
            sys.exit(process.stderr)
        log = max((run_folder / "lightning_logs").glob("*/metrics.csv"), key=os.path.getmtime)
        with open(log, encoding="utf-8") as file:
            speeds = [float(row["tokens_per_s"]) for row in csv.DictReader(file) if row.get("tokens_per_s")]
        best = max(best, *speeds[1:])
    return best


if __name__ == "__main__":
    main()
