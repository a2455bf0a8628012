"""How much of what a model writes stands word for word in the text that it learnt from, and how much of other text.

The measure is the longest match (`matches`): for each token of a text, the most tokens from it on that stand, in this
order, somewhere in the training text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from gpt2kit.data.store import TokenStore
from gpt2kit.evaluation.scoring import boundaries
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
        training.has_fingerprint(fingerprint) if isinstance(fingerprint, str) else None,
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


Tokens = NDArray[np.int64]

_CHUNK = 1 << 20
"""Tokens of the store that are looked through at a time."""

_BITS = 22
"""Of a hash, those that tell most of what cannot match."""

_BASE = np.uint64(0x9E3779B97F4A7C15)


def matches(training: TokenStore, texts: list[Tokens]) -> list[Tokens]:
    """For each token of each text, the length of the longest match from it on.

    If a span stands in the training text, so does each of its beginnings: so the length is found bit by bit, the
    highest first, each by one pass for all lengths that are asked for.
    """
    ends = np.cumsum([len(text) for text in texts])
    if not len(ends) or not ends[-1]:
        return [np.zeros(0, np.int64) for _ in texts]
    tokens = np.concatenate(texts)
    room = np.repeat(ends, [len(text) for text in texts]) - np.arange(len(tokens))  # up to the end of its text
    found = np.zeros(len(tokens), np.int64)
    step = 1 << (int(room.max()).bit_length() - 1)
    with tqdm(desc="looking for copies", total=step.bit_length(), leave=False, delay=1, disable=None) as bar:
        while step:
            asked = found + step
            asked[asked > room] = 0
            found = np.where(_present(training, tokens, asked), asked, found)
            step //= 2
            bar.update()
    return np.split(found, ends[:-1])


def _present(training: TokenStore, tokens: Tokens, asked: Tokens) -> NDArray[np.bool_]:
    """Whether the span of `asked` tokens from each token on stands in the training text (of 0 tokens: no)."""
    found = np.zeros(len(tokens), bool)
    wanted = [_Spans(tokens, np.flatnonzero(asked == n), n) for n in np.unique(asked[asked > 0]).tolist()]
    longest = int(asked.max())
    for start in range(0, len(training), _CHUNK):
        chunk = training[start : start + _CHUNK + longest - 1].astype(np.int64)
        prefix = _prefix(chunk)
        for spans in wanted:
            if len(chunk) >= spans.length and not spans.known.all():
                spans.look(chunk, _hashes(prefix, spans.length))
    for spans in wanted:
        found[spans.at] = spans.known[spans.same]
    return found


class _Spans:
    """Spans of one length that are looked for, each different one once.

    Args:
        tokens: that they are cut from.
        at: where each begins.
        length: of them all.
    """

    def __init__(self, tokens: Tokens, at: Tokens, length: int) -> None:
        self.at, self.length = at, length
        cut = tokens[at[:, None] + np.arange(length)]
        self.spans, first, self.same = np.unique(cut, axis=0, return_index=True, return_inverse=True)
        hashes = _hashes(_prefix(tokens), length)[at[first]]
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]
        self.known = np.zeros(len(self.spans), bool)
        """Which of the spans have been found."""

    def look(self, chunk: Tokens, there: NDArray[np.uint64]) -> None:
        """Find spans in a chunk, `there` being the hashes of all of its own: those alike are compared by token."""
        shift = np.uint64(64 - _BITS)
        likely = np.zeros(1 << _BITS, bool)
        likely[self._hashes[~self.known[self._order]] >> shift] = True
        places = np.flatnonzero(likely[there >> shift])
        first = np.searchsorted(self._hashes, there[places])
        behind = np.searchsorted(self._hashes, there[places], side="right")
        for more in range(int((behind - first).max(initial=0))):  # one turn, unless spans have the same hash by chance
            right = first + more < behind
            self._compare(chunk, places[right], self._order[(first + more)[right]])

    def _compare(self, chunk: Tokens, places: Tokens, numbers: Tokens) -> None:
        offsets = np.arange(self.length)
        while len(places):
            span, one = np.unique(numbers, return_index=True)  # one place of each; more if it was a chance hit
            equal = (chunk[places[one][:, None] + offsets] == self.spans[span]).all(1)
            self.known[span[equal]] = True
            left = np.ones(len(places), bool)
            left[one] = False
            left &= ~self.known[numbers]
            places, numbers = places[left], numbers[left]


def _prefix(tokens: Tokens) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Sums of mixed tokens times powers of the base, and the powers, modulo 2^64."""
    mixed = tokens.astype(np.uint64) + np.uint64(1)
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(32)
    powers = np.cumprod(np.full(len(tokens), _BASE), dtype=np.uint64)
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * powers, dtype=np.uint64)]), powers


def _hashes(prefix: tuple[NDArray[np.uint64], NDArray[np.uint64]], length: int) -> NDArray[np.uint64]:
    """The hashes of all spans of `length` tokens: their sums, with the power of their first token divided out."""
    sums, powers = prefix
    count = len(powers) - length + 1
    return (sums[length:] - sums[:count]) * _inverse(count)


def _inverse(count: int) -> NDArray[np.uint64]:
    """The inverses of the first powers of the base, modulo 2^64, which an odd base has."""
    return np.cumprod(np.full(count, np.uint64(pow(int(_BASE), -1, 1 << 64))), dtype=np.uint64)
