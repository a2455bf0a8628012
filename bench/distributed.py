"""Two gloo processes against one on this machine, whether to share Muon's work, and how fast parts of a token store are
joined.

    python bench/distributed.py

Ranks on one machine share its cores and memory, so this says what DDP and FSDP cost (they exchange through gloo and
the loopback network), not what two GPUs give. Each figure is the best of three, one thread a process.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

LINE = "the quick brown fox jumps over the lazy dog and number {} says good morning\n"
STEPS = 12


class Alone(Callback):
    """Each rank turns all of Muon's matrices, as if there were no others."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.optimizers[0].ranks = (0, 1)  # type: ignore[attr-defined]


def throughput(work: Path, ranks: int, strategy: str, n_embd: int, optimizer: str, more: list[str]) -> float:
    """Tokens/s of the last steps of a run; one step is 16 sequences of 128 tokens, whatever the ranks."""
    words = [
        *(f"--data.train_files={work / 'text.txt'}", f"--data.tokenizer={work / 'tokenizer'}"),
        *(
            f"--data.cache_dir={work / 'cache'}",
            "--data.block_size=128",
            "--data.batch_size=8",
            "--data.global_batch_size=16",
        ),
        *(
            "--model.n_layer=4",
            "--model.n_head=4",
            f"--model.n_embd={n_embd}",
            f"--model.optimizer=gpt2kit.optim.{optimizer}",
        ),
        *(f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=4", "--trainer.precision=32-true"),
        *("--trainer.accelerator=cpu", f"--trainer.devices={ranks}", f"--trainer.strategy={strategy}"),
        *(
            f"--trainer.default_root_dir={work / f'{ranks}-{strategy}-{n_embd}'}",
            "--trainer.enable_checkpointing=false",
        ),
        *more,
    ]
    best = 0.0
    for _ in range(3):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "bench")}
        done = subprocess.run(
            [sys.executable, str(ROOT / "trainer.py"), *words], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)
        log = max((work / f"{ranks}-{strategy}-{n_embd}/lightning_logs").glob("*/metrics.csv"), key=os.path.getmtime)
        with open(log, encoding="utf-8") as file:
            rows = [float(row["tokens_per_s"]) for row in csv.DictReader(file) if row.get("tokens_per_s")]
        best = max(best, *rows[1:])
    return best


def joining(work: Path) -> tuple[float, float]:
    """MB/s of tokens that parts are merged at, and MB/s of text that one process encodes."""
    from gpt2kit.data import build, parallel_build
    from gpt2kit.text.reader import Reader
    from gpt2kit.tokenization import tokenizer

    paths = []
    for number in range(8):
        paths.append(work / f"part{number}.txt")
        paths[-1].write_text("".join(LINE.format(n) for n in range(number * 60_000, (number + 1) * 60_000)))
    corpus = build.Corpus(paths, tokenizer.load(work / "tokenizer"), Reader(), shard_tokens=1 << 21)
    begun = time.perf_counter()
    for part in parallel_build.parts_of(corpus, 4).values():
        build.open_or_build(part, work / "joined")
    encoding = sum(path.stat().st_size for path in paths) / (time.perf_counter() - begun) / 1e6
    begun = time.perf_counter()
    store = parallel_build.merge(corpus, 4, work / "joined")
    return store.tokens * store.dtype.itemsize / (time.perf_counter() - begun) / 1e6, encoding


def main() -> None:
    from gpt2kit.cli.train_tokenizer import train_tokenizer
    from gpt2kit.tokenization.trainers import TokenizerSpec

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "text.txt").write_text("".join(LINE.format(n) for n in range(20_000)))
        train_tokenizer([str(work / "text.txt")], work / "tokenizer", TokenizerSpec(vocab_size=512))
        results: dict[object, dict[str, float]] = {}
        print("| width | 1 process | 2, DDP | of twice | 2, FSDP | of twice |\n|---|---|---|---|---|---|")
        for n_embd in (128, 512):
            one, ddp, fsdp = (
                throughput(work, *how, n_embd, "AdamW", []) for how in ((1, "auto"), (2, "ddp"), (2, "fsdp"))
            )
            results[n_embd] = {"one": one, "ddp": ddp, "fsdp": fsdp}
            shares = [f"{two:,.0f} tokens/s | {two / one / 2:.0%}" for two in (ddp, fsdp)]
            print(f"| {n_embd} | {one:,.0f} tokens/s | {' | '.join(shares)} |", flush=True)
        print("\n| Muon, width 512 | each turns all | shared | times |\n|---|---|---|---|")
        for strategy in ("ddp", "fsdp"):
            each, shared = (
                throughput(work, 2, strategy, 512, "Muon", more)
                for more in (["--trainer.callbacks=distributed.Alone"], [])
            )
            results[f"muon_{strategy}"] = {"each": each, "shared": shared}
            print(
                f"| 2, {strategy} | {each:,.0f} tokens/s | {shared:,.0f} tokens/s | {shared / each:.2f} |", flush=True
            )
        joined, encoded = joining(work)
        results["parts"] = {"merged_mb_s": joined, "encoded_mb_s": encoded}
        print(f"parts of a store: merged {joined:,.0f} MB of tokens/s, encoded {encoded:.1f} MB of text/s")
        print(json.dumps(results))


if __name__ == "__main__":
    main()
