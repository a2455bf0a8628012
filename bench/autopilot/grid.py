"""Train models of random settings on the autopilot's corpora, and append the results to the journal.

    python bench/autopilot/grid.py corpora/ --flops 2e12 4e12 8e12 --runs 60
    python bench/autopilot/grid.py corpora/ --flops 2e12 4e12 8e12 --runs 20 --use held_out

Settings are drawn around plausible ones: the number of a run and its FLOPs decide them, so the same command continues
where it stopped, and more runs are more rows. A run that is in the journal is not repeated. A run is a plain loop of
gpt2kit's own parts: the split, tokenizer, Muon, its rates and WarmupStableDecay are those of `gpt2kit train`. Results
do not depend on how busy the machine is. The FLOPs are those of `gpt2kit.model.config.flops_per_token`.

Each text and tokenizer also has a pilot: a tiny model that is trained with 2e11 FLOPs, which a law may take as a
measure of the text.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "src"))

import numpy as np
import torch
from corpora import read_list
from law import measure_text
from machine import Journal
from tokenizers import Tokenizer
from torch import Tensor, nn

from gpt2kit.data.batches import BlockDataset
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.order import count_eval
from gpt2kit.data.store import TokenStore
from gpt2kit.model.config import Shape, flops_per_token, parameter_count
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.optim.adamw import parameter_groups
from gpt2kit.optim.muon import Muon
from gpt2kit.optim.schedules import WarmupStableDecay
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.train import default_spec
from gpt2kit.training import auto

JOURNAL = Path(__file__).resolve().parent / "journal.jsonl"
SMALLEST = 50_000  # bytes of a slice
# Layers and width.
_SHAPES = [(2, 64), (2, 128), (4, 128), (4, 192), (6, 192), (6, 256), (6, 384), (8, 384), (8, 512)]
# Bytes per token, roughly, only to draw the size of a slice: of characters by script, and of byte pairs.
_CHARACTER_BYTES = {"Latin": 1.0, "Cyrillic": 1.7, "Greek": 1.7, "Arabic": 1.7, "Han": 2.7, "kana": 2.4, "Hangul": 2.3}
_PAIR_BYTES = 3.0
# Tokens of each held-out split on which a model is evaluated.
_EVALUATED = 1 << 14
# The FLOPs of a pilot, about a second of two cores.
_PILOT_FLOPS = 2e11
# Tokens that a model reads for each weight of its matrices.
_FEWEST_PER_WEIGHT, _MOST_PER_WEIGHT = 1, 150
# From this number of FLOPs on, compilation is worth its time.
_COMPILED_FLOPS = 1.5e13


@dataclass(frozen=True)
class Setting:
    """What decides a run."""

    corpus: str
    size: int  # bytes of the corpus that are used, held-out text included
    kind: str  # of the tokenizer
    vocab_size: int  # 0: as many tokens as the text has characters
    n_layer: int
    n_embd: int
    block_size: int
    batch_size: int  # sequences per step
    dropout: float
    weight_decay: float
    flops: float
    seed: int = 1

    def shape(self, vocab_size: int) -> Shape:
        """Return the options of the model."""
        shape: Shape = {"n_layer": self.n_layer, "n_embd": self.n_embd, "n_head": "auto", "n_inner": None}
        shape |= {"activation_function": "gelu_new", "initializer_range": 0.02, "layer_norm_epsilon": 1e-5}
        shape |= dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), self.dropout)
        shape |= {"vocab_size": vocab_size, "n_positions": self.block_size}
        return shape | {"n_head": auto.choose(1, shape).n_head}

    def tokens(self, vocab_size: int) -> float:
        """Return the tokens that the FLOPs are enough for."""
        return self.flops / flops_per_token(self.shape(vocab_size))


def draw(entries: list[dict[str, Any]], flops: float, number: int) -> Setting:
    """Return the settings of a run: random, but such that its steps, passes and parameters are plausible."""
    chance = random.Random(f"{flops:g} {number}")
    entry = entries[number % len(entries)]
    for _ in range(100_000):
        layers, width = chance.choice(_SHAPES)
        kind = chance.choice(["default", "default", "bpe", "char"])
        passes = math.exp(chance.uniform(math.log(0.3), math.log(20)))
        block = chance.choice([64, 128, 256, 256])
        batch = chance.choice([1024, 2048, 4096, 4096]) // block
        vocab = chance.choice([512, 1024, 2048, 4096, 8192])
        bytes_per_token = _PAIR_BYTES if kind != "char" else _CHARACTER_BYTES[entry["script"]]
        dropout, decay = draw_regularization(chance, passes)
        setting = Setting(entry["name"], 0, kind, vocab, layers, width, block, batch, dropout, decay, flops)
        tokens = setting.tokens(vocab)
        size = tokens / passes * bytes_per_token / 0.9
        size = min(round_size(size), entry["bytes"])
        steps = tokens / (batch * block)
        if size < SMALLEST or not 40 <= steps <= 20_000 or tokens < parameter_count(setting.shape(vocab)) / 2:
            continue
        if not _FEWEST_PER_WEIGHT <= tokens / (12 * layers * width**2) <= _MOST_PER_WEIGHT:
            continue
        if kind == "default":
            kind, vocab = "bpe", default_spec(size).vocab_size or 0
        return Setting(
            entry["name"], size, kind, vocab if kind == "bpe" else 0, layers, width, block, batch, dropout, decay, flops
        )
    sys.exit(f"--flops {flops:g}: too few for any setting. Give at least 1e11")


def draw_regularization(chance: random.Random, passes: float) -> tuple[float, float]:
    """Return dropout and weight decay, near those that are known to suit this number of passes."""
    if passes < 3:
        return chance.choice([0.0, 0.0, 0.1]), chance.choice([0.1, 0.1, 0.5])
    if passes < 8:
        return chance.choice([0.0, 0.1, 0.1, 0.2]), chance.choice([0.2, 0.5, 1.0, 2.0])
    return chance.choice([0.1, 0.1, 0.2]), chance.choice([0.5, 1.0, 2.0, 4.0])


def pilot_of(setting: Setting) -> Setting:
    """Return the settings of the pilot of a run's text and tokenizer."""
    tiny = replace(setting, n_layer=2, n_embd=64, block_size=128, batch_size=8)
    return replace(tiny, dropout=0.0, weight_decay=0.1, flops=min(_PILOT_FLOPS, setting.flops))


