"""Compare optimizers and rates for runs that start from weights, in a plain loop of gpt2kit's own parts.

    python bench/finetune.py --base lightning_logs/version_0 --files my_texts --passes 1 3 \
        --variant scale=0.1 --variant "optimizer=AdamW lr=3e-4" --variant "optimizer=AdamW lr=1e-3 lora=8"

A variant is a list of `field=value` of `Rule`. Steps have 4,096 tokens. A tenth of the text is held out, as `train`
does it; the table has its bits per byte before and after training, and the factor on the rates that `auto` chooses. The
journal has one line for each run; a run that is in it is not repeated.
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from machine import ROOT, Journal, report
from sweep import evaluate, parse_rule
from torch import nn

from gpt2kit.checkpoint import checkpoint, initialize
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.data.batches import BlockDataset
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.order import block_order
from gpt2kit.data.store import TokenStore
from gpt2kit.metrics import Score
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.lora import add_lora, lora_scale, merge_lora
from gpt2kit.optim.adamw import AdamW, parameter_groups
from gpt2kit.optim.muon import Muon
from gpt2kit.optim.schedules import WarmupStableDecay
from gpt2kit.text.reader import Reader
from gpt2kit.training.auto import measure_loss

TOKENS_PER_STEP = 4096


@dataclass(frozen=True)
class Rule:
    """What the variants change."""

    optimizer: str = "Muon"
    lr: float = 0.0  # of AdamW
    scale: float = 1.0  # on both rates of Muon, whose values are those of random weights
    decay: float = 0.1
    dropout: float = 0.0
    warmup: float = 0.03
    cool: float = 0.6  # decay_ratio
    lora: int = 0  # rank
    freeze: int = 0  # 1: the embeddings


def make_optimizer(model: GPT2, rule: Rule) -> torch.optim.Optimizer:
    """Return the optimizer of a rule for the parameters that are trained."""
    groups = parameter_groups(model)
    if rule.optimizer == "AdamW":
        return AdamW(groups, lr=rule.lr, weight_decay=rule.decay)
    rates = {name: rate * rule.scale for name, rate in Muon.rates(model.config.n_embd).items()}
    return Muon(groups, **rates, weight_decay=rule.decay)


def train(source: LoadedCheckpoint, texts: tuple[TokenStore, TokenStore], rule: Rule, passes: float) -> list[float]:
    """Train from the weights of a checkpoint, and return the loss of the validation text before and after."""
    torch.manual_seed(1)
    train_text, valid_text = texts
    shape = {**source.shape, **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), rule.dropout)}
    model, block = GPT2(shape), source.shape["n_positions"]
    initialize.load_initial_weights(model, source, source.tokenizer, "base")
    model.use_attention()
    before = evaluate(model.eval(), valid_text, block)
    model.train()
    add_lora(model, rule.lora, None, train_embedding=False)
    if rule.freeze:
        model.transformer.wte.requires_grad_(False)
        model.transformer.wpe.requires_grad_(False)
    if not rule.lora:
        model.compile_for_training("blocks")
    optimizer, batch = make_optimizer(model, rule), TOKENS_PER_STEP // block
    steps = max(round(passes * train_text.tokens / TOKENS_PER_STEP), 1)
    factor = WarmupStableDecay(rule.warmup, 0.0, rule.cool)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, steps))
    batches = block_order(train_text.tokens, block, block, batch, 1, True, 2).micro_batches(0, batch, 0, 1)
    dataset, parameters = BlockDataset(train_text, block), [p for p in model.parameters() if p.requires_grad]
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            nats, tokens = model.nll(dataset[next(batches)])
        (nats / tokens).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        model.zero_grad()
    if rule.lora:
        merged = GPT2(shape)
        merged.load_state_dict(merge_lora(model.state_dict(), lora_scale(rule.lora, None)))
        merged.use_attention()
        model = merged
    after = evaluate(model.eval(), valid_text, block)
    torch._dynamo.reset()
    return [before, after]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a run, a checkpoint or a Hugging Face folder")
    parser.add_argument("--files", nargs="+", required=True)
    parser.add_argument("--valid_files", nargs="+", help="instead of a tenth of the text")
    parser.add_argument("--passes", type=float, nargs="+", default=[1])
    parser.add_argument("--variant", action="append", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--journal", type=Path, default=ROOT / ".cache" / "finetune.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = checkpoint.open(args.base)
    folder = initialize.cache_tokenizer(source.tokenizer, str(ROOT / ".cache" / "gpt2kit"))
    block = source.shape["n_positions"]
    reader = Reader(document="file")
    fraction = None if args.valid_files else 0.1
    data = TextDataModule(
        args.files, args.valid_files, tokenizer=folder, block_size=block, reader=reader, valid_fraction=fraction
    )
    texts = data.store("train"), data.store("valid")
    valid = data.valid_text()
    sources = [initialize.hash_weights(source), *(text.fingerprint for text in texts)]
    journal, rows = Journal(args.journal), []
    loss = measure_loss(source.model, texts[0], block, source.metadata.get("val_bpb"))
    for variant in args.variant:
        row: dict[str, object] = {"variant": variant, "auto": f"{loss.rate_factor():.2g} ({loss.describe()})"}
        for passes in args.passes:
            rule = parse_rule(variant, Rule)
            run = functools.partial(train, source, texts, rule, passes)
            losses = journal.result([*sources, asdict(rule), passes], run)
            before, after = (Score(nats * valid.tokens, valid.tokens, valid.bytes).bits_per_byte for nats in losses)
            row |= {"before": f"{before:.4f}", f"after {passes:g}": f"{after:.4f}"}
        print(row, flush=True)
        rows.append(row)
    report(rows, None)


if __name__ == "__main__":
    main()
