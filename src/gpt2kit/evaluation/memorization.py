"""Memorization: how much of the text that a model generates appears word for word in its training text.

For each token of a text, the longest match is the maximum number of tokens, beginning with this one, that also appear
somewhere in the training text in this order. Held-out text is measured in the same way, for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from gpt2kit.data.store import TokenStore
from gpt2kit.evaluation.scoring import boundaries
from gpt2kit.generation.decoder import Decoder, TokenSequence
from gpt2kit.generation.options import SamplingOptions
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.inference import InferenceGPT2
from gpt2kit.tokenization import tokenizer as tokenizers

# Lengths in tokens of the spans that are counted.
SPANS = (4, 8, 16, 32)
# Number of tokens to generate, and to draw from the held-out text.
TOKENS = 8192
# Maximum number of tokens of one text.
_MAX_LENGTH = 256
# Texts generated at the same time.
_BATCH_SIZE = 32
# Number of matches to list.
_LISTED = 5
# The base of the hashes, which are polynomials modulo 2^64. It is odd, so it has an inverse.
_BASE = np.uint64(0x9E3779B97F4A7C15)
# Bits of a hash that index the table which excludes most spans of the training text; it has 2^22 bytes.
_TABLE_BITS = 22

Tokens = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class MatchStats:
    """The longest matches of some texts."""

    texts: int
    tokens: int
    shares: dict[int, float | None]  # by length, the fraction of spans in the training text; None if no text is as long
    mean: float  # length of the longest match, on average over all tokens
    longest: list[tuple[int, str]]  # length and text of the longest matches that do not overlap


@dataclass(frozen=True)
class Memorization:
    """How much of the generated text and of held-out text appears in the training text."""

    generated: MatchStats
    held_out: MatchStats
    training_tokens: int
    same_text: bool | None  # whether the checkpoint was trained on exactly this text; None: unknown


def measure_memorization(
    gpt2: GPT2, tokenizer: Tokenizer, training: TokenStore, held_out: TokenStore, seed: int, fingerprint: object
) -> Memorization:
    """Generate text, draw held-out documents, and search the training text for both.

    `fingerprint` is that of the text on which the model was trained, if its checkpoint records it.
    """
    length = min(_MAX_LENGTH, int(gpt2.shape["n_positions"]))
    generated = generate_texts(gpt2, training.index.eos_id, length, seed)
    drawn = draw_texts(held_out, length, sum(map(len, generated)), seed)
    matches = find_matches(training, generated + drawn)
    return Memorization(
        summarize(generated, matches[: len(generated)], tokenizer),
        summarize(drawn, matches[len(generated) :], tokenizer),
        len(training),
        training.has_fingerprint(fingerprint) if isinstance(fingerprint, str) else None,
    )


def generate_texts(gpt2: GPT2, eos: int, length: int, seed: int) -> list[Tokens]:
    """Sample documents from the model's own probabilities, each up to its end or `length` tokens."""
    model = InferenceGPT2(gpt2.shape, gpt2.state_dict(), gpt2.device, gpt2.dtype)
    options = SamplingOptions(temperature=1.0, top_p=1.0, seed=seed)
    texts: list[Tokens] = []
    tokens = 0
    with tqdm(desc="generating", total=TOKENS, unit="token", leave=False, delay=1, disable=None) as bar:
        for first in range(0, TOKENS, _BATCH_SIZE):  # bounded: a model may generate empty documents only
            sequences = [TokenSequence([eos], sample) for sample in range(first, first + _BATCH_SIZE)]
            decoder = Decoder(model, sequences, options, eos)
            for _ in range(length):
                if decoder.active:
                    decoder.step()
            new = [np.array(sequence.new, np.int64) for sequence in sequences if sequence.new]
            texts += new
            tokens += sum(map(len, new))
            bar.update(sum(map(len, new)))
            if tokens >= TOKENS:
                break
    return texts


def draw_texts(store: TokenStore, length: int, tokens: int, seed: int) -> list[Tokens]:
    """Return the first `length` tokens of random documents, until there are `tokens` tokens or no more documents."""
    starts, lengths = boundaries(store), store.lengths()[:, 0]
    texts: list[Tokens] = []
    for number in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        if not tokens:
            break
        start, size = int(starts[number]), min(int(lengths[number]), length, tokens)
        if size:
            texts.append(store[start : start + size].astype(np.int64))
            tokens -= size
    return texts


def find_matches(training: TokenStore, texts: Sequence[Tokens], chunk: int = 1 << 20) -> list[Tokens]:
    """Return, for each token of each text, the length of its longest match.

    If a span appears in the training text, so does each of its beginnings. So the lengths of all tokens are found by a
    binary search, one bit at a time, with one pass over the training text per bit, `chunk` tokens at a time.
    """
    sizes = [len(text) for text in texts]
    if not sum(sizes):
        return [np.zeros(0, np.int64) for _ in texts]
    tokens = np.concatenate(texts)
    ends = np.cumsum(sizes)
    limits = np.repeat(ends, sizes) - np.arange(len(tokens))  # from each token to the end of its text
    lengths = np.zeros(len(tokens), np.int64)
    step = 1 << (int(limits.max()).bit_length() - 1)
    with tqdm(desc="searching", total=step.bit_length(), leave=False, delay=1, disable=None) as bar:
        while step:
            longer = np.where(lengths + step <= limits, lengths + step, 0)
            lengths = np.where(_are_present(training, tokens, longer, chunk), longer, lengths)
            step //= 2
            bar.update()
    return np.split(lengths, ends[:-1])


