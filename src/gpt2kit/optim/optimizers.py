"""Who decays, and how the learning rate moves. An optimizer or a schedule is a class named in the config."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt2kit import dtensor
from gpt2kit.errors import UserError
from gpt2kit.optim.newton_schulz import alike, cut, orthogonal


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
