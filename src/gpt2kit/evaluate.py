"""`test.py`: what a checkpoint makes of a text. Every token is predicted exactly once; figures are ratios of sums."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from gpt2kit import checkpoint, data, text
from gpt2kit.batches import EvalBatches
from gpt2kit.errors import UserError
from gpt2kit.metrics import Score
from gpt2kit.module import GPT2Module, choose_attention
from gpt2kit.shards import Corpus
from gpt2kit.store import TokenStore


def test(
    ckpt_path: str,
    files: list[str] | None = None,
    batch_size: int = 16,
    json: bool = False,
    cache_dir: Path = Path(".cache/gpt2kit"),
) -> None:
    """Print loss, perplexity and bits per byte of a checkpoint on text.

    Args:
        ckpt_path: a run folder (its best checkpoint) or a .ckpt file; nothing else is needed.
        files: text files, folders, patterns or URLs; default: the run's own test files or share.
        batch_size: sequences in one forward pass; changes the speed, not the figures.
        json: print one JSON object with every digit, instead of the table.
        cache_dir: where tokenized text is kept; safe to delete.
    """
    if batch_size < 1:
        raise UserError(f"--batch_size {batch_size}: must be at least 1")
    opened = checkpoint.open(ckpt_path)
    patterns, share = (files, None) if files else checkpoint.test_text(opened)
    if not patterns:
        raise UserError(f"{opened.path}: the run names no test_files and no test_share. Give some text with --files")
    if not files and any("://" in name for name in patterns):
        raise UserError(f"{opened.path}: its test text is {patterns}. If you trust that address, give it as --files")
    reader = text.reader_from(opened.facts["reader"])
    ended = opened.facts.get("append_eos") is not False
    corpus = Corpus(text.find_files(patterns), opened.tokenizer, reader, share, ended)
    store = data.build_store(corpus, cache_dir, "test text")
    for note in store.notes:
        print(f"note   test text: {note}", file=sys.stderr)
    score = evaluate(opened.module.to(_device()), store, batch_size)
    figures = {
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "bytes": store.bytes,
        "documents": store.documents,
        "context": opened.module.shape["n_positions"],
        "checkpoint": str(opened.path),
        "files": patterns,
        "share": share.high - share.low if share else 1.0,
    }
    print(_as_json(figures) if json else _as_table(figures))


@torch.inference_mode()
def evaluate(gpt2: GPT2Module, store: TokenStore, batch_size: int) -> Score:
    """The score of a model on a whole store, in float32 sums of nats gathered in double precision."""
    gpt2.eval()
    gpt2.model.set_attn_implementation(choose_attention("auto", gpt2.device, gpt2.shape))
    batches = EvalBatches(store, int(gpt2.shape["n_positions"]), batch_size)
    total, count = 0.0, 0
    for batch in tqdm(batches, desc="testing", unit="batch", leave=False, delay=1, disable=None):
        nll, tokens = gpt2._step(batch.to(gpt2.device))
        total += nll.double().item()
        count += int(tokens)
    return Score(total, count, data.text_size(store).bytes)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _as_json(figures: dict[str, object]) -> str:
    return json.dumps(figures, ensure_ascii=False)


def _as_table(figures: dict[str, object]) -> str:
    def shown(value: object) -> str:
        return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    return "\n".join(f"{name.replace('_', ' '):<15}{shown(value)}" for name, value in figures.items())
