"""Statistics of a text's documents or blocks: words, lossless tokenization, scores, and 95 % bootstrap intervals."""

from __future__ import annotations

import array
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.evaluation.blocks import split_piece
from gpt2kit.metrics import FIGURES, Score
from gpt2kit.text.reader import read_rest
from gpt2kit.text.splits import Context
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.report import first_difference
from gpt2kit.tokenization.sampling import SPACELESS, WIDE_PUNCTUATION

# Bytes of text that are encoded and decoded to check a tokenizer.
CHECKED_BYTES = 16_000_000

# A character of a script without spaces, or wide punctuation, counts as a word.
_SPACELESS = "".join(f"{chr(first)}-{chr(last)}" for first, last in [*SPACELESS, *WIDE_PUNCTUATION])
_CHARACTER = re.compile(f"[{_SPACELESS}]")
WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
_LETTER = re.compile(rf"[^\s{_SPACELESS}]")

# Number of bootstrap samples.
RESAMPLES = 1000
# With more documents, groups of consecutive ones are drawn: this bounds the time and hardly changes the interval.
MAX_GROUPS = 1 << 14

Interval = tuple[float, float]


@dataclass
class RoundTripCheck:
    """Whether a tokenizer reproduces documents when it encodes and decodes them."""

    documents: int = 0  # number of checked documents
    bytes: int = 0
    changed: int = 0  # number of documents that differ afterwards
    example: str = ""  # where the first of them differs

    @property
    def is_lossless(self) -> bool:
        """Whether all documents are reproduced."""
        return not self.changed


@dataclass
class TextStats:
    """Word counts and round trips, from one pass over the documents of a text."""

    words: array.array[int] = field(default_factory=lambda: array.array("q"))  # of each document
    blocks: NDArray[np.int64] = field(default_factory=lambda: np.zeros((1, 3), np.int64))  # bytes, characters, words
    spaceless: int = 0  # words that are one character of a script without spaces
    round_trips: list[RoundTripCheck] = field(default_factory=list)  # of each tokenizer

    @property
    def word_unit(self) -> str:
        """What counts as a word."""
        total = sum(self.words)
        if not self.spaceless:
            return "text between spaces"
        if self.spaceless == total:
            return "each character, since the script has no spaces"
        fraction = f"{self.spaceless / total:.0%} of the words"
        return f"text between spaces, and each character of scripts without spaces ({fraction})"


def measure_text(
    pieces: Iterator[str],
    tokenizers: Sequence[Tokenizer],
    documents: int,
    edges: NDArray[np.int64] = np.empty(0, np.int64),
    checked_bytes: int = CHECKED_BYTES,
) -> TextStats:
    """Count the words of the first `documents` documents; check each tokenizer on their first `checked_bytes` bytes.

    A reader yields a long document in pieces; each piece is encoded separately, as in a token store. Blocks of the text
    meet at `edges`.
    """
    round_trips = [RoundTripCheck() for _ in tokenizers]
    stats = TextStats(blocks=np.zeros((len(edges) + 1, 3), np.int64), round_trips=round_trips)
    checked = position = 0
    for first in itertools.islice(pieces, documents):
        words, last = 0, ""
        is_checked, differences = checked < checked_bytes, [""] * len(tokenizers)
        for piece in itertools.chain([first], read_rest(first, pieces)):
            text = "" if isinstance(piece, Context) else piece
            for block, part in split_piece(text, position, edges):
                count, spaceless = count_words(part)
                is_continued = last and part and _LETTER.match(last) and _LETTER.match(part)
                count -= bool(is_continued)  # a word that is split between two parts counts once
                words += count
                stats.spaceless += spaceless
                last = part[-1:]
                if len(edges):
                    size = len(part.encode())
                    stats.blocks[block] += size, len(part), count
                    position += size
            if checked < checked_bytes:
                checked += len(piece.encode())
                pairs = zip(differences, tokenizers, strict=True)
                differences = [difference or find_difference(tokenizer, piece) for difference, tokenizer in pairs]
        stats.words.append(words)
        for check, difference in zip(stats.round_trips, differences, strict=True):
            check.documents += is_checked
            check.changed += bool(difference)
            check.example = check.example or difference
    for check in stats.round_trips:
        check.bytes = checked
    return stats


