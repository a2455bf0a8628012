"""Compare variants of the update rule by their validation loss, in a plain loop of gpt2kit's own parts.

    python bench/sweep.py --train_files train.txt --valid_files valid.txt --variant default --variant "beta2=0.99"
    python bench/sweep.py ... --shape 6 4 256 --steps 1000 --variant "group=1 cool=0.8"

A variant is a list of `field=value` of `Rule`, whose values are the defaults of gpt2kit. The journal has one line for
each run; a run that is in it is not repeated, so a sweep can be stopped and continued. Losses do not depend on how
busy the machine is; --threads 1 leaves room for other work.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from machine import ROOT, Journal, add_run_options, report
from torch import Tensor, nn

from gpt2kit.data.batches import BlockDataset, EvalBatches
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.order import block_order
from gpt2kit.data.store import TokenStore
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.optim.muon import ADAMW_LR, LR, POLYNOMIALS, orthogonalize
from gpt2kit.optim.schedules import WarmupStableDecay
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization.options import TokenizerSpec

_Rule = TypeVar("_Rule")


@dataclass(frozen=True)
class Rule:
    """What the variants change."""

    lr: float = LR
    adamw_lr: float = ADAMW_LR
    emb: float = 1.0  # factors on adamw_lr: for the token embedding, positions, and one-dimensional parameters
    pos: float = 1.0
    vec: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    decay: float = 0.1
    cautious: int = 0  # 1: decay only the weights that the update also makes smaller
    steps: int = 4  # Newton-Schulz steps
    group: int = 1  # heads in a group of queries, keys or values that is orthogonalized by itself; 0: all
    out_group: int = 0  # the same for the rows of the attention's output matrix
    period: int = 1  # update the matrices every second, third ... step, at sqrt(period) times the rate
    momentum: float = 0.95
    mom_warm: int = 0  # steps over which the momentum rises from 0.85
    warmup: float = 0.03
    cool: float = 0.6  # decay_ratio of the rest, and of the matrices
    mcool: float = 0.6
    power: float = 1.0  # of the factor during the decay
    ahead: float = 0.0  # EMA-Nesterov: how far the weights look ahead, ...
    horizon: float = 0.99  # ... along the mean of the steps, with this decay
    tail: float = 0.0  # fraction of the mean of the last weights in the final ones
    tail_steps: int = 60  # time constant of that mean
    normalize: int = 0  # 1: NorMuon, rows of the update get equal size
    dropout: float = 0.0
    zero: int = 0  # 1: residual projections start at 0
    init: float = 0.02
    shift: int = 1  # 0: each epoch cuts the text at the same offset


class VariantMuon:
    """Muon as `gpt2kit.optim.Muon` computes it, with the options of a rule."""

    def __init__(self, model: GPT2, rule: Rule, heads: int) -> None:
        self.rule = rule
        embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
        others = {name: p for name, p in model.named_parameters() if not any(p is each for each in embeddings)}
        self.matrices = [p for p in others.values() if p.ndim == 2]
        self.groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for name, matrix in others.items():
            if matrix.ndim < 2:
                continue
            columns = 3 * (heads // rule.group if rule.group else 1) if name.endswith("c_attn.weight") else 1
            rows = heads // rule.out_group if rule.out_group and name.endswith("attn.c_proj.weight") else 1
            short, long = sorted((matrix.shape[0] // rows, matrix.shape[1] // columns))
            self.groups[short, long, rows, columns].append(matrix)
        self.momenta = {matrix: torch.zeros_like(matrix) for matrix in self.matrices}
        self.row_sizes: dict[tuple[int, ...], Tensor] = {}
        rest = [embeddings[:1], embeddings[1:], [p for p in others.values() if p.ndim < 2]]
        rates = [rule.adamw_lr * factor for factor in (rule.emb, rule.pos, rule.vec)]
        groups = [
            {"params": params, "lr": lr, "rate": lr, "weight_decay": 0.0}
            for params, lr in zip(rest, rates, strict=True)
        ]
        self.adamw = torch.optim.AdamW(groups, betas=(rule.beta1, rule.beta2), fused=True)

    @torch.no_grad()
    def step(self, number: int, factor: float, matrix_factor: float) -> None:
        rule = self.rule
        momentum = rule.momentum
        if number < rule.mom_warm:
            momentum = 0.85 + (momentum - 0.85) * number / rule.mom_warm
        for matrix, mean in self.momenta.items():
            mean.lerp_(matrix.grad, 1 - momentum)
        if number % rule.period == rule.period - 1:
            for key, matrices in self.groups.items():
                self._update(key, matrices, momentum, rule.lr * matrix_factor * math.sqrt(rule.period))
        for group in self.adamw.param_groups:
            group["lr"] = group["rate"] * factor
        self.adamw.step()

    def _update(self, key: tuple[int, ...], matrices: list[Tensor], momentum: float, lr: float) -> None:
        rule, (short, long, rows, columns) = self.rule, key

        def split(matrix: Tensor) -> Tensor:  # (rows * columns, short, long)
            parts = torch.cat([part.unflatten(1, (columns, -1)).movedim(1, 0) for part in matrix.chunk(rows)])
            return parts if parts.shape[1] == short else parts.mT

        moments = torch.cat([split(matrix.grad.lerp(self.momenta[matrix], momentum)) for matrix in matrices])
        updates = orthogonalize(moments, POLYNOMIALS[rule.steps]).float()
        if rule.normalize:
            size, squares = updates.norm(dim=(1, 2), keepdim=True), updates.square().mean(2, keepdim=True)
            mean = self.row_sizes.setdefault(key, torch.zeros_like(squares)).lerp_(squares, 0.05)
            updates = updates / (mean.sqrt() + 1e-10)
            updates *= size / updates.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for matrix, update in zip(matrices, updates.split(rows * columns), strict=True):
            update = update if update.shape[1] * rows == len(matrix) else update.mT
            joined = torch.cat([part.movedim(0, 1).flatten(1) for part in update.chunk(rows)])
            decayed = (matrix * joined > 0) if rule.cautious else 1.0
            matrix.mul_(1 - lr * rule.decay * decayed).add_(joined, alpha=-lr * 0.2 * math.sqrt(long))


def train(args: argparse.Namespace, rule: Rule, seed: int, train_text: TokenStore, valid_text: TokenStore) -> float:
    """Train a model by a rule, and return the loss of the validation text at the end."""
    torch.manual_seed(seed)
    layers, heads, width = args.shape
    shape = {"n_layer": layers, "n_head": heads, "n_embd": width, "n_inner": None, "n_positions": args.block}
    shape |= {"activation_function": "gelu_new", "initializer_range": rule.init, "layer_norm_epsilon": 1e-5}
    shape |= dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), rule.dropout)
    model = GPT2({**shape, "vocab_size": args.vocab_size})
    if rule.zero:
        for block in model.transformer.h:
            nn.init.zeros_(block.attn.c_proj.weight)
            nn.init.zeros_(block.mlp.c_proj.weight)
    model.use_attention()
    model.compile_for_training("blocks")
    optimizer, parameters = VariantMuon(model, rule, heads), list(model.parameters())
    order = block_order(train_text.tokens, args.block, args.block, args.batch, seed, True, 2 if rule.shift else 1)
    batches, dataset = order.micro_batches(0, args.batch, 0, 1), BlockDataset(train_text, args.block)
    schedules = [WarmupStableDecay(rule.warmup, 0.0, ratio) for ratio in (rule.cool, rule.mcool)]
    velocity = [torch.zeros_like(p) for p in parameters] if rule.ahead else []
    tail: list[Tensor] = []
    for step in range(args.steps):
        factor, matrix_factor = (schedule(step, args.steps) ** rule.power for schedule in schedules)
        with torch.no_grad():
            before = [p.clone() for p in parameters] if rule.ahead else []
            if rule.ahead and 0.15 <= step / args.steps < 0.77:
                torch._foreach_add_(parameters, velocity, alpha=rule.ahead * factor)
        with torch.autocast("cpu", torch.bfloat16):
            nats, tokens = model.nll(dataset[next(batches)])
        (nats / tokens).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step(step, factor, matrix_factor)
        model.zero_grad()
        with torch.no_grad():
            if rule.ahead:
                moves = [p - old for p, old in zip(parameters, before, strict=True)]
                torch._foreach_lerp_(velocity, moves, 1 - rule.horizon)
            if rule.tail and step >= 0.6 * args.steps:
                tail = tail or [p.clone() for p in parameters]
                torch._foreach_lerp_(tail, parameters, 1 / rule.tail_steps)
    if tail:
        with torch.no_grad():
            torch._foreach_lerp_(parameters, tail, rule.tail)
    return evaluate(model.eval(), valid_text, args.block)


@torch.no_grad()
def evaluate(model: GPT2, text: TokenStore, block: int) -> float:
    """Return the nats per token of a whole text."""
    nats = tokens = 0.0
    for batch in EvalBatches(text, block, 64):
        with torch.autocast("cpu", torch.bfloat16):
            nll, count = model.nll(batch)
        nats, tokens = nats + nll.item(), tokens + count.item()
    return nats / tokens


def parse_rule(text: str, kind: type[_Rule]) -> _Rule:
    """Return the rule, of a dataclass, that a variant names."""
    types = {field.name: type(field.default) for field in fields(kind)}
    pairs = [word.split("=") for word in text.split() if word != "default"]
    return kind(**{name: types[name](value) for name, value in pairs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", action="append", required=True, help="`default`, or field=value ...")
    parser.add_argument("--journal", type=Path, default=ROOT / ".cache" / "sweep.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    spec, reader = TokenizerSpec(kind=args.kind), Reader(document=args.document)
    data = TextDataModule(args.train_files, args.valid_files, tokenizer=spec, block_size=args.block, reader=reader)
    args.vocab_size = data.vocab_size
    texts = data.store("train"), data.store("valid")
    sizes = [args.shape, args.block, args.batch, args.steps, *(text.fingerprint for text in texts)]
    journal, rows = Journal(args.journal), []
    for variant in args.variant:
        rule, results = parse_rule(variant, Rule), []
        for seed in args.seeds:
            key = [sizes, asdict(rule), seed]  # all fields, because their defaults change
            loss = journal.result(key, functools.partial(train, args, rule, seed, *texts))
            torch._dynamo.reset()
            results.append(loss)
            print(f"{variant}, seed {seed}: {loss:.4f}", flush=True)
        spread = f"{min(results):.4f}, {max(results):.4f}"
        rows.append({"variant": variant, "val_loss": f"{statistics.mean(results):.4f}", "lowest, highest": spread})
    report(rows, None)


if __name__ == "__main__":
    main()
