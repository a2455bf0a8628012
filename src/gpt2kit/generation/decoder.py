"""The generation loop: each step samples one token for every sequence of a batch.

It differs from transformers' `generate` in three ways: a text does not depend on the rest of its batch (a draw is keyed
by the seed, the sample and the position), it may be longer than the model's context, and it can be streamed.
It knows nothing about text: ids in, ids out. bench/generate.py compares the speed of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gpt2kit.errors import UserError
from gpt2kit.generation import sampling
from gpt2kit.generation.constraints import Constraint
from gpt2kit.generation.healing import HealingStep
from gpt2kit.generation.options import SamplingOptions
from gpt2kit.model.inference import InferenceGPT2


@dataclass(eq=False)  # compared and hashed by identity: two samples of one prompt may have the same ids
class TokenSequence:
    """A sequence of tokens that is being generated."""

    prompt: list[int]  # the first id is the end-of-document token, if there is one, as before documents in training
    sample: int = 0  # number among the samples of the prompt; with the seed it decides every draw
    constraints: Sequence[Constraint] = ()
    healing: Sequence[HealingStep] = ()  # the last tokens of the prompt, which are chosen again; `prompt` lacks them
    new: list[int] = field(default_factory=list)  # the ids generated so far

    @property
    def ids(self) -> list[int]:
        """All ids."""
        return self.prompt + self.new

    @property
    def position(self) -> int:
        """The number of tokens after the prompt; negative while the end of the prompt is chosen again."""
        steps = enumerate(zip(self.new, self.healing, strict=False), 1)
        # A token other than the prompt's own spells all of the rest.
        used = next((count for count, (token, step) in steps if token != step.token), len(self.healing))
        return len(self.new) - used

    @property
    def healing_step(self) -> HealingStep | None:
        """The next token of the prompt that is chosen again, if any is left."""
        return self.healing[len(self.new)] if self.position < 0 else None


@dataclass(frozen=True)
class SampledToken:
    """A token of a sequence; if requested, the model's own probability of it and of the most likely tokens."""

    sequence: TokenSequence
    token: int
    probability: float = 0.0
    most_likely: tuple[tuple[int, float], ...] = ()


