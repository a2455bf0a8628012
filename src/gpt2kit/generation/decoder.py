"""The loop that writes: many texts at once, each as if it were alone.

Written here rather than taken from transformers' `generate`, for three things that it does not offer: a text is the
same whatever it is batched with (its draws are keyed by its own number, not taken from one generator for all), it goes
on beyond the context, and it can be read while it is written. bench/generate.py measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gpt2kit.errors import UserError
from gpt2kit.generation import sampling as choosing
from gpt2kit.generation.constraints import Constraint
from gpt2kit.generation.options import Rules
from gpt2kit.model.inference import InferenceGPT2


@dataclass
class Text:
    """One text in the making.

    Args:
        prompt: its first ids, an end of document among them: the model has learnt that a text begins there.
        sample: which of the prompt's texts; with the seed it decides all draws.
        constraints: what may come next.
        new: the ids written so far.
    """

    prompt: list[int]
    sample: int = 0
    constraints: Sequence[Constraint] = ()
    new: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """All of it."""
        return self.prompt + self.new


@dataclass(frozen=True)
class Chosen:
    """A token of a text, and, if asked for, the model's own probabilities of it and of the likeliest."""

    text: Text
    token: int
    probability: float = 0.0
    likeliest: tuple[tuple[int, float], ...] = ()


class Reader:
    """The model over a batch of growing texts: each row's next logits, reading only what is new.

    Rows of different length are padded on the left, and masked; each row's positions begin at 0, so that a row is what
    it would be alone. A row that outgrows the context forgets all but its newest half.

    Args:
        gpt2: the model.
    """

    def __init__(self, gpt2: InferenceGPT2) -> None:
        self.gpt2 = gpt2
        self.context = int(gpt2.shape["n_positions"])
        self.slid = False
        """Whether a row has outgrown the context."""
        self._cache = gpt2.new_cache()
        self._begin: list[int] = []
        self._read: list[int] = []  # how many ids of each row the cache has
        self._real = torch.empty(0)  # (rows, T), false for padding
        self._padded = False

    def logits(self, rows: Sequence[list[int]]) -> Tensor:
        """`[rows, vocab_size]` of float32 for the token after each row; a row is longer than at the last call by one
        token, or the rows are new. What the padded embedding has beyond the vocabulary is cut off."""
        grown = len(rows) == len(self._read) and all(len(r) == n + 1 for r, n in zip(rows, self._read, strict=True))
        if not grown:
            self._begin = [max(len(row) - self.context, 0) for row in rows]
            self.slid |= any(self._begin)
        too_long = [len(row) - begin > self.context for row, begin in zip(rows, self._begin, strict=True)]
        if any(too_long):
            self.slid = True
            half = max(self.context // 2, 1)
            self._begin = [
                len(row) - half if is_long else begin
                for row, begin, is_long in zip(rows, self._begin, too_long, strict=True)
            ]
        self._read = [len(row) for row in rows]
        if grown and not any(too_long):
            return self._next([row[-1] for row in rows])
        return self._first([row[begin:] for row, begin in zip(rows, self._begin, strict=True)])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows of the last call, in this order; one may be kept several times."""
        index = torch.tensor(rows, device=self.gpt2.device)
        self._cache.select(index)
        self._real = self._real[index]
        self._begin = [self._begin[row] for row in rows]
        self._read = [self._read[row] for row in rows]

    def _first(self, rows: Sequence[list[int]]) -> Tensor:
        width = max(map(len, rows))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self.gpt2.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.gpt2.device)
        places = torch.arange(width, device=self.gpt2.device) - (width - lengths)[:, None]
        self._real = places >= 0
        self._padded = min(map(len, rows)) < width
        self._cache = self.gpt2.new_cache()
        mask = None
        if self._padded:  # padding sees itself, since a row of the softmax that sees nothing would be NaN
            square = torch.ones(width, width, dtype=torch.bool, device=self.gpt2.device)
            mask = (self._real[:, None, None, :] & square.tril()) | square.diag().diag()
        return self.gpt2.next_logits(padded, places.clamp(min=0), self._cache, mask)

    def _next(self, tokens: list[int]) -> Tensor:
        self._real = torch.cat([self._real, self._real.new_ones(len(tokens), 1)], 1)
        places = [length - begin - 1 for length, begin in zip(self._read, self._begin, strict=True)]
        return self.gpt2.next_logits(
            torch.tensor(tokens, device=self.gpt2.device)[:, None],
            torch.tensor(places, device=self.gpt2.device)[:, None],
            self._cache,
            self._real[:, None, None, :] if self._padded else None,
        )


class Writer:
    """Writes texts together, a token of each at every step.

    Args:
        gpt2: the model.
        texts: what to write.
        rules: how to choose.
        eos: the id that ends a document.
        alternatives: report so many of the likeliest tokens with each one chosen.
    """

    def __init__(
        self, gpt2: InferenceGPT2, texts: Sequence[Text], rules: Rules, eos: int, alternatives: int = 0
    ) -> None:
        self.texts = list(texts)
        """Those not ended yet."""
        self.reader = Reader(gpt2)
        self._rules = rules
        self._eos = eos
        self._alternatives = alternatives

    @torch.inference_mode()
    def step(self) -> list[Chosen]:
        """One more token of each text; a text whose document ends gets the token `eos` and is left out from then on."""
        own = self.reader.logits([text.ids for text in self.texts])
        logits = constrained(own, self.texts)
        logits = choosing.restrained(logits, self._rules, [told(text, self._eos) for text in self.texts])
        keys = [(text.sample, len(text.new)) for text in self.texts]
        tokens = choosing.choose(logits, self._rules, keys).tolist()
        chosen = [Chosen(text, token) for text, token in zip(self.texts, tokens, strict=True)]
        if self._alternatives:
            chosen = with_alternatives(chosen, own.softmax(-1), self._alternatives)
        for text, token in zip(self.texts, tokens, strict=True):
            if token != self._eos:
                text.new.append(token)
        self.drop([text for text, token in zip(self.texts, tokens, strict=True) if token == self._eos])
        return chosen

    def drop(self, ended: Sequence[Text]) -> None:
        """Write these no further."""
        kept = [i for i, text in enumerate(self.texts) if not any(text is other for other in ended)]
        if len(kept) < len(self.texts):
            self.texts = [self.texts[i] for i in kept]
            if kept:
                self.reader.select(kept)


def constrained(logits: Tensor, texts: Sequence[Text]) -> Tensor:
    """Logits with -inf for what a text's constraints do not allow."""
    if not any(text.constraints for text in texts):
        return logits
    masks = np.ones((len(texts), logits.shape[-1]), dtype=bool)
    for mask, text in zip(masks, texts, strict=True):
        for constraint in text.constraints:
            allowed = constraint(text.new)
            mask[: len(allowed)] &= allowed
            mask[len(allowed) :] = False  # an id without a token
        if not mask.any():
            raise UserError("what is banned leaves nothing that keeps the form. Ban less")
    return logits.masked_fill(~torch.from_numpy(masks).to(logits.device), -torch.inf)


def told(text: Text, eos: int) -> list[int]:
    """What of a text counts as said already: not the end of document before it, which would never come again."""
    return text.ids[1:] if text.prompt[:1] == [eos] else text.ids


def with_alternatives(chosen: Sequence[Chosen], probabilities: Tensor, count: int) -> list[Chosen]:
    """The same with the model's own probabilities."""
    best = probabilities.topk(min(count, probabilities.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    likeliest = [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
    return [Chosen(c.text, c.token, float(probabilities[row, c.token]), likeliest[row]) for row, c in enumerate(chosen)]
