"""The speed of greedy generation: gpt2kit, transformers, llama.cpp and CTranslate2, with the same weights and prompt.

    python bench/generate.py --ckpt_path lightning_logs/version_0
    python bench/generate.py --shape 12 12 768 1024 50257 --node_modules ../node/node_modules --repeats 3
    python bench/generate.py --ckpt_path lightning_logs/version_0 --cold 5     # starts generate.py, too

The ways of generation (`--ways`) take turns after one call each, in which transformers compiles; a figure is the median
of the turns. No way stops at the end of a document, and the ids of each are compared with those of gpt2kit in float32.
`equal ids` is the number of tokens before the first difference, and the margin there: how much larger the largest logit
is than the second. Where it is small, rounding can change the token.

`no_cache` sends the whole text through the model for each token, as many small scripts do. llama.cpp and CTranslate2
use the CPU, also if there is a GPU. What is not installed is left out:

    pip install gguf accelerate ctranslate2==4.8.5
    npm install --prefix ../node --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from generation_ways import DEVICE, GREEDY, WAYS, Task, Turn, Way, placeholder_tokenizer
from machine import ROOT, report
from tokenizers import Tokenizer, models

from gpt2kit.checkpoint import checkpoint
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import UserError
from gpt2kit.export import huggingface
from gpt2kit.generation.decoder import Decoder, TokenSequence
from gpt2kit.model.config import parameter_count
from gpt2kit.model.inference import InferenceGPT2
from gpt2kit.training.module import GPT2Module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", help="a run folder, a .ckpt file or a Hugging Face folder")
    shape_help = "layers, heads, width, context, vocabulary; random weights"
    parser.add_argument("--shape", type=int, nargs=5, default=[4, 3, 192, 1024, 4096], help=shape_help)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--prompt_tokens", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=500, help="new tokens")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="texts generated together")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--node_modules", type=Path, help="the folder that contains node-llama-cpp")
    parser.add_argument("--cold", type=int, default=0, help="also start generate.py this many times")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    opened = checkpoint.open(args.ckpt_path) if args.ckpt_path else random_model(*args.shape)
    size, context = opened.shape["vocab_size"], opened.shape["n_positions"]
    if args.prompt_tokens + args.tokens > context:  # only gpt2kit can exceed it
        parser.error(f"--prompt_tokens and --tokens: together more than the context of {context}")
    opened = dataclasses.replace(opened, tokenizer=placeholder_tokenizer(size))
    prompt = torch.randint(size, [args.prompt_tokens], generator=torch.manual_seed(1)).tolist()
    parameters = f"{parameter_count(opened.shape):,} parameters, context {context}"
    print(f"{parameters}, {DEVICE}, {args.threads} threads, {args.prompt_tokens} + {args.tokens} tokens", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpt2kit-bench-") as folder:
        huggingface.write(opened, Path(folder), "benchmark", "float32")
        task = Task(opened, Path(folder), prompt, args.tokens, args.threads, args.node_modules)
        ways = prepare(task, ["gpt2kit", *args.ways])
        reference = generate_reference(task)
        rows = [row for batch in args.batches for row in measure(ways, batch, args.repeats, *reference)]
    if args.cold:
        seconds = statistics.median(cold_start(args.ckpt_path) for _ in range(args.cold))
        print(f"generate.py: first character after {seconds:.2f} s, median of {args.cold} starts")
    report(rows, args.output)


def random_model(n_layer: int, n_head: int, n_embd: int, n_positions: int, vocab_size: int) -> LoadedCheckpoint:
    """Return a model with larger weights than GPT-2's initial ones, so that its greedy text is varied and distinct."""
    torch.manual_seed(1)
    gpt2 = GPT2Module(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=n_positions, vocab_size=vocab_size
    ).model
    for name, parameter in gpt2.named_parameters():
        if parameter.ndim == 2:  # std of the layers' matrices 0.06, of the embeddings 0.2
            parameter.data.mul_(3 if ".h." in name else 10)
    # The output layer is the token embedding: without random signs, a token would be most likely to follow itself.
    gpt2.transformer.ln_f.weight.data.bernoulli_().mul_(2).sub_(1)
    return LoadedCheckpoint(Path("random"), gpt2.shape, Tokenizer(models.BPE()), {}, state=gpt2.state_dict())


def prepare(task: Task, names: list[str]) -> dict[str, Way]:
    """Load the model for each way; report the ways that are left out."""
    ways = {}
    for name in dict.fromkeys(names):
        try:
            ways[name] = WAYS[name](task)
        except UserError as error:
            print(f"{name} is left out: {error}", flush=True)
    return ways


def generate_reference(task: Task) -> tuple[list[int], list[float]]:
    """Return gpt2kit's ids in float32; for each, the difference of the two largest logits."""
    gpt2 = InferenceGPT2(task.opened.shape, task.opened.state, DEVICE, torch.float32)
    sequence, margins = TokenSequence(task.prompt), []
    loop = Decoder(gpt2, [sequence], GREEDY, eos=-1, alternatives=2)
    for _ in range(task.tokens):
        (_, likeliest), (_, second) = loop.step()[0].most_likely
        margins.append(math.log(likeliest / max(second, 1e-38)))
    return sequence.new, margins


def measure(ways: dict[str, Way], batch: int, repeats: int, ids: list[int], margins: list[float]) -> list[dict]:
    """Return a row of the table for each way."""
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for _ in range(1 + repeats):
        for name, way in ways.items():
            time.sleep(0.3)  # threads of the previous way may wait actively for 0.2 s
            turns[name].append(way(batch))
    seconds = {name: statistics.median(turn.total for turn in turns[name][1:]) for name in ways}
    rows = []
    for name, (first_call, *others) in turns.items():
        generated = [row for turn in others for row in turn.rows]
        pairs = enumerate(zip(ids, *generated, strict=True))
        equal = next((i for i, (token, *tokens) in pairs if set(tokens) != {token}), len(ids))
        rows.append(
            {
                "way": name,
                "batch": batch,
                "first token, ms": round(1e3 * statistics.median(turn.first for turn in others), 1),
                "tokens/s": round(batch * len(ids) / seconds[name], 1),
                "relative to gpt2kit": round(seconds["gpt2kit"] / seconds[name], 2),
                "equal ids": "all" if equal == len(ids) else f"{equal}, margin {margins[equal]:.1g}",
                "first call, s": round(first_call.total, 1),
            }
        )
    return rows


def cold_start(ckpt_path: str) -> float:
    """Return the seconds from the start of generate.py to the first character that it generates."""
    command = [sys.executable, str(ROOT / "generate.py"), "--ckpt_path", ckpt_path, "--max_new_tokens", "20"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.communicate()
    return seconds


if __name__ == "__main__":
    main()
