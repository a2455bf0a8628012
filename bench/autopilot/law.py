"""A law that predicts the bits per byte of held-out text before training, from the text and the settings of a run.

An n-gram model measures how hard the text is (ngrams.py). The law says how much better or worse a GPT-2 is: by its
weights, the tokens and steps that it reads, how often it reads them, dropout and weight decay. fit.py determines the
coefficients from the journal. Works on numbers, or on arrays with a value for each run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ngrams import HELD_OUT_SAMPLE, SAMPLE, Difficulty, measure
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.data.store import TokenStore
from gpt2kit.tokenization.tokenizer import find_eos, token_bytes

# Tokens in a row of the sample of a text.
_RUN = 512

# The columns of a run or of many runs: numbers, or arrays of the same length.
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Coefficient:
    """A coefficient of the law: what is known of it before the fit, as a normal distribution."""

    mean: float
    deviation: float


# The fit starts from these, and moves away as far as the journal's runs demand. Exponents are those of published laws
# (Hoffmann et al., 2022; Muennighoff et al., 2023), the others are guesses with wide deviations.
PRIORS = {
    "base": Coefficient(-0.8, 0.5),  # the logarithm of the bits of an endless run, relative to the n-gram model's
    "growth": Coefficient(1.0, 0.3),  # how far the n-gram model's slope holds beyond its sample
    "slope": Coefficient(0.0, 2.0),
    "repetition": Coefficient(0.0, 1.0),
    "short": Coefficient(0.2, 0.3),  # how far the model is one with short contexts
    "short_tokens": Coefficient(-0.1, 0.1),  # ... by the logarithm of the millions of tokens that it reads
    "packing": Coefficient(0.0, 0.3),  # of the logarithm of bytes per token
    "context": Coefficient(0.0, 0.1),
    "weights": Coefficient(-1.5, 0.7),  # the logarithm of what a model of a million weights lacks
    "weights_exponent": Coefficient(0.34, 0.1),
    "tokens": Coefficient(-0.5, 0.7),  # ... and of one that read a million tokens
    "tokens_exponent": Coefficient(0.37, 0.1),
    "steps": Coefficient(-1.6, 0.7),  # ... and of a run of a thousand steps
    "steps_exponent": Coefficient(0.6, 0.2),
    "repeats": Coefficient(2.7, 0.5),  # the logarithm of the passes that are worth about as much as new text
    "overfit": Coefficient(-6.0, 1.5),  # the logarithm of what a second pass costs a model with a weight per token
    "overfit_weights": Coefficient(0.7, 0.3),
    "overfit_passes": Coefficient(1.5, 0.4),
    "overfit_dropout": Coefficient(1.0, 0.7),  # how much less with dropout 0.1
    "overfit_decay": Coefficient(0.5, 0.3),  # ... and with ten times the decay
    "dropout": Coefficient(0.02, 0.03),  # what dropout 0.1 costs
    "decay": Coefficient(0.0, 0.02),
}


def measure_text(text: TokenStore, held_out: Sequence[TokenStore], tokenizer: Tokenizer) -> Difficulty:
    """Return how hard held-out text is to predict. Takes about a second."""
    pieces = token_bytes(tokenizer)
    if (end := find_eos(tokenizer)) is not None:
        pieces[end] = b"\n"  # a byte, as in every count of bytes per document
    samples = [_sample(store, pieces, HELD_OUT_SAMPLE // len(held_out)) for store in held_out]
    return measure(_sample(text, pieces, SAMPLE), b"".join(samples))


def _sample(text: TokenStore, pieces: list[bytes], size: int) -> bytes:
    """Return about `size` bytes of a text, in runs of tokens from all of its first file, in random order."""
    tokens = text.shards[0].tokens  # others may have to be fetched
    count = max(min(size * tokens // max(text.shards[0].bytes, 1), tokens) // _RUN, 1)
    starts = np.linspace(0, max(tokens - _RUN, 0), count).astype(np.int64)
    order = np.random.default_rng(1).permutation(starts).tolist()
    return b"".join(pieces[token] for start in order for token in text[start : start + _RUN].tolist())


def log_bits(columns: Columns, coefficients: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the logarithm of the bits per byte that the law predicts."""
    of, get = coefficients, columns.__getitem__
    tokens, passes = np.asarray(get("tokens"), float), np.asarray(get("passes"), float)
    repeats = np.maximum(passes - 1, 0.0)
    # Later passes are worth less and less: at most as much as a certain number of passes over new text.
    worth = math.exp(of["repeats"])
    read = tokens * (np.minimum(passes, 1.0) + worth * (1 - np.exp(-repeats / worth)))
    matrices, steps = np.asarray(get("matrices"), float), np.asarray(get("steps"), float)
    lacking = np.exp(of["weights"] - of["weights_exponent"] * np.log(matrices / 1e6))
    lacking = lacking + np.exp(of["tokens"] - of["tokens_exponent"] * np.log(read / 1e6))
    lacking = lacking + np.exp(of["steps"] - of["steps_exponent"] * np.log(steps / 1e3))
    dropout, decay = np.asarray(get("dropout"), float) / 0.1, np.log10(np.maximum(get("weight_decay"), 0.01) / 0.1)
    overfit = of["overfit"] + of["overfit_weights"] * np.log(matrices / tokens)
    overfit = overfit - of["overfit_dropout"] * dropout - of["overfit_decay"] * math.log(10) * decay
    lacking = lacking + np.exp(overfit) * repeats ** of["overfit_passes"]
    growth = np.log(np.maximum(np.asarray(get("bytes"), float) / get("text_bytes"), 1.0))
    text = np.log(get("text_bits")) - of["growth"] * get("text_slope") * growth
    text = text + of["slope"] * get("text_slope") + of["repetition"] * get("text_repetition")
    short = np.log(np.asarray(get("text_short_bits"), float) / get("text_bits"))
    text = text + short * (of["short"] + of["short_tokens"] * np.log(read / 1e6))
    text = text + of["packing"] * np.log(np.asarray(get("bytes"), float) / tokens)
    text = text + of["context"] * np.log(np.asarray(get("block_size"), float) / 256)
    settings = of["dropout"] * dropout + of["decay"] * decay
    return np.asarray(of["base"] + text + settings + np.log1p(lacking))


@dataclass(frozen=True)
class Law:
    """The fitted law."""

    coefficients: dict[str, float]
    half_width: float  # of the 90 % interval, as a difference of logarithms
    max_flops: float  # of the runs that it was fitted to
    runs: int

    def interval(self, columns: Columns) -> tuple[float, float]:
        """Return the bits per byte between which nine of ten runs are expected to end."""
        middle = float(log_bits(columns, self.coefficients))
        return math.exp(middle - self.half_width), math.exp(middle + self.half_width)
