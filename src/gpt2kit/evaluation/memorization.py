"""How much of what a model writes stands word for word in the text that it learnt from, and how much of other text.

The measure is the longest match (`verbatim`): for each token of a text, the most tokens from it on that stand, in this
order, somewhere in the training text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from gpt2kit.data.store import TokenStore
from gpt2kit.evaluation.scoring import boundaries
from gpt2kit.evaluation.verbatim import Tokens, matches
from gpt2kit.model.gpt2 import GPT2

SPANS = (4, 8, 16, 32)
"""Lengths in tokens of which the shares are told."""

_TOKENS = 8192
"""Tokens that are written, and as many of the held-out text."""

_LONGEST = 256
"""Tokens of one written text at most."""

_ROWS = 32
_SHOWN = 5


@dataclass(frozen=True)
class Measure:
    """The longest matches of some texts.

    Args:
        texts: how many.
        tokens: in them.
        shares: of spans of so many tokens, the share that stands in the training text; None if no text is as long.
        mean: tokens of the longest match, on average over all tokens.
        longest: the longest matches, no two of them overlapping: tokens, and the text.
    """

    texts: int
    tokens: int
    shares: dict[int, float | None]
    mean: float
    longest: list[tuple[int, str]]


@dataclass(frozen=True)
class Copies:
    """What is copied from the training text: by the model, and, to compare, by text that it has not seen."""

    generated: Measure
    held_out: Measure
    training_tokens: int
    same_text: bool | None
    """Whether the training text is, token for token, the one that the checkpoint was trained on; None: unknown."""


def compare(
    gpt2: GPT2, tokenizer: Tokenizer, training: TokenStore, held_out: TokenStore, seed: int, fingerprint: object
) -> Copies:
    """Let the model write, draw held-out documents, and look for both in the training text."""
    length = min(_LONGEST, int(gpt2.shape["n_positions"]))
    written = write(gpt2, training.index.eos_id, length, seed)
    drawn = draw(held_out, length, sum(map(len, written)), seed)
    found = matches(training, written + drawn)
    return Copies(
        measure(written, found[: len(written)], tokenizer),
        measure(drawn, found[len(written) :], tokenizer),
        len(training),
        training.fingerprint == fingerprint if isinstance(fingerprint, str) else None,
    )


@torch.inference_mode()
def write(gpt2: GPT2, eos: int, length: int, seed: int) -> list[Tokens]:
    """Texts as the model has them: from a document's start, drawn as likely as it says, to the end or `length`."""
    generator = torch.Generator(gpt2.device).manual_seed(seed)
    texts: list[Tokens] = []
    tokens = rounds = 0
    with tqdm(desc="writing", total=_TOKENS, unit="token", leave=False, delay=1, disable=None) as bar:
        while tokens < _TOKENS and rounds < _TOKENS // _ROWS:
            rows = _written(gpt2, eos, length, generator)
            ends = [int(np.argmax(row == eos)) if (row == eos).any() else length for row in rows]
            texts += [row[:end] for row, end in zip(rows, ends, strict=True) if end]
            tokens, rounds = sum(map(len, texts)), rounds + 1
            bar.update(sum(ends))
    return texts


def _written(gpt2: GPT2, eos: int, length: int, generator: torch.Generator) -> Tokens:
    """`[_ROWS, length]` tokens; what comes after a row's first end of document means nothing."""
    new = torch.full((_ROWS, 1), eos, device=gpt2.device)
    past, written, ended = None, [], torch.zeros(_ROWS, dtype=torch.bool, device=gpt2.device)
    for _ in range(length):
        found = gpt2(input_ids=new, past_key_values=past, use_cache=True)
        past = found.past_key_values
        probabilities = found.logits[:, -1, : gpt2.shape["vocab_size"]].float().softmax(-1)
        new = torch.multinomial(probabilities, 1, generator=generator)
        written.append(new)
        ended |= new[:, 0] == eos
        if ended.all():
            break
    rows = torch.cat(written, 1).cpu().numpy()
    return np.pad(rows, ((0, 0), (0, length - rows.shape[1])), constant_values=eos)


def draw(store: TokenStore, length: int, tokens: int, seed: int) -> list[Tokens]:
    """The beginnings of documents, in a random order, until there are so many tokens or no more documents."""
    starts = boundaries(store)
    lengths = store.lengths()[:, 0]
    texts: list[Tokens] = []
    for number in np.random.default_rng(seed).permutation(len(lengths)):
        if tokens <= 0:
            break
        start = int(starts[number])
        text = store[start : start + min(int(lengths[number]), length, tokens)].astype(np.int64)
        tokens -= len(text)
        texts += [text] if len(text) else []
    return texts


def measure(texts: list[Tokens], found: list[Tokens], tokenizer: Tokenizer) -> Measure:
    """Figures of the longest matches `found` of each token of the texts."""
    shares: dict[int, float | None] = {}
    for span in SPANS:
        spans = sum(max(len(text) - span + 1, 0) for text in texts)
        shares[span] = sum(int((some >= span).sum()) for some in found) / spans if spans else None
    tokens = sum(map(len, texts))
    order = sorted(
        ((int(some[at]), number, at) for number, some in enumerate(found) for at in range(len(some))),
        key=lambda match: (-match[0], match[1:]),
    )
    longest: list[tuple[int, str]] = []
    taken: dict[int, list[tuple[int, int]]] = {}
    for size, number, at in order:
        if len(longest) == _SHOWN or not size:
            break
        if all(at >= end or at + size <= start for start, end in taken.get(number, [])):
            taken.setdefault(number, []).append((at, at + size))
            longest.append((size, tokenizer.decode(texts[number][at : at + size].tolist(), skip_special_tokens=False)))
    return Measure(len(texts), tokens, shares, sum(int(some.sum()) for some in found) / max(tokens, 1), longest)


def describe(copies: Copies) -> str:
    """The figures for people."""
    lines = [f"{'copied from the training text':<34}{'generated':>10}{'held out':>10}"]
    for span in SPANS:
        shares = (_share(one.shares[span]) for one in (copies.generated, copies.held_out))
        lines.append(f"{f'spans of {span} tokens':<34}" + "".join(f"{share:>10}" for share in shares))
    pairs = (copies.generated, copies.held_out)
    lines.append(f"{'longest match, tokens, mean':<34}" + "".join(f"{one.mean:>10.2f}" for one in pairs))
    most = (max((size for size, _ in one.longest), default=0) for one in pairs)
    lines.append(f"{'longest match, tokens':<34}" + "".join(f"{size:>10}" for size in most))
    lines.append(f"{'tokens looked at':<34}" + "".join(f"{one.tokens:>10,}" for one in pairs))
    for name, one in (("generated", copies.generated), ("held out", copies.held_out)):
        lines += [f"  {name}, {size} tokens: {text[:120]!r}" for size, text in one.longest]
    return "\n".join(lines)


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.2%}"
