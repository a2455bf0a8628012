"""The speed of test.py compared with the forward pass of training: `python bench/evaluate.py [--model small ...]`.

Both get the same blocks of random tokens, in float32 on one device, and take turns; the best round counts. The forward
pass is that of a training step (`GPT2.nll` in training mode, which keeps what the backward pass needs). Testing is
`Scorer.score` as a whole: reading, the model, sums by document.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import numpy as np
import torch
import yaml

from gpt2kit.cli import parser
from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.data.store import TokenStore
from gpt2kit.evaluation import scoring
from gpt2kit.evaluation.scoring import Ranks, Scorer, Windows
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.trainers import train_bpe
from gpt2kit.training.module import GPT2Module

MODELS = Path(__file__).resolve().parent.parent / "configs" / "model"


def measure(
    model: str = "tiny",
    vocab_size: int = 8192,
    context: int = 256,
    batch_size: int = 16,
    batches: int = 8,
    rounds: int = 5,
) -> None:
    """Measure tokens/s of testing and of training's forward pass.

    Args:
        model: a file of configs/model.
        vocab_size: tokens in the vocabulary.
        context: tokens in a block.
        batch_size: blocks in a forward pass.
        batches: forward passes in a round.
        rounds: rounds, of which the best counts.
    """
    shape = yaml.safe_load((MODELS / f"{model}.yaml").read_text(encoding="utf-8"))
    sizes = {name: shape[name] for name in ("n_layer", "n_head", "n_embd")}
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), batches * batch_size * context)
        gpt2 = GPT2Module(**sizes, vocab_size=vocab_size, n_positions=context).model
        device = Ranks().device()
        scoring.prepare(gpt2, device, "32-true")
        windows = Windows(len(store), context, context)
        rows = [
            torch.from_numpy(np.stack([store[slice(*windows.span(n))] for n in numbers]).astype(np.int64)).to(device)
            for numbers in windows.batches(batch_size)
        ]
        tested, forward = [], []
        for _ in range(rounds + 1):  # the first one warms up
            tested.append(time_work(lambda: Scorer(gpt2.eval(), store, windows).score(batch_size), device))
            gpt2.train()
            forward.append(time_work(lambda: [gpt2.nll(batch) for batch in rows], device))
    tokens = len(store) - 1
    test_speed, train_speed = tokens / min(tested[1:]), tokens / min(forward[1:])
    figures = {"model": model, "device": device, "threads": torch.get_num_threads(), "test_tokens_per_s": test_speed}
    figures |= {"forward_tokens_per_s": train_speed, "ratio": test_speed / train_speed}
    print("| model | test.py, tokens/s | forward pass of training, tokens/s | ratio |\n|---|---|---|---|")
    print(f"| {model} | {test_speed:,.0f} | {train_speed:,.0f} | {test_speed / train_speed:.2f} |")
    print(json.dumps(figures))


def time_work(work: object, device: str) -> float:
    begin = time.perf_counter()
    work()  # type: ignore[operator]
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def random_store(folder: Path, tokens: int) -> TokenStore:
    """Return a store of about this many random tokens, in documents of about twenty."""
    random = np.random.default_rng(1)
    lines = ("".join(map(chr, random.integers(97, 123, 20))) for _ in range(tokens // 21 + 1))
    (folder / "text.txt").write_text("\n".join(lines))
    tokenizer = train_bpe([], TokenizerSpec(vocab_size=257))
    return open_or_build(Corpus([folder / "text.txt"], tokenizer, Reader("line")), folder)


if __name__ == "__main__":
    parser.run(measure)
