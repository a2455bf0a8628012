"""Who decays, and how the learning rate moves. An optimizer or a schedule is a class named in the config."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt2kit import sharded
from gpt2kit.errors import UserError


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups for any torch optimizer: the hidden matrices, which decay, and the rest, which never does.

    The rest is biases, norms and embeddings (the token embedding is also the output layer, once). `parts` says of each
    matrix how many it holds side by side: GPT-2 keeps those for queries, keys and values in one.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in trained.items() if p.ndim >= 2 and id(p) not in embeddings}
    parts = [3 if name.endswith("c_attn.weight") else 1 for name in matrices]
    rest = [p for name, p in trained.items() if name not in matrices]
    return [{"params": list(matrices.values()), "parts": parts}, {"params": rest, "weight_decay": 0.0}]


class AdamW(torch.optim.AdamW):
    """torch's AdamW, fused, with the defaults that suit a GPT.

    Args:
        params: parameter groups.
        lr: learning rate.
        betas: of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: of the hidden matrices.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


_AT_ONCE = {"cpu": 1 << 20, "other": 1 << 26}
"""Numbers, in matrices of one shape, that are turned at once: on a CPU about what its caches hold."""
_Member = tuple[Tensor, Tensor, int]
"""A matrix, its gradient, and how many parts it holds side by side."""


class Muon(Optimizer):
    """Muon for the hidden matrices, AdamW for the rest: fewer steps to the same loss than AdamW alone.

    Each matrix moves along its momentum with all singular values made about equal (five Newton-Schulz steps in
    bfloat16, matrices of one shape at once). Updates have AdamW's typical size, 0.2 a step and weight at lr 1, so
    learning rates are like AdamW's, transfer across widths, and do not depend on whether a layer keeps its matrix
    transposed (GPT-2's layers do). Beside `torch.optim.Muon`, which it equals for a matrix alone (a test says so), it
    splits the matrices that GPT-2 fuses; small ones take a quarter less of its time, large ones as much
    (bench/muon.py).

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
        """Muon's update of the hidden matrices, many of one shape at a time."""
        alike: dict[tuple[int, int, torch.device], list[_Member]] = defaultdict(list)
        for matrix, parts in zip(group["params"], group.get("parts") or [1] * len(group["params"]), strict=True):
            if (gradient := matrix.grad) is not None:
                short, long = sorted((matrix.shape[0], matrix.shape[1] // parts))
                alike[short, long, matrix.device].append((matrix, gradient, parts))
        for (short, long, device), members in alike.items():
            most = _AT_ONCE.get(device.type, _AT_ONCE["other"])
            count = max(most // (short * long * members[0][2]), 2)
            for first in range(0, len(members), count):
                self._turn_alike(members[first : first + count], group, 0.2 * math.sqrt(long))

    def _turn_alike(self, members: list[_Member], group: dict[str, Any], size: float) -> None:
        """Move each matrix (all parts of all have one shape) by steps of the rate times `size`."""
        own, towards = [], []
        for matrix, gradient, parts in members:
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            direction = sharded.whole(gradient.lerp(mean, group["momentum"]).bfloat16())
            rows = slice(*sharded.own_rows(matrix))
            for part, whole in zip(sharded.local(matrix).chunk(parts, 1), direction.chunk(parts, 1), strict=True):
                flat = whole.shape[0] <= whole.shape[1]
                own.append((part, (rows, slice(None))) if flat else (part.T, (slice(None), rows)))
                towards.append(whole if flat else whole.T)
        for (part, place), update in zip(own, orthogonal(torch.stack(towards)), strict=True):
            part.mul_(1 - group["lr"] * group["weight_decay"]).add_(update[place], alpha=-group["lr"] * size)


def orthogonal(matrices: Tensor) -> Tensor:
    """`[count, rows, columns]` (rows <= columns) with singular values of about 1, by Newton-Schulz in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315  # of a quintic with the steepest slope at 0: few steps, values of 0.7 to 1.2
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Schedule:
    """The learning rate's factor at each step, after a linear warmup. Subclass it and write `after`.

    Args:
        warmup: optimizer steps of linear rise (a whole number), or a share of all steps (a fraction such as 0.02).
    """

    def __init__(self, warmup: int | float = 0.02) -> None:
        if warmup < 0 or (isinstance(warmup, float) and warmup > 1):
            raise UserError(
                f"model.schedule warmup {warmup}: must be optimizer steps, such as 100, or a share of them all, "
                "from 0.0 to 1.0"
            )
        self.warmup = warmup

    def __call__(self, step: int, total: int) -> float:
        """Factor for optimizer step `step` of `total`, counted from 0."""
        rise = self.rise(total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return self.after(min((step - rise) / max(total - rise, 1), 1.0))

    def rise(self, total: int) -> int:
        """Optimizer steps of the warmup."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * total)

    def after(self, progress: float) -> float:
        """Factor after the warmup; `progress` goes from 0 to 1."""
        raise NotImplementedError(f"{type(self).__name__} has no `after`")

    def flat(self, total: int) -> int | None:
        """The step up to which, after the warmup, the factor is 1 whatever `total` is; None: there is none."""
        return None


class Constant(Schedule):
    """Stays at the full rate."""

    def after(self, progress: float) -> float:
        return 1.0

    def flat(self, total: int) -> int | None:
        return total


class Linear(Schedule):
    """Falls in a straight line.

    Args:
        warmup: optimizer steps of linear rise (a whole number), or a share of all steps (a fraction such as 0.02).
        final: the factor at the last step.
    """

    def __init__(self, warmup: int | float = 0.02, final: float = 0.0) -> None:
        super().__init__(warmup)
        self.final = final

    def after(self, progress: float) -> float:
        return 1 - (1 - self.final) * progress


class Cosine(Linear):
    """Falls along half a cosine: slowly, fast, slowly."""

    def after(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class WarmupStableDecay(Linear):
    """Stays at the full rate, then falls in a straight line over the last part of the run.

    Args:
        warmup: optimizer steps of linear rise (a whole number), or a share of all steps (a fraction such as 0.02).
        final: the factor at the last step.
        decay: the share of the steps after the warmup over which the rate falls.
    """

    def __init__(self, warmup: int | float = 0.02, final: float = 0.0, decay: float = 0.4) -> None:
        super().__init__(warmup, final)
        if not 0 <= decay <= 1:
            raise UserError(f"model.schedule decay {decay}: must be a share of the steps, from 0 to 1")
        self.decay = decay

    def after(self, progress: float) -> float:
        return super().after(max(progress - (1 - self.decay), 0.0) / max(self.decay, 1e-9))

    def flat(self, total: int) -> int | None:
        return (rise := self.rise(total)) + int((1 - self.decay) * (total - rise))
