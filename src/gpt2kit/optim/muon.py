"""Muon: momentum whose matrices are orthogonalized, many of one shape at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from gpt2kit import dtensor
from gpt2kit.optim.adamw import AdamW

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of a quintic with the steepest slope at 0: few steps, singular values of 0.7 to 1.2."""
_AT_ONCE = {"cpu": 1 << 20, "other": 1 << 26}
"""Numbers, in matrices of one shape, that are turned at once: on a CPU about what its caches hold."""


class Muon(Optimizer):
    """Muon for the hidden matrices, AdamW for the rest: fewer steps to the same loss than AdamW alone.

    Each matrix moves along its momentum with all singular values made about equal (five Newton-Schulz steps in
    bfloat16, matrices of one shape at once). Updates have AdamW's typical size, 0.2 a step and weight at lr 1, so
    learning rates are like AdamW's, transfer across widths, and do not depend on whether a layer keeps its matrix
    transposed (GPT-2's layers do). Queries, keys and values, which GPT-2 keeps in one matrix, are turned apart: so it
    learns more. Each part moves as under `torch.optim.Muon` (a test says so), in less time (bench/muon.py).

    Args:
        params: two groups as `parameter_groups` gives them.
        lr: learning rate of the hidden matrices.
        adamw_lr: learning rate of embeddings, norms and biases.
        weight_decay: of the hidden matrices.
        momentum: of the hidden matrices.
        betas: of AdamW.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 5e-3,
        adamw_lr: float = 1.2e-2,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        matrices, rest = params
        self._adamw = AdamW([{"params": rest["params"]}], lr=adamw_lr, betas=betas, weight_decay=0.0)
        hidden = {**matrices, "lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([hidden, *self._adamw.param_groups], {})
        self.ranks = (0, 1)
        """This process, and how many have the same gradients and share the turning; who starts them says so."""
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """AdamW works on this optimizer's own group and state, so that both save, load and schedule as one."""
        self._adamw.param_groups = self.param_groups[1:]
        self._adamw.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all; `closure` recomputes the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._turn(self.param_groups[0])
        self._adamw.step()
        return loss

    @torch.no_grad()
    def _turn(self, group: dict[str, Any]) -> None:
        """Muon's update of the hidden matrices: many of one shape at a time, by each rank some."""
        rank, ranks = self.ranks
        parts = group.get("parts") or [1] * len(group["params"])
        matrices = [pair for pair in zip(group["params"], parts, strict=True) if pair[0].grad is not None]
        batches = alike(matrices, ranks)
        for first in range(0, len(batches), ranks):
            turns = [(batch, self._directions(*batch, group)) for batch in batches[first : first + ranks]]
            if rank < len(turns):
                turns[rank][1].copy_(orthogonal(turns[rank][1]))
            for owner, (batch, directions) in enumerate(turns):
                if ranks > 1:
                    dist.broadcast(directions, owner)
                self._move(*batch, directions, group)

    def _directions(self, matrices: list[Tensor], parts: int, group: dict[str, Any]) -> Tensor:
        """Where momentum and gradient lead the parts of matrices of one shape, `[matrices * parts, short, long]`."""
        towards = []
        for matrix in matrices:
            gradient, state = matrix.grad, self.state[matrix]
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            whole = cut(dtensor.whole(gradient.lerp(mean, group["momentum"]).bfloat16()), parts)
            towards.append(whole if whole.shape[1] <= whole.shape[2] else whole.mT)
        return torch.cat(towards)

    def _move(self, matrices: list[Tensor], parts: int, updates: Tensor, group: dict[str, Any]) -> None:
        """Move matrices along the updates of their parts, each rank the rows that it holds."""
        size = 0.2 * math.sqrt(updates.shape[2])
        for matrix, update in zip(matrices, torch.split(updates, parts), strict=True):
            whole = update if update.shape[1] == matrix.shape[0] else update.mT
            first, end = dtensor.own_rows(matrix)
            own = cut(dtensor.local(matrix), parts)
            own.mul_(1 - group["lr"] * group["weight_decay"]).add_(whole[:, first:end], alpha=-group["lr"] * size)


def alike(matrices: list[tuple[Tensor, int]], ranks: int = 1) -> list[tuple[list[Tensor], int]]:
    """Matrices, and how many parts each holds side by side, in lists for `orthogonal`: those whose parts have one
    shape, or its transpose, and so many that each of `ranks` processes, which take turns, has some."""
    found: dict[tuple[int, int, int, torch.device], list[Tensor]] = defaultdict(list)
    for matrix, parts in matrices:
        short, long = sorted((matrix.shape[0], matrix.shape[1] // parts))
        found[short, long, parts, matrix.device].append(matrix)
    batches = []
    for (short, long, parts, device), same in found.items():
        most = max(_AT_ONCE.get(device.type, _AT_ONCE["other"]) // (short * long * parts), 2)
        count = min(most, -(-len(same) // ranks))
        batches += [(same[first : first + count], parts) for first in range(0, len(same), count)]
    return batches


def cut(matrix: Tensor, parts: int) -> Tensor:
    """`[rows, parts * columns]` seen as `[parts, rows, columns]`."""
    return matrix.view(matrix.shape[0], parts, matrix.shape[1] // parts).movedim(1, 0)


def orthogonal(matrices: Tensor) -> Tensor:
    """`[count, rows, columns]` (rows <= columns) with singular values of about 1: five steps in bfloat16.

    A step is x <- (a + b g + c g^2) x with g = x x^T. Of long rows, two are taken at once, which is less to multiply.
    """
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    steps = 5
    if x.shape[2] >= 2 * x.shape[1]:
        x, steps = _two_steps(_two_steps(x)), 1
    for _ in range(steps):
        x = torch.baddbmm(x, _slope(x @ x.mT), x, beta=_A)
    return x


def _two_steps(x: Tensor) -> Tensor:
    """The second by what the first makes of g, (a + b g + c g^2)^2 g: all of this commutes.

    No more than two: rounding makes g's small values negative, each step has them grow twelvefold, and where they are
    near -1 the next one explodes.
    """
    gram = x @ x.mT
    slope = _slope(gram)
    half = torch.baddbmm(gram, slope, gram, beta=_A)
    after = _slope(torch.baddbmm(half, slope, half, beta=_A))
    slope.diagonal(dim1=1, dim2=2).add_(_A)
    return torch.bmm(torch.baddbmm(slope, after, slope, beta=_A), x)


def _slope(gram: Tensor) -> Tensor:
    """b g + c g^2"""
    return torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
