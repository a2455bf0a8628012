"""How to give a model a longer context: ways to make the new position embeddings, before and after some training.

`python bench/positions.py --ckpt_path RUN --train data/demo/train --valid data/demo/valid` prints nats per token of the
validation text, for the whole window and its two halves.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from torch import Tensor

from gpt2kit.checkpoint import checkpoint
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.cli import parser
from gpt2kit.model import vocabulary_transfer
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.optim.adamw import AdamW, parameter_groups
from gpt2kit.tokenization.tokenizer import eos_id


def main(ckpt_path: str, train: str, valid: str, steps: int = 40, rows: int = 8) -> None:
    """Compare the ways.

    Args:
        ckpt_path: a run; its context is doubled.
        train: a folder of text files, a document each.
        valid: another one.
        steps: training steps.
        rows: sequences in a step.
    """
    opened = checkpoint.open(ckpt_path)
    old = opened.model.transformer.wpe.weight.detach()
    size, width = old.shape
    ways = {
        "stretched": vocabulary_transfer.resize_positions(old, 2 * size),
        "last repeated": old[torch.arange(2 * size).clamp(max=size - 1)],
        "all repeated": old[torch.arange(2 * size) % size],
        "random": torch.cat([old, 0.02 * torch.randn(size, width)]),
    }
    learnt, tested = tokens(opened, train, 2 * size * rows * steps), tokens(opened, valid, 2 * size * 80)
    for name, positions in ways.items():
        gpt2 = GPT2({**opened.model.shape, "n_positions": 2 * size})
        gpt2.load_state_dict({**opened.model.state_dict(), "transformer.wpe.weight": positions})
        before = halves(gpt2, tested)
        optimizer = AdamW(parameter_groups(gpt2), lr=5e-4)
        for batch in learnt.split(rows):
            nll, count = gpt2.train().nll(batch)
            optimizer.zero_grad()
            (nll / count).backward()
            optimizer.step()
        print(f"{name:<14} before {before}  after {steps} steps {halves(gpt2, tested)}", flush=True)


def tokens(opened: LoadedCheckpoint, folder: str, count: int) -> Tensor:
    """Windows of twice the context out of the first `count` tokens."""
    ids: list[int] = []
    for path in sorted(Path(folder).glob("*")):
        ids += [eos_id(opened.tokenizer), *opened.tokenizer.encode(path.read_text(encoding="utf-8")).ids]
        if len(ids) > count:
            break
    size = 2 * opened.model.shape["n_positions"]
    return torch.tensor(ids[: count + 1]).unfold(0, size + 1, size)


@torch.no_grad()
def halves(gpt2: GPT2, windows: Tensor) -> str:
    """Nats per token: all, first half, second half."""
    nll = torch.cat([gpt2.eval().token_nll(batch) for batch in windows.split(16)])
    first, second = nll.chunk(2, 1)
    return f"{nll.mean():.3f} ({first.mean():.3f}, {second.mean():.3f})"


if __name__ == "__main__":
    parser.run(main)
