"""The speed of generation: gpt2kit's loop, transformers' `generate`, and a loop without a KV cache.

    python bench/generate.py --ckpt_path lightning_logs/version_0
    python bench/generate.py --shape 12 12 768 1024 50257 --repeats 3
    python bench/generate.py --ckpt_path lightning_logs/version_0 --cold 5     # starts generate.py, too

All three generate with the same weights in one process and take turns; a figure is the median of the turns. `no cache`
sends the whole context through the model for each token, as many small scripts do. `--shape` takes random weights
instead of a checkpoint: layers, heads, width, context, vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from machine import ROOT, report

from gpt2kit.checkpoint import checkpoint
from gpt2kit.generation import decoder
from gpt2kit.generation.generator import device_and_dtype
from gpt2kit.generation.options import SamplingOptions
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.inference import InferenceGPT2
from gpt2kit.training.module import GPT2Module

Times = tuple[float, float]  # seconds to the first token, to the last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", help="a run folder or a .ckpt file")
    parser.add_argument("--shape", type=int, nargs=5, help="layers, heads, width, context, vocabulary; random weights")
    parser.add_argument("--tokens", type=int, default=500, help="new tokens")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="texts generated together")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cold", type=int, default=0, help="also start generate.py this many times")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    gpt2 = load_model(args.ckpt_path, args.shape)
    device, dtype = device_and_dtype("auto")
    inference = InferenceGPT2(gpt2.shape, gpt2.state_dict(), device, dtype)
    gpt2.to(device, dtype).eval().use_attention()
    context = int(gpt2.shape["n_positions"])
    parameters = sum(p.numel() for p in gpt2.parameters())
    print(f"{parameters:,} parameters, context {context}, {gpt2.device}, {args.threads} threads, {args.tokens} tokens")
    rows: list[dict[str, object]] = []
    for batch in args.batches:
        ways: dict[str, Callable[[], Times]] = {
            "gpt2kit": lambda b=batch: generate_gpt2kit(inference, b, args.tokens),
            "no cache": lambda b=batch: generate_without_cache(gpt2, b, args.tokens),
        }
        if args.tokens < context:  # transformers cannot exceed the context
            ways["transformers"] = lambda b=batch: generate_transformers(gpt2, b, args.tokens)
        results: dict[str, list[Times]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, way in ways.items():
                results[name].append(way())
        slowest = statistics.median(total for _, total in results["no cache"])
        for name, times in results.items():
            total = statistics.median(total for _, total in times)
            rows.append(
                {
                    "way": name,
                    "batch": batch,
                    "first token, ms": round(1e3 * statistics.median(first for first, _ in times), 1),
                    "tokens/s": round(batch * args.tokens / total),
                    "speed relative to no cache": round(slowest / total, 2),
                }
            )
    if args.cold:
        seconds = statistics.median(cold_start(args.ckpt_path) for _ in range(args.cold))
        print(f"generate.py: first character after {seconds:.2f} s, median of {args.cold} starts")
    report(rows, args.output)


def cold_start(ckpt_path: str) -> float:
    """Return the seconds from the start of generate.py to the first character that it generates."""
    command = [sys.executable, str(ROOT / "generate.py"), "--ckpt_path", ckpt_path, "--max_new_tokens", "20"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.communicate()
    return seconds


def load_model(ckpt_path: str | None, shape: list[int] | None) -> GPT2:
    """Return the model of a checkpoint, or one with random weights."""
    if ckpt_path:
        return checkpoint.open(ckpt_path).model
    n_layer, n_head, n_embd, n_positions, vocab_size = shape or (4, 3, 192, 1024, 4096)
    torch.manual_seed(1)
    return GPT2Module(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=n_positions, vocab_size=vocab_size
    ).model


def generate_gpt2kit(gpt2: InferenceGPT2, batch: int, tokens: int) -> Times:
    begin = time.perf_counter()
    sequences = [decoder.TokenSequence([0], sample) for sample in range(batch)]
    loop = decoder.Decoder(gpt2, sequences, SamplingOptions(temperature=0.8, top_p=1.0, top_k=200), eos=-1)
    loop.step()
    first = time.perf_counter() - begin
    for _ in range(tokens - 1):
        loop.step()
    return first, time.perf_counter() - begin


@torch.inference_mode()
def generate_without_cache(gpt2: GPT2, batch: int, tokens: int) -> Times:
    context, size = int(gpt2.shape["n_positions"]), int(gpt2.shape["vocab_size"])
    begin, first = time.perf_counter(), 0.0
    ids = torch.zeros(batch, 1, dtype=torch.long, device=gpt2.device)
    for _ in range(tokens):
        logits = gpt2(ids[:, -context:], use_cache=False, logits_to_keep=1).logits[:, -1, :size] / 0.8
        least = logits.topk(min(200, size)).values[:, -1:]
        sampled = torch.multinomial(logits.masked_fill(logits < least, -torch.inf).softmax(-1), 1)
        ids = torch.cat([ids, sampled], 1)
        first = first or time.perf_counter() - begin
    int(ids[0, -1])  # waits for the device
    return first, time.perf_counter() - begin


def generate_transformers(gpt2: GPT2, batch: int, tokens: int) -> Times:
    class First:
        at = 0.0

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> bool:
            self.at = self.at or time.perf_counter()
            return False

    first = First()
    begin = time.perf_counter()
    ids = torch.zeros(batch, 1, dtype=torch.long, device=gpt2.device)
    gpt2.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=True,
        temperature=0.8,
        top_k=200,
        pad_token_id=0,
        stopping_criteria=[first],
    )
    return first.at - begin, time.perf_counter() - begin


if __name__ == "__main__":
    main()