def round_size(size: float) -> int:
    """Round a size to one of four in each octave, so that runs share slices."""
    return round(SMALLEST * 2 ** (round(4 * math.log2(max(size, 1) / SMALLEST)) / 4))


def cut(folder: Path, corpus: str, size: int) -> Path:
    """Write the first `size` bytes of a corpus to a file of its own, and return its path."""
    path = folder / "slices" / f"{corpus}-{size}.jsonl"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        lines, left = [], size
        with open(folder / f"{corpus}.jsonl", encoding="utf-8") as file:
            for line in file:
                text = json.loads(line)["text"].encode()[:left].decode(errors="ignore")
                left -= len(text.encode())
                lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                if left <= 0:
                    break
        path.write_text("".join(lines), encoding="utf-8")
    return path


def open_text(setting: Setting, folder: Path) -> TextDataModule:
    """Return the data of a run, split as `gpt2kit train` does."""
    spec = TokenizerSpec(kind=setting.kind, vocab_size=setting.vocab_size or None)  # type: ignore[arg-type]
    return TextDataModule(
        str(cut(folder, setting.corpus, setting.size)),
        tokenizer=spec,
        block_size=setting.block_size,
        batch_size=setting.batch_size,
        cache_dir=str(folder / "cache"),
    )


def train(setting: Setting, data: TextDataModule, steps: int) -> tuple[GPT2, float]:
    """Train a model; return it, and its bits per byte of validation text after a tenth of the steps."""
    torch.manual_seed(setting.seed)
    model = GPT2(setting.shape(data.vocab_size))
    model.use_attention()
    if setting.flops >= _COMPILED_FLOPS:
        model.compile_for_training("blocks")
    optimizer = Muon(parameter_groups(model), **Muon.rates(setting.n_embd), weight_decay=setting.weight_decay)
    factor = WarmupStableDecay()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, steps))
    order, dataset = data.order(setting.batch_size), BlockDataset(data.store("train"), setting.block_size)
    batches = order.micro_batches(0, setting.batch_size, 0, 1)
    early = math.nan
    for number in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            nats, tokens = model.nll(dataset[next(batches)])
        (nats / tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.zero_grad()
        if number == max(round(steps / 10), 1):
            early = bits_per_byte(evaluate(model.eval(), data.store("valid"), data.tokenizer, setting.block_size))
            model.train()
    torch._dynamo.reset()
    return model.eval(), early


@torch.no_grad()
def evaluate(model: GPT2, text: TokenStore, tokenizer: Tokenizer, block: int) -> tuple[float, int]:
    """Return the bits, and the bytes, of blocks that are evenly spread over a text; a document's end is a byte."""
    sizes = torch.tensor([len(raw) for raw in tokenizers.token_bytes(tokenizer)])
    sizes[tokenizers.eos_id(tokenizer)] = 1
    count = count_eval(text.tokens, block)
    numbers = np.unique(np.linspace(0, count - 1, min(count, max(_EVALUATED // block, 1))).astype(np.int64))
    bits, size = 0.0, 0
    for part in np.array_split(numbers, math.ceil(len(numbers) * block / 4096)):
        batch: Tensor = BlockDataset(text, block)[part * block]
        targets = batch[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            nats, _ = model.nll(batch)
        bits, size = bits + nats.item() / math.log(2), size + int(sizes[targets[targets >= 0]].sum())
    return bits, size


def bits_per_byte(*scores: tuple[float, int]) -> float:
    """Return the ratio of the sums of bits and bytes."""
    return sum(bits for bits, _ in scores) / sum(size for _, size in scores)


def run(setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure the text, train a model and evaluate it; return what a law may need, and the result."""
    data = open_text(setting, folder)
    stores = {split: data.store(split) for split in data.splits}
    text, tokens_per_step = stores["train"], setting.batch_size * setting.block_size
    shape = setting.shape(data.vocab_size)
    steps = max(round(setting.tokens(data.vocab_size) / tokens_per_step), 1)
    difficulty = measure_text(text, [stores["valid"], stores["test"]], data.tokenizer)
    model, early = train(setting, data, steps)
    valid, test = [evaluate(model, stores[split], data.tokenizer, setting.block_size) for split in ("valid", "test")]
    return {
        **{f"text_{name}": value for name, value in asdict(difficulty).items()},
        "bytes": text.bytes,
        "documents": text.documents,
        "tokens": text.tokens,
        "vocab_size": data.vocab_size,
        "parameters": parameter_count(shape),
        "matrices": 12 * setting.n_layer * setting.n_embd**2,
        "steps": steps,
        "tokens_read": steps * tokens_per_step,
        "passes": steps * tokens_per_step / text.tokens,
        "early_valid_bpb": early,
        "valid_bpb": bits_per_byte(valid),
        "test_bpb": bits_per_byte(test),
        "bpb": bits_per_byte(valid, test),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where corpora.py has written")
    parser.add_argument("--flops", type=float, nargs="+", required=True, help="run N uses the Nth of them, in turn")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--use", choices=["fit", "held_out"], default="fit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    entries = [entry for entry in read_list() if entry["use"] == args.use]
    entries = [entry for entry in entries if (args.folder / f"{entry['name']}.jsonl").exists()]
    journal = Journal(args.journal)
    for number in range(args.runs):
        flops = args.flops[number % len(args.flops)]
        setting = draw(entries, flops, number)
        result = journal.result([args.use, asdict(setting)], functools.partial(run, setting, args.folder))
        pilot = pilot_of(setting)
        journal.result(["pilot", asdict(pilot)], functools.partial(run, pilot, args.folder))
        print(f"{number} {setting.corpus} {flops:g}: {result['bpb']:.3f}, by n-grams {result['text_bits']:.3f}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