class BatchReader:
    """Runs the model over growing rows of ids; each call reads only the new ids.

    Rows of different length are padded on the left, and their positions begin at 0, so the logits of a row do not
    depend on the other rows. A row that outgrows the context is reduced to its newest half.
    """

    def __init__(self, gpt2: InferenceGPT2) -> None:
        self.gpt2 = gpt2
        self.context = int(gpt2.shape["n_positions"])
        self.has_outgrown_context = False
        self._cache = gpt2.new_cache()
        self._starts = np.zeros(0, np.int64)  # for each row, the index of the first id that the model sees
        self._lengths = np.zeros(0, np.int64)  # for each row, the number of ids at the last call
        self._is_token: Tensor | None = None  # (rows, T), false for padding; None without padding

    def logits(self, rows: Sequence[list[int]]) -> Tensor:
        """Return the logits of the token after each row, `[rows, vocab_size]` in float32.

        Either each row has one more id than at the last call, or all rows are new.
        """
        lengths = np.array([len(row) for row in rows])
        is_grown = np.array_equal(lengths, self._lengths + 1)
        if not is_grown:
            self._starts = np.maximum(lengths - self.context, 0)
        must_slide = lengths - self._starts > self.context
        self._starts = np.where(must_slide, lengths - max(self.context // 2, 1), self._starts)
        self._lengths = lengths
        self.has_outgrown_context |= bool(self._starts.any())
        if is_grown and not must_slide.any():
            return self._read_last([row[-1] for row in rows])
        return self._read_all([row[start:] for row, start in zip(rows, self._starts, strict=True)])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows of the last call, in this order."""
        index = torch.tensor(rows, device=self.gpt2.device)
        self._cache.select(index)
        if self._is_token is not None:
            self._is_token = self._is_token[index]
        self._starts = self._starts[list(rows)]
        self._lengths = self._lengths[list(rows)]

    def _read_all(self, rows: Sequence[list[int]]) -> Tensor:
        width, device = max(map(len, rows)), self.gpt2.device
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)  # (rows, T)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        positions = torch.arange(width, device=device) - (width - lengths)[:, None]
        self._cache = self.gpt2.new_cache()
        self._is_token = mask = None
        if min(map(len, rows)) < width:  # padding attends to itself: a softmax over nothing would be NaN
            self._is_token = positions >= 0
            square = torch.ones(width, width, dtype=torch.bool, device=device)
            mask = (self._is_token[:, None, None, :] & square.tril()) | square.diag().diag()  # (rows, 1, T, T)
        return self.gpt2.next_logits(ids, positions.clamp(min=0), self._cache, mask)

    def _read_last(self, tokens: list[int]) -> Tensor:
        device, mask = self.gpt2.device, None
        if self._is_token is not None:
            self._is_token = torch.cat([self._is_token, self._is_token.new_ones(len(tokens), 1)], 1)
            mask = self._is_token[:, None, None, :]  # (rows, 1, 1, T)
        positions = torch.from_numpy(self._lengths - self._starts - 1).to(device)
        ids = torch.tensor(tokens, device=device)
        return self.gpt2.next_logits(ids[:, None], positions[:, None], self._cache, mask)


class Decoder:
    """Generates a batch of sequences; each step samples one token for every active sequence.

    Args:
        gpt2: the model.
        sequences: what to generate.
        options: how tokens are chosen.
        eos: the id that ends a document; None if the vocabulary has no such token.
        alternatives: how many of the most likely tokens to report with each sampled one.
    """

    def __init__(
        self,
        gpt2: InferenceGPT2,
        sequences: Sequence[TokenSequence],
        options: SamplingOptions,
        eos: int | None,
        alternatives: int = 0,
    ) -> None:
        self.active = list(sequences)
        self.reader = BatchReader(gpt2)
        self._options = options
        self._eos = eos
        self._alternatives = alternatives

    @torch.inference_mode()
    def step(self) -> list[SampledToken]:
        """Sample one token for each active sequence, and drop the sequences whose token is `eos`."""
        sequences = self.active
        model_logits = self.reader.logits([sequence.ids for sequence in sequences])  # (rows, vocab_size)
        sampling.check_finite(model_logits)
        if any(sequence.position < 0 for sequence in sequences):
            model_logits = apply_healing(model_logits, sequences)
        logits = apply_constraints(model_logits, sequences)
        # Penalties ignore the end-of-document token before a text; otherwise the model would rarely or never end it.
        texts = [s.ids[1:] if s.prompt[:1] == [self._eos] else s.ids for s in sequences]
        logits = sampling.apply_penalties(logits, self._options, texts)
        keys = [(sequence.sample, sequence.position) for sequence in sequences]
        tokens = sampling.sample(logits, self._options, keys).tolist()
        sampled = [SampledToken(sequence, token) for sequence, token in zip(sequences, tokens, strict=True)]
        if self._alternatives:
            sampled = add_probabilities(sampled, model_logits.softmax(-1), self._alternatives)
        for sequence, token in zip(sequences, tokens, strict=True):
            if token != self._eos:
                sequence.new.append(token)
        self.drop(item.sequence for item in sampled if item.token == self._eos)
        return sampled

    def drop(self, sequences: Iterable[TokenSequence]) -> None:
        """Stop generating these sequences."""
        dropped = set(sequences)
        kept = [row for row, sequence in enumerate(self.active) if sequence not in dropped]
        if len(kept) < len(self.active):
            self.active = [self.active[row] for row in kept]
            if kept:
                self.reader.select(kept)


def apply_healing(logits: Tensor, sequences: Sequence[TokenSequence]) -> Tensor:
    """Return the logits with -inf for tokens that do not spell the rest of a sequence's prompt."""
    healed = logits.clone()
    for row, sequence in enumerate(sequences):
        if step := sequence.healing_step:
            healed[row] = -torch.inf
            healed[row, step.allowed] = logits[row, step.allowed]
    return healed


def apply_constraints(logits: Tensor, sequences: Sequence[TokenSequence]) -> Tensor:
    """Return the logits with -inf for tokens that a sequence's constraints do not allow."""
    if not any(sequence.constraints for sequence in sequences):
        return logits
    allowed = np.ones((len(sequences), logits.shape[-1]), dtype=bool)
    for row, sequence in zip(allowed, sequences, strict=True):
        for constraint in sequence.constraints:
            mask = constraint(sequence.new)
            row[: len(mask)] &= mask
            row[len(mask) :] = False  # ids that have no token
        if step := sequence.healing_step:
            row[step.token] = True  # a prompt may contain what is banned
        if not row.any():
            raise UserError("--bad_words: every token that fits the verse is banned. Ban fewer words")
    return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)


def add_probabilities(sampled: Sequence[SampledToken], probabilities: Tensor, count: int) -> list[SampledToken]:
    """Add to each token its probability and the `count` most likely tokens; `probabilities` is `[rows, vocab_size]`."""
    best = probabilities.topk(min(count, probabilities.shape[-1]))
    result = []
    for row, item in enumerate(sampled):
        most_likely = tuple(zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True))
        result.append(replace(item, probability=float(probabilities[row, item.token]), most_likely=most_likely))
    return result
