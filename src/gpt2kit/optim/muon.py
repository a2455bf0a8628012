"""Muon: momentum with orthogonalized updates, for many matrices of one shape at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from gpt2kit import dtensor
from gpt2kit.errors import refuse
from gpt2kit.optim.adamw import DEFAULT_DECAY, AdamW
from gpt2kit.ranges import range_problems

# Coefficients of a polynomial a x + b x^3 + c x^5 for each Newton-Schulz step. Together they bring singular values from
# 0.003 to 1 near 1. These are those of Polar Express (arXiv 2505.16932) for four steps, all but the last divided by
# powers of 1.01, so that rounding does not leave the interval in which the next step converges.
Polynomial = tuple[float, float, float]
_POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.138 / 1.01, -22.718 / 1.01**3, 16.329 / 1.01**5),
    (3.965 / 1.01, -2.837 / 1.01**3, 0.523 / 1.01**5),
    (3.489 / 1.01, -2.562 / 1.01**3, 0.502 / 1.01**5),
    (2.511, -1.852, 0.439),
)
# Five equal steps, which runs of earlier versions continue with.
_QUINTIC: tuple[Polynomial, ...] = ((3.4445, -4.7750, 2.0315),) * 5
POLYNOMIALS = {len(steps): steps for steps in (_POLAR_EXPRESS, _QUINTIC)}
# Elements to orthogonalize at once; on a CPU about what fits into its caches.
_CPU_BATCH, _GPU_BATCH = 1 << 20, 1 << 26


# The rates of a model that is at most this wide. Those of wider ones fall with the square root of the width, and with
# the width, as the output layer shares the embedding.
LR, ADAMW_LR, _WIDTH = 5e-3, 1.2e-2, 256


class Muon(Optimizer):
    """Muon for the hidden matrices, AdamW for the rest: fewer steps to the same loss than AdamW alone.

    Each matrix moves along its momentum with all singular values near 1 (four Newton-Schulz steps in bfloat16). Updates
    have AdamW's typical size, 0.2 per step and weight at lr 1, so learning rates are like AdamW's. They are the same
    for a transposed weight, as in GPT-2's layers. GPT-2 stores the queries, keys and values of all heads in one matrix;
    those of each head are orthogonalized separately, which takes less time (docs/experiments.md). The updates of each
    part are nearly those of `torch.optim.Muon`, computed in less time (bench/muon.py).

    Args:
        params: The two groups of `parameter_groups`.
        lr: Learning rate of the hidden matrices. auto: by the width of the model, and lower from pretrained weights.
        adamw_lr: Learning rate of embeddings, norms and biases. auto: in the same way.
        weight_decay: Weight decay of the hidden matrices. auto: by the number of passes over the text, else 0.1.
        momentum: Momentum of the hidden matrices.
        betas: AdamW's betas, for embeddings, norms and biases.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float | Literal["auto"] = "auto",
        adamw_lr: float | Literal["auto"] = "auto",
        weight_decay: float | Literal["auto"] = "auto",
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        options = {"lr": lr, "adamw_lr": adamw_lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas}
        refuse(range_problems({f"model.optimizer.{name}": value for name, value in options.items()}))
        matrices, rest = params
        # The options that the caller sets later: GPT2Module knows the width and the number of passes.
        self.automatic = {name for name, value in options.items() if value == "auto"}
        lr, adamw_lr = (LR if lr == "auto" else lr), (ADAMW_LR if adamw_lr == "auto" else adamw_lr)
        decay = DEFAULT_DECAY if weight_decay == "auto" else weight_decay
        self._adamw = AdamW([{"params": rest["params"]}], lr=adamw_lr, betas=betas, weight_decay=0.0)
        hidden = {**matrices, "lr": lr, "weight_decay": decay, "momentum": momentum}
        hidden["newton_schulz_steps"] = len(_POLAR_EXPRESS)  # saved with the group
        super().__init__([hidden, *self._adamw.param_groups], {})
        self.ranks = (0, 1)  # this rank, and how many have the same gradients and orthogonalize in turn
        self._share_with_adamw()

    @staticmethod
    def rates(width: int) -> dict[str, float]:
        """Return the learning rates that `auto` means for random weights."""
        scale = min(_WIDTH / width, 1.0)
        return {"lr": LR * math.sqrt(scale), "adamw_lr": ADAMW_LR * scale}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share_with_adamw()
        # Options that a checkpoint lacks get torch's defaults, as in its own AdamW.
        self._adamw.__setstate__({"state": self._adamw.state, "param_groups": self._adamw.param_groups})  # type: ignore[no-untyped-call]

    def _share_with_adamw(self) -> None:
        """Let AdamW use this optimizer's group and state, so that both save, load and schedule as one."""
        self._adamw.param_groups = self.param_groups[1:]
        self._adamw.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters; `closure` recomputes the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update_matrices(self.param_groups[0])
        self._adamw.step()
        return loss

    @torch.no_grad()
    def _update_matrices(self, group: dict[str, Any]) -> None:
        rank, ranks = self.ranks
        parts = group.get("parts") or [1] * len(group["params"])
        polynomials = POLYNOMIALS[group.get("newton_schulz_steps", len(_QUINTIC))]
        matrices = [pair for pair in zip(group["params"], parts, strict=True) if pair[0].grad is not None]
        batches = group_by_shape(matrices, ranks)
        for first in range(0, len(batches), ranks):
            # All ranks have the momenta of `ranks` batches; each orthogonalizes one batch and sends it to the others.
            round_batches = batches[first : first + ranks]
            updates = [self._momentum(*batch, group) for batch in round_batches]
            if rank < len(updates):
                updates[rank].copy_(orthogonalize(updates[rank], polynomials))
            for owner, (batch, update) in enumerate(zip(round_batches, updates, strict=True)):
                if ranks > 1:
                    dist.broadcast(update, owner)
                self._apply(*batch, update, group)

    def _momentum(self, matrices: list[Tensor], parts: int, group: dict[str, Any]) -> Tensor:
        """Return the Nesterov momentum of matrices of one shape, `[matrices * parts, short, long]` in bfloat16."""
        momenta = []
        for matrix in matrices:
            gradient, state = matrix.grad, self.state[matrix]
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            momentum = dtensor.full_tensor(gradient.lerp(mean, group["momentum"]).bfloat16())  # (rows, parts * columns)
            momentum = split_parts(momentum, parts)  # (parts, rows, columns)
            momenta.append(momentum if momentum.shape[1] <= momentum.shape[2] else momentum.mT)  # (parts, short, long)
        return torch.cat(momenta)

    def _apply(self, matrices: list[Tensor], parts: int, updates: Tensor, group: dict[str, Any]) -> None:
        """Decay and update matrices of one shape: on each rank, the rows that it holds."""
        # Singular values near 1 give weights of size 1 / sqrt(long); AdamW's updates have about 0.2.
        size = 0.2 * math.sqrt(updates.shape[2])
        for matrix, update in zip(matrices, torch.split(updates, parts), strict=True):
            update = update if update.shape[1] == matrix.shape[0] else update.mT  # (parts, rows, columns)
            first, end = dtensor.local_rows(matrix)
            weight = split_parts(dtensor.local_tensor(matrix), parts)  # (parts, local rows, columns), a view
            decay, rate = 1 - group["lr"] * group["weight_decay"], group["lr"] * size
            if weight.dtype not in (torch.bfloat16, torch.float16):
                weight.mul_(decay).add_(update[:, first:end], alpha=-rate)
                continue
            # In 16 bits a decay by less than 1 / 256 rounds to none, so what rounding loses is kept for the next step.
            state = self.state[matrix]
            if "rounding" not in state:
                state["rounding"] = torch.zeros_like(matrix)
            rounding = split_parts(dtensor.local_tensor(state["rounding"]), parts)
            exact = (weight.float() + rounding).mul_(decay).add_(update[:, first:end], alpha=-rate)
            weight.copy_(exact)
            rounding.copy_(exact - weight)


