"""The speed of a training step: gpt2kit's, and that of other libraries, used as their documentation shows.

    python bench/train_step.py
    python bench/train_step.py --shapes small --batch 32 --block 1024 --ways gpt2kit plain_compiled hf_trainer
    python bench/train_step.py --nanogpt ../nanoGPT     # a copy of nanoGPT: its model with its own settings
    pip install --no-deps --target ../litgpt litgpt==0.5.13 lightning==2.6.6 psutil
    python bench/train_step.py --litgpt ../litgpt       # the same for litgpt

Each way of training (`--ways`) runs in a process of its own. They take turns, round after round; a figure is the median
over the rounds of the median step. All get the same random tokens and the same count of FLOPs
(`model.config.flops_per_token`). The fastest matmul is the largest matrix product in bfloat16 per second, measured at
the start of each process.

gpt2kit            trainer.py with Muon and compiled blocks; gpt2kit_adamw: with AdamW; gpt2kit_fp16: 16-mixed (a GPU)
gpt2kit_eager, gpt2kit_model    the same, not compiled; compiled as a whole
gpt2kit_NAME       with a change of bench/gpu_variants.py
gpt2kit_loop       the module and the optimizer of gpt2kit_eager in a plain loop, without Lightning
plain              a plain PyTorch loop over GPT2LMHeadModel with labels=, float32, torch.optim.AdamW, clipping
plain_bf16         the same under bfloat16 autocast
plain_compiled     the same with torch.compile(model) and fused AdamW
hf_trainer         transformers.Trainer with bf16=True
lightning          a LightningModule of ten lines, precision bf16-mixed
litgpt             its model as `litgpt pretrain` trains it by default: Fabric, bf16-mixed, compiled, torch.optim.AdamW
nanogpt, nanogpt_compiled    its model and optimizer: float32; bfloat16 and compiled
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from machine import report, run_timed
from torch import Tensor, nn

# Layers, heads, width, vocabulary, block size, sequences per step.
SHAPES = {
    "shakespeare": (4, 4, 128, 65, 64, 12),
    "mini": (6, 6, 384, 65, 256, 16),
    "26M": (12, 12, 384, 12966, 128, 12),
    "small": (12, 12, 768, 50257, 1024, 1),
    "medium": (24, 16, 1024, 50257, 1024, 1),
}

WAYS = (
    "gpt2kit",
    "gpt2kit_adamw",
    "gpt2kit_eager",
    "gpt2kit_loop",
    "plain",
    "plain_bf16",
    "plain_compiled",
    "hf_trainer",
    "lightning",
)
# Further options of trainer.py.
OPTIONS = {
    "gpt2kit_adamw": ["--model.optimizer=gpt2kit.optim.AdamW"],
    "gpt2kit_fp16": ["--trainer.precision=16-mixed"],
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["shakespeare", "26M"], choices=SHAPES)
    parser.add_argument("--ways", nargs="+", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed steps per round")
    parser.add_argument("--block", type=int, help="instead of the shape's")
    parser.add_argument("--batch", type=int, help="instead of the shape's")
    parser.add_argument("--nanogpt", type=Path, help="the folder with its model.py; adds its two ways")
    parser.add_argument("--litgpt", type=Path, help="the folder that it is installed in; adds its way")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder = args.litgpt if args.child == "litgpt" else args.nanogpt
        run(args.child, args.shapes[0], args.block, args.batch, args.steps, folder)
        return
    others = [*(["litgpt"] if args.litgpt else []), *(["nanogpt", "nanogpt_compiled"] if args.nanogpt else [])]
    ways = args.ways or [*WAYS, *others]
    rows: list[dict[str, object]] = []
    for shape in args.shapes:
        results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way in ways:
                command = [sys.executable, __file__, "--child", way, "--shapes", shape, "--steps", str(args.steps)]
                for name in ("block", "batch", "nanogpt", "litgpt"):
                    command += [f"--{name}", str(getattr(args, name))] if getattr(args, name) else []
                _, resident, output = run_timed(command)
                results[way].append({"memory": resident, **json.loads(output.splitlines()[-1])})
        peak = max(result["peak"] for each in results.values() for result in each)
        for way, each in results.items():
            rows.append(row(shape, way, each, results[ways[-1]], peak))
            print(rows[-1], flush=True)
    report(rows, args.output)


def row(
    shape: str, way: str, results: list[dict[str, float]], last: list[dict[str, float]], peak: float
) -> dict[str, object]:
    """Return one way's figures; `last` are the results of the way with which all are compared."""
    seconds, last_seconds = (statistics.median(r["seconds"] for r in each) for each in (results, last))
    return {
        "shape": shape,
        "way": way,
        "ms per step": f"{1e3 * seconds:.1f}",
        "tokens/s": f"{results[0]['tokens'] / seconds:,.0f}",
        "GFLOP/s": f"{results[0]['flops'] / seconds / 1e9:,.0f}",
        "fraction of the fastest matmul": f"{100 * results[0]['flops'] / seconds / peak:.0f} %",
        "speed relative to the last row": f"{last_seconds / seconds:.2f}",
        "first step, s": f"{statistics.median(r['first'] for r in results):.1f}",
        "memory, MB": f"{statistics.median(r['memory'] for r in results):,.0f}",
    }


