"""The memory that `trainer.py --plan` estimates compared with measurements: `python bench/memory.py`.

Each row comes from two processes: one estimates, the other is a `trainer.py` of a few steps. Its largest resident
memory is measured (on a GPU, the largest memory that torch has allocated, from metrics.csv).
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

# Layers, heads, width, block size, batch size.
SHAPES = {
    "nano": (5, 4, 128, 128, 32),
    "tiny": (4, 3, 192, 256, 16),
    "mini": (6, 6, 384, 256, 16),
    "26 M": (12, 12, 384, 128, 12),
    "small": (12, 12, 768, 256, 4),
}
# The program of the first process: it plans a run and prints the estimate.
ESTIMATE = "import json, sys; from gpt2kit.cli.train_cli import TrainCLI; "
ESTIMATE += "print(json.dumps(TrainCLI([*sys.argv[1:], '--plan']).measure_plan()['memory']))"


def measure(
    shapes: list[str] | None = None,
    attention: list[str] | None = None,
    precision: str = "auto",
    vocab_size: int = 8192,
    steps: int = 6,
    options: list[str] | None = None,
    output: Path | None = None,
) -> None:
    """Compare estimated with measured memory.

    Args:
        shapes: names of SHAPES. Default: all.
        attention: plain, sdpa or both. Default: both.
        precision: Lightning's name of it.
        vocab_size: tokens in the vocabulary, which is trained on this environment's Python files.
        steps: training steps.
        options: further options of trainer.py, such as model.gradient_checkpointing=true.
        output: write the figures as JSON.
    """
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = machine.collect_python(work / "text.txt", 4_000_000)
        script = machine.ROOT / "train_tokenizer.py"
        tokenizer = ["--vocab_size", str(vocab_size), "--output_dir", str(work / "tokenizer")]
        machine.run_timed([sys.executable, str(script), "--files", str(text), *tokenizer])
        for name in shapes or SHAPES:
            for kind in attention or ["plain", "sdpa"]:
                rows.append(compare(work, text, name, kind, precision, steps, options or []))
                print(rows[-1], flush=True)
    machine.report(rows, output)


def compare(
    work: Path, text: Path, name: str, attention: str, precision: str, steps: int, options: list[str]
) -> dict[str, object]:
    """Return the estimated and the measured memory of one shape."""
    layers, heads, width, block, batch = SHAPES[name]
    run = work / f"{name}-{attention}"
    settings = {
        "data.train_files": text,
        "data.valid_fraction": 0.01,
        "data.reader.document": "line",
        "data.tokenizer": work / "tokenizer",
        "data.cache_dir": work / "cache",
        "data.block_size": block,
        "data.batch_size": batch,
        "model.n_layer": layers,
        "model.n_head": heads,
        "model.n_embd": width,
        "model.dropout": 0.0,
        "model.attention": attention,
        "trainer.precision": precision,
        "trainer.max_steps": steps,
        "trainer.log_every_n_steps": steps,
        "trainer.gradient_clip_val": 1.0,
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": run,
    }
    args = [f"--{key}={value}" for key, value in settings.items()] + [f"--{option}" for option in options]
    _, _, printed = machine.run_timed([sys.executable, "-c", ESTIMATE, *args])
    estimate = json.loads(printed.splitlines()[-1])
    _, resident, _ = machine.run_timed([sys.executable, str(machine.ROOT / "trainer.py"), *args])
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