def _are_present(training: TokenStore, tokens: Tokens, lengths: Tokens, chunk: int) -> NDArray[np.bool_]:
    """Return, for each token, whether the span of `lengths` > 0 tokens from it on is in the training text."""
    spans = [tokens[start : start + length].tobytes() for start, length in enumerate(lengths.tolist())]
    prefix = prefix_sums(tokens)
    missing: dict[int, dict[bytes, np.uint64]] = {}  # by length, each distinct span and its hash
    for length in np.unique(lengths[lengths > 0]).tolist():
        hashes = hash_spans(prefix, length)
        missing[length] = {spans[start]: hashes[start] for start in np.flatnonzero(lengths == length).tolist()}
    for start in range(0, len(training), chunk):
        text = training[start : start + chunk + int(lengths.max()) - 1].astype(np.int64)
        prefix = prefix_sums(text)
        for length, group in missing.items():
            if group and len(text) >= length:
                _remove_present(group, text, length, hash_spans(prefix, length))
    still_missing = set[bytes]().union(*missing.values())
    return np.array([bool(span) and span not in still_missing for span in spans])


def _remove_present(missing: dict[bytes, np.uint64], text: Tokens, length: int, hashes: Hashes) -> None:
    """Remove the spans that are in a text. `hashes` has one hash per span of it; if two agree, tokens are compared."""
    shift = np.uint64(64 - _TABLE_BITS)
    is_likely = np.zeros(1 << _TABLE_BITS, bool)
    is_likely[np.array([*missing.values()]) >> shift] = True
    starts = np.flatnonzero(is_likely[hashes >> shift])  # much faster than np.isin, which sorts all hashes
    while missing:
        starts = starts[np.isin(hashes[starts], [*missing.values()])]
        if not len(starts):
            break
        _, first = np.unique(hashes[starts], return_index=True)
        for start in starts[first].tolist():
            missing.pop(text[start : start + length].tobytes(), None)
        starts = np.delete(starts, first)  # only needed if two different spans have the same hash


def prefix_sums(tokens: Tokens) -> tuple[Hashes, Hashes]:
    """Return the prefix sums of mixed tokens times powers of the base, and the powers."""
    mixed = tokens.astype(np.uint64) + np.uint64(1)
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(32)
    powers = np.cumprod(np.full(len(tokens), _BASE), dtype=np.uint64)
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * powers, dtype=np.uint64)]), powers


def hash_spans(prefix: tuple[Hashes, Hashes], length: int) -> Hashes:
    """Return the hashes of all spans of `length` tokens: their sums, divided by the power of their first token."""
    sums, powers = prefix
    count = len(powers) - length + 1
    inverse = np.cumprod(np.full(count, np.uint64(pow(int(_BASE), -1, 1 << 64))), dtype=np.uint64)
    return (sums[length:] - sums[:count]) * inverse


def summarize(texts: list[Tokens], matches: list[Tokens], tokenizer: Tokenizer) -> MatchStats:
    """Summarize the longest matches of some texts."""
    shares: dict[int, float | None] = {}
    for span in SPANS:
        spans = sum(max(len(text) - span + 1, 0) for text in texts)
        shares[span] = sum(int((lengths >= span).sum()) for lengths in matches) / spans if spans else None
    tokens, total = sum(map(len, texts)), sum(int(lengths.sum()) for lengths in matches)
    longest = [
        (size, tokenizers.decode(tokenizer, texts[number][start : start + size].tolist()))
        for size, number, start in _select_longest(matches)
    ]
    return MatchStats(len(texts), tokens, shares, total / max(tokens, 1), longest)


def _select_longest(matches: list[Tokens]) -> list[tuple[int, int, int]]:
    """Return the length, text and first token of the longest matches that do not overlap."""
    candidates = [
        (size, number, start)
        for number, sizes in enumerate(matches)
        for start, size in enumerate(sizes.tolist())
        if size
    ]
    selected: list[tuple[int, int, int]] = []
    for size, number, start in sorted(candidates, key=lambda match: -match[0]):
        if len(selected) == _LISTED:
            break
        taken = [(begin, begin + length) for length, text, begin in selected if text == number]
        if all(start >= end or start + size <= begin for begin, end in taken):
            selected.append((size, number, start))
    return selected


def describe(result: Memorization) -> str:
    """Return the figures as a table, and the longest matches."""
    columns = {"generated": result.generated, "held out": result.held_out}
    table = {"appears in the training text": [*columns]}
    for span in SPANS:
        fractions = [stats.shares[span] for stats in columns.values()]
        table[f"spans of {span} tokens"] = ["none" if f is None else f"{f:.2%}" for f in fractions]
    table["mean longest match, tokens"] = [f"{stats.mean:.2f}" for stats in columns.values()]
    table["longest match, tokens"] = [str(stats.longest[0][0] if stats.longest else 0) for stats in columns.values()]
    table["tokens searched for"] = [f"{stats.tokens:,}" for stats in columns.values()]
    lines = [f"{name:<34}{generated:>10}{held_out:>10}" for name, (generated, held_out) in table.items()]
    for name, stats in columns.items():
        lines += [f"  {name}, {size} tokens: {text[:120]!r}" for size, text in stats.longest]
    return "\n".join(lines)
