"""How the next token is chosen: pure functions of logits `[rows, vocab_size]`, and a draw that only its key decides.

The order is fixed: what must not come, repetition penalty, forbidden repeats, temperature, top_k, top_p, min_p,
typical_p, the draw. Each filter sees the probabilities that the ones before it have left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2kit.generation.options import Rules

_FIRST = 256
"""As many of the likeliest tokens mostly hold top_p; sorting them alone is far quicker than sorting all."""


def restrained(logits: Tensor, rules: Rules, texts: Sequence[Sequence[int]]) -> Tensor:
    """Logits after repetition penalty and forbidden repeats; `texts` are the ids of each row so far.

    Repeats are forbidden only while something else is possible.
    """
    if rules.repetition_penalty != 1:
        logits = penalized(logits, texts, rules.repetition_penalty)
    if rules.no_repeat_ngram_size:
        fewer = logits.clone()
        for row, text in enumerate(texts):
            fewer[row, repeats(text, rules.no_repeat_ngram_size)] = -torch.inf
        possible = fewer.isfinite().any(-1, keepdim=True)
        logits = torch.where(possible, fewer, logits)
    return logits


def choose(logits: Tensor, rules: Rules, keys: Sequence[tuple[int, int]]) -> Tensor:
    """Draw one id a row; `keys` are each row's sample number and position in the text. Temperature 0: the likeliest."""
    if rules.temperature == 0:
        return logits.argmax(-1)
    return draw(filtered(logits, rules), [uniform(rules.seed, *key) for key in keys])


def filtered(logits: Tensor, rules: Rules) -> Tensor:
    """Logits after temperature and the four filters."""
    logits = logits / rules.temperature
    if rules.top_k:
        logits = top_k(logits, rules.top_k)
    if rules.top_p < 1:
        logits = top_p(logits, rules.top_p)
    if rules.min_p > 0:
        logits = min_p(logits, rules.min_p)
    if rules.typical_p < 1:
        logits = typical_p(logits, rules.typical_p)
    return logits


def penalized(logits: Tensor, texts: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Tokens that a text has already: a positive logit is divided by the penalty, a negative one multiplied."""
    logits = logits.clone()
    for row, text in enumerate(texts):
        if seen := sorted(set(text)):
            found = logits[row, seen]
            logits[row, seen] = torch.where(found > 0, found / penalty, found * penalty)
    return logits


def repeats(text: Sequence[int], size: int) -> list[int]:
    """The tokens that would repeat a sequence of `size` tokens of the text."""
    end = tuple(text[len(text) - size + 1 :])
    if len(text) < size:
        return []
    return [text[at + size - 1] for at in range(len(text) - size + 1) if tuple(text[at : at + size - 1]) == end]


def top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens, and those exactly as likely as the last of them."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest of the likeliest tokens that together have probability p, and those as likely as the last of them."""
    probabilities = logits.softmax(-1)
    ordered = probabilities.topk(min(_FIRST, logits.shape[-1])).values
    if (ordered.sum(-1) < p).any():
        ordered = probabilities.sort(descending=True).values
    before = ordered.cumsum(-1) - ordered
    least = ordered.masked_fill(before >= p, torch.inf).amin(-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -torch.inf)


def min_p(logits: Tensor, share: float) -> Tensor:
    """The tokens that have at least this share of the likeliest token's probability."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < share * probabilities.amax(-1, keepdim=True), -torch.inf)


def typical_p(logits: Tensor, p: float) -> Tensor:
    """The fewest tokens of probability p whose surprise is nearest to the one to be expected (the entropy)."""
    log = logits.log_softmax(-1)
    probabilities = log.exp()
    entropy = -(probabilities * log.masked_fill(probabilities == 0, 0)).sum(-1, keepdim=True)
    distance = (-log - entropy).abs()  # infinite for what has gone already
    nearest, order = distance.sort(stable=True)
    mass = probabilities.gather(-1, order)
    before = mass.cumsum(-1) - mass
    farthest = nearest.masked_fill(before >= p, -torch.inf).amax(-1, keepdim=True)
    return logits.masked_fill(distance > farthest, -torch.inf)


def draw(logits: Tensor, points: Sequence[float]) -> Tensor:
    """One id a row: that on whose stretch of the summed probabilities the row's point in [0, 1) falls."""
    sums = logits.softmax(-1).double().cumsum(-1)
    points_ = torch.tensor(points, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, points_, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def uniform(seed: int, sample: int, position: int) -> float:
    """A number in [0, 1) that the three decide: no state, so the batch and the machine do not matter."""
    mixed = hashlib.blake2b(f"{seed} {sample} {position}".encode(), digest_size=8).digest()
    return (int.from_bytes(mixed, "little") >> 11) / (1 << 53)