def count_words(text: str) -> tuple[int, int]:
    """Return the number of words, and how many of them are one character of a script without spaces."""
    if text.isascii() or not _CHARACTER.search(text):
        return len(text.split()), 0
    return len(WORD.findall(text)), len(_CHARACTER.findall(text))


def find_difference(tokenizer: Tokenizer, text: str) -> str:
    """Return where a text and its decoded tokens differ, with some context; empty if they are equal."""
    decoded = tokenizers.decode(tokenizer, tokenizers.encode(tokenizer, text))
    return "" if decoded == text else first_difference(text, decoded)


@dataclass(frozen=True)
class UnitScores:
    """The parts of a Score for each document or block of a text, `[units]` each; all figures are computed from them."""

    nll: NDArray[np.float64]  # nats
    tokens: NDArray[np.int64]  # all counts include the end of each document, as in a Score
    bytes: NDArray[np.int64]
    characters: NDArray[np.int64]
    words: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.nll)

    def table(self) -> NDArray[np.float64]:
        """Return all parts, `[units, 5]`, in the order of those of a Score."""
        return np.stack([self.nll, self.tokens, self.bytes, self.characters, self.words], 1).astype(np.float64)

    def total(self) -> Score:
        """Return the score of the whole text."""
        return make_score(self.table().sum(0))


def make_score(parts: NDArray[np.float64]) -> Score:
    """Return a Score from its parts, `[5]`."""
    nll, *counts = parts.tolist()
    return Score(nll, *map(round, counts))


def measure_spread(scores: UnitScores) -> dict[str, dict[str, float]]:
    """Return `mean` and standard deviation `sd` over documents or blocks, weighted by their tokens or bytes.

    With these weights, the means of loss and of bits per byte are those of the whole text. The mean perplexity is at
    least the perplexity of the text, and hard parts dominate it.
    """
    loss, bits = _divide(scores.nll, scores.tokens), _divide(scores.nll / math.log(2), scores.bytes)
    with np.errstate(over="ignore"):
        perplexity = np.exp(loss)
    return {
        "loss": _average(loss, scores.tokens),
        "perplexity": _average(perplexity, scores.tokens),
        "bits_per_byte": _average(bits, scores.bytes),
    }


def _average(values: NDArray[np.float64], weights: NDArray[np.int64]) -> dict[str, float]:
    with np.errstate(invalid="ignore", over="ignore"):
        mean = np.average(values, weights=weights)
        sd = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    return {"mean": float(mean), "sd": float(sd)}


def _divide(a: NDArray[np.float64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def bootstrap(scores: UnitScores, seed: int) -> dict[str, Interval]:
    """Return the 95 % interval of each figure."""
    samples = [make_score(parts) for parts in resample(scores.table(), seed)]
    return {name: _interval([getattr(score, name) for score in samples], len(scores)) for name in FIGURES}


def bootstrap_difference(a: UnitScores, b: UnitScores, figure: Callable[[Score], float], seed: int) -> Interval:
    """Return the 95 % interval of figure(a) - figure(b), paired: what is hard for both cancels out."""
    pairs = zip(resample(a.table(), seed), resample(b.table(), seed), strict=True)
    return _interval([figure(make_score(parts_a)) - figure(make_score(parts_b)) for parts_a, parts_b in pairs], len(a))


def resample(table: NDArray[np.float64], seed: int, max_groups: int = MAX_GROUPS) -> NDArray[np.float64]:
    """Draw as many documents or blocks as there are, with replacement, and return their sums, `[RESAMPLES, columns]`.

    The draws depend on the seed and the number of units only, so they are the same for two models.
    """
    if len(table) > max_groups:
        table = np.add.reduceat(table, np.linspace(0, len(table), max_groups, endpoint=False).astype(np.int64))
    random, count = np.random.default_rng(seed), len(table)
    return np.stack([table[random.integers(count, size=count)].sum(0) for _ in range(RESAMPLES)])


def _interval(values: list[float], units: int) -> Interval:
    """Return the interval with 95 % of the values, or more of them for few units: the expanded percentile interval.

    The bootstrap underestimates a variance by the factor (units - 1) / units, and its quantiles are those of a normal
    distribution instead of Student's.
    """
    z = NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * (units - 1))  # expansion of Student's quantile for units - 1 degrees of freedom
    tail = NormalDist().cdf(-t * math.sqrt(units / (units - 1)))
    low, high = np.quantile(values, [tail, 1 - tail], method="closest_observation")
    return float(low), float(high)
