"""How well `trainer.py --plan` foretells memory: `python bench/memory.py`.

Each line is two processes: one that estimates, and a `trainer.py` of some steps, whose largest resident memory the
system tells (on a GPU, the largest that torch has allocated, out of metrics.csv). The estimate's own steps are left
out, so that it is an estimate.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import machine
import torch

from gpt2kit.cli import parser

SHAPES = {
    "nano": (5, 4, 128, 128, 32),
    "tiny": (4, 3, 192, 256, 16),
    "mini": (6, 6, 384, 256, 16),
    "26 M": (12, 12, 384, 128, 12),
    "small": (12, 12, 768, 256, 4),
}
"""Layers, heads, width, block size, batch size."""

ESTIMATE = "import json, sys; from gpt2kit.cli import train; from gpt2kit.training import estimate; "
ESTIMATE += "c = train.TrainCLI(sys.argv[1:]); "
ESTIMATE += "print(json.dumps(estimate.estimate_memory(c.trainer, c.datamodule, c.model)))"


def measure(
    shapes: list[str] | None = None,
    attention: list[str] | None = None,
    precision: str = "auto",
    vocab_size: int = 8192,
    steps: int = 6,
    more: list[str] | None = None,
    output: Path | None = None,
) -> None:
    """Compare estimates with what is measured.

    Args:
        shapes: names of SHAPES; default: all.
        attention: plain, sdpa or both (default).
        precision: by Lightning's name.
        vocab_size: tokens of the tokenizer, which is trained on this environment's Python files.
        steps: of training.
        more: further options of trainer.py, such as model.gradient_checkpointing=true.
        output: write the table as JSON here.
    """
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = machine.collect(work / "text.txt", 4_000_000)
        script = machine.ROOT / "train_tokenizer.py"
        words = ["--files", str(text), "--vocab_size", str(vocab_size), "--output_dir", str(work / "tokenizer")]
        machine.timed([sys.executable, str(script), *words])
        for name in shapes or SHAPES:
            for kind in attention or ["plain", "sdpa"]:
                rows.append(_row(work, text, name, kind, precision, steps, more or []))
                print(rows[-1], flush=True)
    machine.finish(rows, output)


def _row(
    work: Path, text: Path, name: str, attention: str, precision: str, steps: int, more: list[str]
) -> dict[str, object]:
    layers, heads, width, block, batch = SHAPES[name]
    run = work / f"{name}-{attention}"
    options = {
        "data.train_files": text,
        "data.valid_fraction": 0.01,
        "data.tokenizer": work / "tokenizer",
        "data.cache_dir": work / "cache",
        "data.block_size": block,
        "data.batch_size": batch,
        "model.n_layer": layers,
        "model.n_head": heads,
        "model.n_embd": width,
        "model.attention": attention,
        "trainer.precision": precision,
        "trainer.max_steps": steps,
        "trainer.log_every_n_steps": steps,
        "trainer.gradient_clip_val": 1.0,
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": run,
    }
    words = [f"--{key}={value}" for key, value in options.items()] + [f"--{one}" for one in more]
    _, _, told = machine.timed([sys.executable, "-c", ESTIMATE, *words])
    estimate = json.loads(told.splitlines()[-1])
    _, resident, _ = machine.timed([sys.executable, str(machine.ROOT / "trainer.py"), *words])
    measured = resident * 1024 * 1024
    if torch.cuda.is_available():
        with open(run / "lightning_logs/version_0/metrics.csv", encoding="utf-8") as file:
            measured = max(float(row["memory_gb"] or 0) for row in csv.DictReader(file)) * 1e9
    return {
        "model": f"{name}: {layers}L {heads}H {width}d, {batch} x {block}",
        "attention": attention,
        "estimate, MB": round(estimate["total"] / 1e6),
        "measured, MB": round(measured / 1e6),
        "estimate / measured": f"{estimate['total'] / measured:.2f}",
        "parts, MB": ", ".join(f"{part} {size / 1e6:.0f}" for part, size in estimate["parts"].items() if size),
    }


if __name__ == "__main__":
    parser.run(measure)
