"""How much of the text that a model generates appears word for word in its training text, and how much of other text.

The measure is the longest match: for each token of a text, the most tokens beginning with it that appear, in this
order, somewhere in the training text.
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

# Lengths in tokens of the spans that are counted.
SPANS = (4, 8, 16, 32)
# Tokens that are generated, and as many of the held-out text.
TOKENS = 8192
# Tokens of one text at most, and texts that are generated at a time.
_MAX_LENGTH, _ROWS = 256, 32
# Matches that are listed.
_LISTED = 5
# Hashes are polynomials in this base modulo 2^64; it is odd, so it has an inverse.
_BASE = np.uint64(0x9E3779B97F4A7C15)
# Bits of a hash that rule out most places in a text; a table of 2^22 bytes is looked up faster than hashes are sorted.
_BITS = 22

Tokens = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class MatchStats:
    """The longest matches of some texts."""

    texts: int
    tokens: int
    shares: dict[int, float | None]  # by length, the fraction of spans in the training text; None if no text is as long
    mean: float  # tokens of the longest match, on average over all tokens
    longest: list[tuple[int, str]]  # tokens and text of the longest matches, no two of them overlapping


@dataclass(frozen=True)
class Memorization:
    """What of the training text appears in generated text, and, for comparison, in text that was held out."""

    generated: MatchStats
    held_out: MatchStats
    training_tokens: int
    same_text: bool | None  # whether the checkpoint was trained on this text, token for token; None: unknown


def measure_memorization(
    gpt2: GPT2, tokenizer: Tokenizer, training: TokenStore, held_out: TokenStore, seed: int, fingerprint: object
) -> Memorization:
    """Generate text, draw held-out documents, and search the training text for both."""
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
    missing = TOKENS
    with tqdm(desc="generating", total=TOKENS, unit="token", leave=False, delay=1, disable=None) as bar:
        for first in range(0, TOKENS, _ROWS):  # a model may generate empty documents only
            sequences = [TokenSequence([eos], sample) for sample in range(first, first + _ROWS)]
            decoder = Decoder(model, sequences, options, eos)
            for _ in range(length):
                if decoder.active:
                    decoder.step()
            new = [np.array(sequence.new, np.int64) for sequence in sequences if sequence.new]
            texts += new
            missing -= sum(map(len, new))
            bar.update(sum(map(len, new)))
            if missing <= 0:
                break
    return texts


def draw_texts(store: TokenStore, length: int, tokens: int, seed: int) -> list[Tokens]:
    """Return the beginnings of documents in a random order, until there are as many tokens or no more documents."""
    starts, lengths = boundaries(store), store.lengths()[:, 0]
    texts: list[Tokens] = []
    for number in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        if tokens <= 0:
            break
        start = int(starts[number])
        text = store[start : start + min(int(lengths[number]), length, tokens)].astype(np.int64)
        tokens -= len(text)
        texts += [text] if len(text) else []
    return texts


def summarize(texts: list[Tokens], matches: list[Tokens], tokenizer: Tokenizer) -> MatchStats:
    """Return the figures of texts whose tokens have these longest matches."""
    shares: dict[int, float | None] = {}
    for span in SPANS:
        spans = sum(max(len(text) - span + 1, 0) for text in texts)
        shares[span] = sum(int((lengths >= span).sum()) for lengths in matches) / spans if spans else None
    tokens, total = sum(map(len, texts)), sum(int(lengths.sum()) for lengths in matches)
    longest = [
        (size, str(tokenizer.decode(texts[number][start : start + size].tolist(), skip_special_tokens=False)))
        for size, number, start in _select_longest(matches)
    ]
    return MatchStats(len(texts), tokens, shares, total / max(tokens, 1), longest)


def _select_longest(matches: list[Tokens]) -> list[tuple[int, int, int]]:
    """Return the length, text and first token of the longest matches, no two of them overlapping."""
    places = (
        (-size, number, start) for number, sizes in enumerate(matches) for start, size in enumerate(sizes.tolist())
    )
    selected: list[tuple[int, int, int]] = []
    for negative, number, start in sorted(places):
        size = -negative
        if len(selected) == _LISTED or not size:
            break
        taken = [(begin, begin + length) for length, text, begin in selected if text == number]
        if all(start >= end or start + size <= begin for begin, end in taken):
            selected.append((size, number, start))
    return selected


def describe(result: Memorization) -> str:
    """Return the figures as a table, and the longest matches."""
    columns = {"generated": result.generated, "held out": result.held_out}
    table = {"copied from the training text": [*columns]}
    for span in SPANS:
        fractions = [stats.shares[span] for stats in columns.values()]
        table[f"spans of {span} tokens"] = ["none" if f is None else f"{f:.2%}" for f in fractions]
    table["longest match, tokens, mean"] = [f"{stats.mean:.2f}" for stats in columns.values()]
    table["longest match, tokens"] = [str(stats.longest[0][0] if stats.longest else 0) for stats in columns.values()]
    table["tokens looked at"] = [f"{stats.tokens:,}" for stats in columns.values()]
    lines = [f"{name:<34}{generated:>10}{held_out:>10}" for name, (generated, held_out) in table.items()]
    for name, stats in columns.items():
        lines += [f"  {name}, {size} tokens: {text[:120]!r}" for size, text in stats.longest]
    return "\n".join(lines)


def find_matches(training: TokenStore, texts: Sequence[Tokens], chunk: int = 1 << 20) -> list[Tokens]:
    """Return, for each token of each text, the length of the longest match that begins with it.

    If a span appears in the training text, so does each of its beginnings. So the lengths are found bit by bit, the
    highest first: one pass over the training text for each bit, for all tokens together, `chunk` tokens at a time.
    """
    ends = np.cumsum([len(text) for text in texts])
    if not len(ends) or not ends[-1]:
        return [np.zeros(0, np.int64) for _ in texts]
    tokens = np.concatenate(texts)
    room = np.repeat(ends, [len(text) for text in texts]) - np.arange(len(tokens))  # up to the end of its text
    lengths = np.zeros(len(tokens), np.int64)
    step = 1 << (int(room.max()).bit_length() - 1)
    with tqdm(desc="searching", total=step.bit_length(), leave=False, delay=1, disable=None) as bar:
        while step:
            longer = np.where(lengths + step <= room, lengths + step, 0)
            lengths = np.where(_search(training, tokens, longer, chunk), longer, lengths)
            step //= 2
            bar.update()
    return np.split(lengths, ends[:-1])


def _search(training: TokenStore, tokens: Tokens, lengths: Tokens, chunk: int) -> NDArray[np.bool_]:
    """Return whether the span of `lengths` tokens from each token on is in the training text (of 0 tokens: no)."""
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
    left = set[bytes]().union(*missing.values())
    return np.array([bool(span) and span not in left for span in spans])


def _remove_present(missing: dict[bytes, np.uint64], text: Tokens, length: int, hashes: Hashes) -> None:
    """Remove the spans that are in a text; `hashes` are those of all its spans. Equal hashes are compared by token."""
    is_likely = np.zeros(1 << _BITS, bool)
    shift = np.uint64(64 - _BITS)
    is_likely[np.array([*missing.values()]) >> shift] = True
    places = np.flatnonzero(is_likely[hashes >> shift])
    while missing and len(places := places[np.isin(hashes[places], [*missing.values()])]):
        _, first = np.unique(hashes[places], return_index=True)
        for place in places[first].tolist():
            missing.pop(text[place : place + length].tobytes(), None)
        places = np.delete(places, first)  # others matter only if two spans have the same hash by chance


def prefix_sums(tokens: Tokens) -> tuple[Hashes, Hashes]:
    """Return sums of mixed tokens times powers of the base, and the powers."""
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