def run(way: str, name: str, block: int | None, batch: int | None, steps: int, folder: Path | None) -> None:
    """Train some steps in this process and print one line of JSON."""
    from gpt2kit.model.config import flops_per_token

    warnings.filterwarnings("ignore")
    layers, heads, width, vocabulary, length, rows = SHAPES[name]
    length, rows = block or length, batch or rows
    shape = {"n_layer": layers, "n_head": heads, "n_embd": width, "vocab_size": vocabulary, "n_positions": length}
    peak = measure_flops()
    torch.manual_seed(1)
    if DEVICE == "cuda":
        torch.set_float32_matmul_precision("high")
    batches = torch.randint(0, vocabulary, (8, rows, length + 1))
    train = TRAIN[way if way in TRAIN else way.split("_")[0]]
    times = list(train(way, shape, batches, steps + 3, folder))
    seconds = [later - sooner for sooner, later in pairwise(times[3:])]
    figures: dict[str, float] = {
        "seconds": statistics.median(seconds),
        "first": times[1] - times[0],
        "tokens": rows * length,
        "flops": flops_per_token(shape) * rows * length,
        "peak": peak,
    }
    if DEVICE == "cuda":
        figures["memory"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(figures))


def measure_flops() -> float:
    """Return the best FLOP/s of bfloat16 products of square matrices."""
    size = 2048 if DEVICE == "cpu" else 8192
    matrix = (torch.arange(size * size, device=DEVICE) % 7 - 3).view(size, size).bfloat16()
    times = [now()]
    for _ in range(12):
        torch.mm(matrix, matrix)
        times.append(now())
    return 2 * size**3 / min(later - sooner for sooner, later in pairwise(times[2:]))


