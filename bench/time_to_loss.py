"""Validation loss against seconds, steps and tokens: gpt2kit's defaults and nanoGPT's settings for small models.

    python bench/time_to_loss.py --train_files train.txt --valid_files valid.txt --kind char --output_dir race

gpt2kit is `trainer.py`; its figures are read from metrics.csv. The AdamW recipe is a plain PyTorch loop over the same
tokens: transformers' GPT2LMHeadModel, AdamW (1e-3 falling to 1e-4 along a cosine after 100 steps or a tenth of all,
betas 0.9 and 0.99, weight decay 0.1), clipping at 1, random blocks, bfloat16, compiled. Both validate on the full
validation text in the same blocks; the time of validations does not count. Writes results.json and curves.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from machine import ROOT, add_run_options, report

# step, tokens, seconds of training, val_loss. The first point has the seconds of compilation as `compile`, the last one
# memory in 10^9 bytes.
Point = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser)
    parser.add_argument("--steps", type=int, default=2000, help="steps of the AdamW recipe")
    parser.add_argument(
        "--gpt2kit_steps",
        type=int,
        nargs="*",
        help="steps of each gpt2kit run; default: those of the recipe, and a third of them",
    )
    parser.add_argument("--validations", type=int, default=20, help="per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--options", nargs="*", default=[], help="further options of trainer.py")
    parser.add_argument("--eager", action="store_true", help="without compilation")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    steps = args.gpt2kit_steps if args.gpt2kit_steps is not None else [args.steps, args.steps // 3]
    runs: dict[str, list[list[Point]]] = {}
    for seed in args.seeds:
        for count in steps:
            runs.setdefault(f"gpt2kit, {count} steps", []).append(run_gpt2kit(args, seed, count))
        runs.setdefault(f"AdamW recipe, {args.steps} steps", []).append(run_recipe(args, seed))
    rows = [row(name, points) for name, points in runs.items()]
    (args.output_dir / "curves.json").write_text(json.dumps(runs, indent=1) + "\n")
    draw(runs, args.output_dir / "curves.png")
    report(rows, args.output_dir / "results.json")


def row(name: str, runs: list[list[Point]]) -> dict[str, object]:
    """Return the figures at the end of a run, as means over the seeds."""
    last = [points[-1] for points in runs]
    losses = [point["val_loss"] for point in last]
    mean = sum(losses) / len(losses)
    return {
        "way": name,
        "seeds": len(runs),
        "steps": int(last[0]["step"]),
        "tokens": f"{last[0]['tokens']:,.0f}",
        "val_loss": f"{mean:.4f}",
        "lowest, highest": f"{min(losses):.4f}, {max(losses):.4f}",
        "lowest of all validations": f"{sum(min(p['val_loss'] for p in points) for points in runs) / len(runs):.4f}",
        "seconds": f"{sum(point['seconds'] for point in last) / len(last):.1f}",
        "compilation, s": f"{sum(points[0].get('compile', 0.0) for points in runs) / len(runs):.1f}",
        "memory, MB": f"{sum(point['memory'] for point in last) / len(last) * 1000:,.0f}",
    }


def trainer_options(args: argparse.Namespace, seed: int, steps: int) -> list[str]:
    """Return the arguments of trainer.py for a run."""
    layers, heads, width = args.shape
    options = {
        "seed_everything": seed,
        "model.n_layer": layers,
        "model.n_head": heads,
        "model.n_embd": width,
        "model.dropout": 0.0,
        "model.optimizer.weight_decay": 0.1,
        "model.compile": "off" if args.eager else "blocks",
        "data.train_files": json.dumps([str(Path(file).resolve()) for file in args.train_files]),
        "data.valid_files": json.dumps([str(Path(file).resolve()) for file in args.valid_files]),
        "data.tokenizer.class_path": "gpt2kit.tokenization.TokenizerSpec",
        "data.tokenizer.init_args.kind": args.kind,
        "data.reader.class_path": "gpt2kit.text.Reader",
        "data.reader.init_args.document": args.document,
        "data.cache_dir": (args.output_dir / "cache").resolve(),
        "data.block_size": args.block,
        "data.batch_size": args.batch,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": max(steps // args.validations, 1),
        "trainer.gradient_clip_val": 1.0,
        "trainer.log_every_n_steps": max(steps // args.validations, 1),
        "trainer.default_root_dir": args.output_dir.resolve(),
        "save_every": 10**9,
    }
    return [f"--{name}={value}" for name, value in options.items()] + [f"--{option}" for option in args.options]


def run_gpt2kit(args: argparse.Namespace, seed: int, steps: int) -> list[Point]:
    """Run trainer.py and return its validations."""
    log = args.output_dir / f"gpt2kit-{steps}-{seed}.log"
    with open(log, "w", encoding="utf-8") as output:
        command = [sys.executable, str(ROOT / "trainer.py"), *trainer_options(args, seed, steps)]
        if subprocess.run(command, stderr=output, stdout=output, check=False).returncode:
            sys.exit(log.read_text(encoding="utf-8"))
    tokens = args.batch * args.block
    losses, speeds = (read_metric(args.output_dir, name) for name in ("val_loss", "tokens_per_s"))
    points: list[Point] = []
    seconds, since = 0.0, 0
    for step in sorted(losses):
        speed = speeds[max(logged for logged in speeds if logged <= step)]  # the last step may not be a log step
        seconds += (step - since) * tokens / speed
        since = step
        points.append({"step": step, "tokens": step * tokens, "seconds": seconds, "val_loss": losses[step]})
    # The first steps compile. Their excess over the usual pace is reported separately.
    paces = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(points)]
    if paces:
        extra = max(points[0]["seconds"] - sorted(paces)[len(paces) // 2] * points[0]["step"], 0.0)
        for point in points:
            point["seconds"] -= extra
        points[0]["compile"] = extra
    points[-1]["memory"] = max(read_metric(args.output_dir, "memory_gb").values())
    return points


def read_metric(folder: Path, name: str) -> dict[int, float]:
    """Return a metric by step, of the newest run in a folder."""
    newest = max((folder / "lightning_logs").iterdir(), key=lambda path: path.stat().st_ctime)
    with open(newest / "metrics.csv", encoding="utf-8") as file:
        return {int(float(line["step"])): float(line[name]) for line in csv.DictReader(file) if line.get(name)}


def run_recipe(args: argparse.Namespace, seed: int) -> list[Point]:
    """Train the AdamW recipe in this process and return its validations."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2kit import hardware
    from gpt2kit.cli.train_cli import TrainCLI
    from gpt2kit.data.batches import EvalBatches

    data = TrainCLI([*trainer_options(args, seed, 1), "--trainer.logger=false"]).datamodule
    store = data.store("train")
    tokens = torch.tensor(store[0 : store.tokens].astype("int64"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    layers, heads, width = args.shape
    size = -(-data.vocab_size // 64) * 64
    config = GPT2Config(
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        vocab_size=size,
        n_positions=args.block,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).to(device)
    forward: Any = model if args.eager else torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits = forward(batch[:, :-1].clamp(min=0)).logits
        nll: torch.Tensor = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        return nll

    def validate() -> float:
        model.eval()
        nll, count = 0.0, 0
        with torch.no_grad():
            for batch in EvalBatches(data.store("valid"), args.block, args.batch):
                nll += loss_of(batch.to(device)).item()
                count += int((batch[:, 1:] != -100).sum())
        model.train()
        return nll / count

    points: list[Point] = []
    seconds, compilation = 0.0, 0.0
    every, warmup = max(args.steps // args.validations, 1), min(100, args.steps // 10)
    begin = time.perf_counter()
    for step in range(args.steps):
        progress = max(step - warmup, 0) / max(args.steps - warmup, 1)
        decayed = 1e-4 + 9e-4 * (1 + math.cos(math.pi * progress)) / 2
        lr = 1e-3 * (step + 1) / (warmup + 1) if step < warmup else decayed
        for group in optimizer.param_groups:
            group["lr"] = lr
        first = torch.randint(len(tokens) - args.block, (args.batch,))
        batch = torch.stack([tokens[i : i + args.block + 1] for i in first.tolist()]).to(device)
        (loss_of(batch) / (args.batch * args.block)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step == 0:
            if device == "cuda":
                torch.cuda.synchronize()
            compilation, begin = time.perf_counter() - begin, time.perf_counter()
        if (step + 1) % every == 0:
            if device == "cuda":
                torch.cuda.synchronize()
            seconds += time.perf_counter() - begin
            done = (step + 1) * args.batch * args.block
            points.append({"step": step + 1, "tokens": done, "seconds": seconds, "val_loss": validate()})
            begin = time.perf_counter()
    points[0]["compile"] = compilation
    points[-1]["memory"] = (hardware.peak_memory(torch.device(device)) or math.nan) / 1e9
    return points


def draw(runs: dict[str, list[list[Point]]], path: Path) -> None:
    """Draw the loss against seconds and against tokens, one line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    lowest = min(point["val_loss"] for seeds in runs.values() for points in seeds for point in points)
    for axis, unit, label in zip(axes, ("seconds", "tokens"), ("training time, s", "training tokens"), strict=True):
        for color, (name, seeds) in zip(
            ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#000000"), runs.items(), strict=False
        ):
            for number, points in enumerate(seeds):
                xs, ys = [p[unit] for p in points], [p["val_loss"] for p in points]
                axis.plot(xs, ys, color=color, label=name if not number else None, linewidth=1.5, alpha=0.8)
        axis.set(xlabel=label)
        axis.set_ylim(lowest - 0.1, lowest + 1.2)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation loss, nats per token")
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
