"""The loss of an optimizer step and the score of a validation, over all their batches and all ranks."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from gpt2kit.metrics import Score


class StepLoss:
    """Collects the losses of the micro-batches of one optimizer step.

    Lightning averages gradients over micro-batches and ranks. With a loss mask, these have different numbers of
    targets, and the mean over all targets is not the mean of their means. So the loss of a micro-batch is its nats per
    position, of which all have the same number, and the gradients are multiplied once per step by a correction:
    positions / targets of the whole step.
    """

    def __init__(self, has_mask: bool) -> None:
        self.has_mask = has_mask  # whether the loss counts only a part of each document
        self._losses: list[Tensor] = []  # of each micro-batch so far
        self._targets: list[Tensor] = []  # their numbers of targets, with a mask
        self._correction: Tensor | None = None

    def add(self, nats: Tensor, targets: Tensor, positions: int) -> Tensor:
        """Return the loss of a micro-batch with this sum over its targets."""
        if self.has_mask:
            self._targets.append(targets)
        loss = nats / (torch.full_like(targets, positions) if self.has_mask else targets)
        self._losses.append(loss.detach())
        return loss

    def finish(self, trainer: pl.Trainer, positions: int, is_logged: bool) -> Tensor | None:
        """Compute the correction of the step, whose micro-batches have `positions` each; return its loss if logged."""
        if self.has_mask:
            all_targets = trainer.strategy.reduce(torch.stack(self._targets).sum(), reduce_op="sum")
            all_positions = positions * trainer.accumulate_grad_batches * trainer.world_size
            self._correction = all_positions / all_targets.clamp(min=1)  # without a target, all gradients are 0
        mean = None
        if is_logged:
            mean = trainer.strategy.reduce(torch.stack(self._losses).mean(), reduce_op="mean")
            mean = mean if self._correction is None else mean * self._correction
        self._losses.clear()
        self._targets.clear()
        return mean

    def correct_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Multiply the gradients of a finished step by its correction."""
        if self._correction is not None:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad *= self._correction


@dataclass(frozen=True)
class Validation:
    """The scores of a validation."""

    step: int
    scores: dict[str, Score]  # of each validation text; the name of the only one is empty

    @functools.cached_property
    def total(self) -> Score:
        """The score of all validation texts together."""
        return functools.reduce(Score.__add__, self.scores.values())

    def metrics(self) -> dict[str, float]:
        """Return the figures to log."""
        named = {f"val_bpb/{name}": score.bits_per_byte for name, score in self.scores.items() if name}
        total = {"val_loss": self.total.loss, "val_ppl": self.total.perplexity, "val_bpb": self.total.bits_per_byte}
        return total | named


class ValidationSums:
    """Collects nats and targets of the batches of a validation."""

    def __init__(self) -> None:
        self._batches: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # by the number of the text

    def add(self, text: int, nats: Tensor, targets: Tensor) -> None:
        """Add a batch of the text with this number."""
        self._batches[text].append((nats, targets))

    def finish(self, trainer: pl.Trainer, texts: Mapping[str, Score]) -> Validation:
        """Return the scores over all batches and ranks, and forget the batches.

        Args:
            trainer: reduces over the ranks.
            texts: the size of each validation text, by its name.
        """
        scores = {
            name: validation_score(self._batches[number], trainer, text)
            for number, (name, text) in enumerate(texts.items())
        }
        self._batches.clear()
        return Validation(trainer.global_step, scores)


def validation_score(batches: Sequence[tuple[Tensor, Tensor]], trainer: pl.Trainer, text: Score) -> Score:
    """Return the ratios of sums over all batches and ranks.

    Args:
        batches: nats and targets of each batch of this rank.
        trainer: reduces over the ranks.
        text: the size of the validation text. If limit_val_batches cuts it off, its bytes are counted in proportion to
            its tokens.
    """
    sums = torch.stack([torch.stack(values).cpu().double().sum() for values in zip(*batches, strict=True)])
    if trainer.world_size > 1:
        sums = trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum")
    nats, tokens = sums.tolist()
    return Score(nats, int(tokens), round(text.bytes * (tokens / text.tokens)))