def now() -> float:
    """Return the time once the device has finished its work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def train_gpt2kit(way: str, shape: dict[str, int], batches: Tensor, steps: int, _: Path | None) -> list[float]:
    """Train with `trainer.py`, whose steps also log, check gradients and track the position."""
    from gpu_variants import VARIANTS

    with tempfile.TemporaryDirectory() as folder:
        compiled = {"gpt2kit_eager": "off", "gpt2kit_graphs": "off", "gpt2kit_model": "model"}.get(way, "blocks")
        options = [f"--trainer.max_steps={steps}", f"--model.compile={compiled}", *OPTIONS.get(way, [])]
        cli = make_cli(Path(folder), shape, batches, options)
        clock = make_clock(VARIANTS.get(way))
        cli.trainer.callbacks.append(clock)
        cli.trainer.fit(cli.model, cli.datamodule)
        shape["vocab_size"] = int(cli.model.shape["vocab_size"])
    return list(clock.times)


def make_cli(folder: Path, shape: dict[str, int], batches: Tensor, options: list[str]) -> Any:
    """Return `trainer.py` for a model of a shape, with its text, of random words, in a folder."""
    from gpt2kit.cli.train_cli import TrainCLI

    words = [f"w{token}" for token in range(shape["vocab_size"] - 2)]
    lines = [
        " ".join(words),
        *(" ".join(words[t % len(words)] for t in row) for b in batches for row in b.tolist()),
    ]
    (folder / "text.txt").write_text("\n".join(lines * 2) + "\n", encoding="utf-8")
    fixed = {
        "data.train_files": folder / "text.txt",
        "data.tokenizer.class_path": "gpt2kit.tokenization.TokenizerSpec",
        "data.tokenizer.init_args.kind": "words",
        "data.cache_dir": folder / "cache",
        "data.reader.document": "line",
        "data.valid_fraction": 0,
        "data.block_size": shape["n_positions"],
        "data.batch_size": batches.shape[1],
        **{f"model.{name}": shape[name] for name in ("n_layer", "n_head", "n_embd")},
        "trainer.gradient_clip_val": 1.0,
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": folder,
        "save_every": 10**9,
    }
    return TrainCLI([*(f"--{name}={value}" for name, value in fixed.items()), *options])


def train_gpt2kit_loop(_: str, shape: dict[str, int], batches: Tensor, steps: int, __: Path | None) -> Iterator[float]:
    """Train the same module and optimizer in a plain loop, not compiled: `gpt2kit_eager` without Lightning."""
    from gpt2kit.optim.adamw import parameter_groups
    from gpt2kit.optim.muon import Muon
    from gpt2kit.training.module import GPT2Module

    gpt2 = GPT2Module(**shape).to(DEVICE)
    gpt2.model.use_attention()

    def loss_of(batch: Tensor) -> Tensor:
        nll, tokens = gpt2.model.nll(batch)
        return nll / tokens

    yield from loop(loss_of, gpt2, Muon(parameter_groups(gpt2.model)), batches, steps, "gpt2kit_loop")


# Options of a Lightning trainer that prints and saves nothing.
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def endless_loader(batches: Tensor) -> Any:
    class Endless(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            while True:
                for batch in batches:
                    yield batch.pin_memory() if DEVICE == "cuda" else batch

    return torch.utils.data.DataLoader(Endless(), batch_size=None)


def make_clock(change: Callable[[Any], None] | None = None) -> Any:
    """Return a callback that changes the module before it is compiled, and records the time after each step."""
    import pytorch_lightning as pl

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if change:
                change(module)

        def on_train_start(self, *_: Any) -> None:
            self.times.append(now())

        def on_train_batch_end(self, *_: Any) -> None:
            self.times.append(now())

    return Clock()


def make_model(shape: dict[str, int]) -> Any:
    """Return transformers' model with its defaults."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=None)).to(DEVICE)


def train_plain(way: str, shape: dict[str, int], batches: Tensor, steps: int, _: Path | None) -> Iterator[float]:
    """Train in a loop as in PyTorch's tutorials."""
    model = make_model(shape)
    compiled = torch.compile(model) if way == "plain_compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True if way == "plain_compiled" else None)
    yield from loop(lambda b: compiled(b[:, :-1], labels=b[:, :-1]).loss, model, optimizer, batches, steps, way)


def loop(
    loss_of: Callable[[Tensor], Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Tensor,
    steps: int,
    way: str,
) -> Iterator[float]:
    """Yield the time before the first step and after each: forward, backward, clip, update."""
    yield now()
    for step in range(steps):
        batch = batches[step % len(batches)].to(DEVICE, non_blocking=True)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=way not in ("plain", "nanogpt")):
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield now()


