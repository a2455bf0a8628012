"""Sampling of the next token: pure functions of logits `[rows, vocab_size]`, with draws that depend only on their keys.

The order is fixed: token healing, constraints, repetition penalty, repeated n-grams, temperature, top_k, top_p, min_p,
typical_p, draw. Each filter sees the probabilities that remain after the earlier ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2kit.errors import CheckpointError
from gpt2kit.generation.options import SamplingOptions

# 256 tokens usually suffice to reach top_p; sorting them is far faster than sorting the vocabulary.
SORTED_FIRST = 256


def apply_penalties(logits: Tensor, options: SamplingOptions, texts: Sequence[Sequence[int]]) -> Tensor:
    """Apply the repetition penalty and ban repeated n-grams; `texts` are the ids of each row so far.

    A repeated n-gram is banned only while another token is possible.
    """
    if options.repetition_penalty != 1:
        logits = penalize_repetition(logits, texts, options.repetition_penalty)
    if options.no_repeat_ngram_size:
        banned = logits.clone()
        for row, text in enumerate(texts):
            banned[row, repeating_tokens(text, options.no_repeat_ngram_size)] = -torch.inf
        is_possible = banned.isfinite().any(-1, keepdim=True)
        logits = torch.where(is_possible, banned, logits)
    return logits


def sample(logits: Tensor, options: SamplingOptions, keys: Sequence[tuple[int, int]]) -> Tensor:
    """Sample one id per row; `keys` are each row's sample number and position. Temperature 0: the most likely id."""
    if options.temperature:
        logits = filter_logits(logits, options)
    check_finite(logits.amax(-1))
    if options.temperature == 0:
        return logits.argmax(-1)
    return sample_at(logits, [uniform(options.seed, *key) for key in keys])


def check_finite(logits: Tensor) -> None:
    """Raise if a logit is NaN or infinite. Every token that is sampled from such logits would be the same."""
    low, high = logits.aminmax()  # both are NaN if any logit is; several times as fast as isfinite().all()
    if not (low.isfinite() and high.isfinite()):
        raise CheckpointError(
            "the output of the model is NaN or infinite. Use --precision 32 if it was lower, or another checkpoint"
        )


def filter_logits(logits: Tensor, options: SamplingOptions) -> Tensor:
    """Apply the temperature and the four filters."""
    logits = logits / options.temperature
    if options.top_k:
        logits = top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = top_p(logits, options.top_p)
    if options.min_p > 0:
        logits = min_p(logits, options.min_p)
    if options.typical_p < 1:
        logits = typical_p(logits, options.typical_p)
    return logits


def penalize_repetition(logits: Tensor, texts: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Divide positive logits of tokens that a text contains by the penalty, and multiply negative ones by it."""
    logits = logits.clone()
    for row, text in enumerate(texts):
        if seen := sorted(set(text)):
            values = logits[row, seen]
            logits[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def repeating_tokens(text: Sequence[int], size: int) -> list[int]:
    """Return the tokens that would repeat a sequence of `size` tokens of the text."""
    if len(text) < size:
        return []
    end = tuple(text[len(text) - size + 1 :])
    starts = range(len(text) - size + 1)
    return [text[start + size - 1] for start in starts if tuple(text[start : start + size - 1]) == end]


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k most likely tokens, and those exactly as likely as the last of them."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -torch.inf)


def top_p(logits: Tensor, p: float, sorted_first: int = SORTED_FIRST) -> Tensor:
    """Keep the fewest most likely tokens that reach probability p together, and those as likely as the last of them."""
    probabilities = logits.softmax(-1)
    ordered = probabilities.topk(min(sorted_first, logits.shape[-1])).values
    if (ordered.sum(-1) < p).any():
        ordered = probabilities.sort(descending=True).values
    before = ordered.cumsum(-1) - ordered
    least = ordered.masked_fill(before >= p, torch.inf).amin(-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -torch.inf)


def min_p(logits: Tensor, fraction: float) -> Tensor:
    """Keep the tokens with at least this fraction of the most likely token's probability."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < fraction * probabilities.amax(-1, keepdim=True), -torch.inf)


def typical_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens of probability p whose information content is closest to the entropy."""
    log_probabilities = logits.log_softmax(-1)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities.masked_fill(probabilities == 0, 0)).sum(-1, keepdim=True)
    distance = (-log_probabilities - entropy).abs()  # infinite for tokens that are already excluded
    nearest, order = distance.sort(stable=True)
    mass = probabilities.gather(-1, order)
    before = mass.cumsum(-1) - mass
    farthest = nearest.masked_fill(before >= p, -torch.inf).amax(-1, keepdim=True)
    return logits.masked_fill(distance > farthest, -torch.inf)


def sample_at(logits: Tensor, points: Sequence[float]) -> Tensor:
    """Return, for each row, the id whose interval of cumulative probabilities contains the row's point in [0, 1)."""
    sums = logits.softmax(-1).double().cumsum(-1)
    scaled = torch.tensor(points, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, scaled, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def uniform(seed: int, sample: int, position: int) -> float:
    """Return a number in [0, 1) that depends only on these three, so neither the batch nor the machine matters."""
    digest = hashlib.blake2b(f"{seed} {sample} {position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)