def group_by_shape(matrices: list[tuple[Tensor, int]], ranks: int = 1) -> list[tuple[list[Tensor], int]]:
    """Group matrices and their numbers of parts into batches whose parts have one shape or its transpose.

    A batch is small enough for the caches, and for each of `ranks` processes to get one.
    """
    groups: dict[tuple[int, int, int, torch.device], list[Tensor]] = defaultdict(list)
    for matrix, parts in matrices:  # (rows, parts * columns)
        short, long = sorted((matrix.shape[0], matrix.shape[1] // parts))
        groups[short, long, parts, matrix.device].append(matrix)
    batches = []
    for (short, long, parts, device), group in groups.items():
        elements = _CPU_BATCH if device.type == "cpu" else _GPU_BATCH
        size = min(max(elements // (short * long * parts), 2), math.ceil(len(group) / ranks))
        batches += [(group[first : first + size], parts) for first in range(0, len(group), size)]
    return batches


def split_parts(matrix: Tensor, parts: int) -> Tensor:
    """View `[rows, parts * columns]` as `[parts, rows, columns]`."""
    return matrix.view(matrix.shape[0], parts, matrix.shape[1] // parts).movedim(1, 0)


def orthogonalize(matrices: Tensor, polynomials: Sequence[Polynomial] = _POLAR_EXPRESS) -> Tensor:
    """Bring the singular values of `[count, rows, columns]` (rows <= columns) near 1, with a step for each polynomial.

    A step is x <- (a + b g + c g^2) x with g = x x^T, in bfloat16. For long rows, two steps at once need fewer
    multiplications.
    """
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # singular values are at most 1
    steps = list(polynomials)
    while len(steps) > 1 and x.shape[2] >= 2 * x.shape[1]:
        x = _two_steps(x, steps.pop(0), steps.pop(0))
    for a, b, c in steps:
        x = torch.baddbmm(x, _slope(x @ x.mT, b, c), x, beta=a)  # x @ x.mT: (count, rows, rows)
    return x


def _two_steps(x: Tensor, first: Polynomial, second: Polynomial) -> Tensor:
    """Take two steps at once: after the first, g is (a + b g + c g^2)^2 g, since all of these commute.

    Three at once would not be stable: rounding makes small eigenvalues of g negative, each step multiplies them by
    about twelve, and once they are near -1 the next step diverges.
    """
    a, b, c = first
    gram = x @ x.mT  # (count, rows, rows)
    slope = _slope(gram, b, c)
    half = torch.baddbmm(gram, slope, gram, beta=a)  # (a + b g + c g^2) g
    next_gram = torch.baddbmm(half, slope, half, beta=a)
    slope.diagonal(dim1=1, dim2=2).add_(a)  # a + b g + c g^2
    a, b, c = second
    return torch.bmm(torch.baddbmm(slope, _slope(next_gram, b, c), slope, beta=a), x)


def _slope(gram: Tensor, b: float, c: float) -> Tensor:
    """Return b g + c g^2."""
    return torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