def train_hf_trainer(_: str, shape: dict[str, int], batches: Tensor, steps: int, __: Path | None) -> list[float]:
    """Train with transformers.Trainer on a list of samples."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(now())

    rows = batches.shape[1]
    samples = [{"input_ids": row[:-1], "labels": row[:-1]} for batch in batches for row in batch]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=rows,
            max_steps=steps,
            bf16=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=DEVICE == "cpu",
        )
        Trainer(model=make_model(shape), args=arguments, train_dataset=samples, callbacks=[Clock()]).train()
    return times


def train_lightning(_: str, shape: dict[str, int], batches: Tensor, steps: int, __: Path | None) -> list[float]:
    """Train transformers' model in a LightningModule with Lightning's defaults."""
    import pytorch_lightning as pl

    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model(shape)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss: Tensor = self.model(batch[:, :-1], labels=batch[:, :-1]).loss
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    clock = make_clock()
    pl.Trainer(
        max_steps=steps,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        callbacks=[clock],
        log_every_n_steps=10**6,
        **QUIET,
    ).fit(Plain(), endless_loader(batches))
    return clock.times


def train_nanogpt(way: str, shape: dict[str, int], batches: Tensor, steps: int, folder: Path | None) -> Iterator[float]:
    """Train nanoGPT's model with its optimizer, from the user's copy, as its train.py sets them up."""
    sys.path.insert(0, str(folder))
    import contextlib
    import io

    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    with contextlib.redirect_stdout(io.StringIO()):
        config = GPTConfig(
            block_size=shape["n_positions"],
            vocab_size=-(-shape["vocab_size"] // 64) * 64 if shape["vocab_size"] > 1000 else shape["vocab_size"],
            n_layer=shape["n_layer"],
            n_head=shape["n_head"],
            n_embd=shape["n_embd"],
            dropout=0.0,
            bias=False,
        )
        model = GPT(config).to(DEVICE)
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), DEVICE)
    compiled = torch.compile(model) if way == "nanogpt_compiled" else model
    yield from loop(lambda b: compiled(b[:, :-1], b[:, 1:].contiguous())[1], model, optimizer, batches, steps, way)


def train_litgpt(_: str, shape: dict[str, int], batches: Tensor, steps: int, folder: Path | None) -> Iterator[float]:
    """Train litgpt's model in the loop of its pretrain.py: GPT-2's sizes, but rotary positions and an untied output."""
    sys.path.insert(0, str(folder))
    from lightning import Fabric  # type: ignore[import-not-found]
    from litgpt.config import Config  # type: ignore[import-not-found]
    from litgpt.model import GPT  # type: ignore[import-not-found]
    from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]

    fabric = Fabric(devices=1, accelerator=DEVICE, precision="bf16-mixed")
    config = Config(
        block_size=shape["n_positions"],
        vocab_size=shape["vocab_size"],
        padding_multiple=64,
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        n_embd=shape["n_embd"],
        parallel_residual=False,
        gelu_approximate="tanh",
    )
    with fabric.init_module():
        model = GPT(config)
    model = fabric.setup(torch.compile(model))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-3, fused=DEVICE == "cuda"))
    yield now()
    for step in range(steps):
        batch = batches[step % len(batches)].to(DEVICE, non_blocking=True)
        loss = chunked_cross_entropy(model(batch[:, :-1].contiguous()), batch[:, 1:].contiguous())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield now()


TRAIN: dict[str, Callable[..., Any]] = {
    "gpt2kit": train_gpt2kit,
    "gpt2kit_loop": train_gpt2kit_loop,
    "plain": train_plain,
    "hf_trainer": train_hf_trainer,
    "lightning": train_lightning,
    "nanogpt": train_nanogpt,
    "litgpt": train_litgpt,
}

if __name__ == "__main__":
    main()
