"""Who decays, and how the learning rate moves. An optimizer or a schedule is a class named in the config."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups for any torch optimizer: the hidden matrices, which decay, and the rest, which never does.

    The rest is biases, norms and embeddings (the token embedding is also the output layer, once).
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    hidden = {id(p) for p in matrices}
    rest = [p for p in trained if id(p) not in hidden]
    return [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]


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

    The matrices' updates are scaled to AdamW's typical size, so learning rates are like AdamW's, transfer across
    widths, and do not depend on whether a layer keeps its matrix transposed (GPT-2's layers do).

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
        lr: float = 1e-2,
        adamw_lr: float = 6e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        matrices, rest = params
        muon = torch.optim.Muon(
            [{"params": matrices["params"]}],
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = AdamW([{"params": rest["params"]}], lr=adamw_lr, betas=betas, weight_decay=0.0)
        self._parts: tuple[Optimizer, Optimizer] = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of both; `closure` recomputes the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def _share(self) -> None:
        """Both parts work on this optimizer's own groups and state, so that it saves, loads and schedules as one."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state


class Schedule:
    """The learning rate's factor at each step, after a linear warmup. Subclass it and write `after`.

    Args:
        warmup: optimizer steps of linear rise (a whole number), or a share of all steps (a fraction such as 0.02).
    """

    def __init__(self, warmup: int | float = 0.02) -> None:
        self.warmup = warmup

    def __call__(self, step: int, total: int) -> float:
        """Factor for optimizer step `step` of `total`, counted from 0."""
        rise = self.warmup if isinstance(self.warmup, int) else round(self.warmup * total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return self.after(min((step - rise) / max(total - rise, 1), 1.0))

    def after(self, progress: float) -> float:
        """Factor after the warmup; `progress` goes from 0 to 1."""
        raise NotImplementedError(f"{type(self).__name__} has no `after`")


class Constant(Schedule):
    """Stays at the full rate."""

    def after(self, progress: float) -> float:
        return 1.0


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
        self.decay = decay

    def after(self, progress: float) -> float:
        return super().after(max(progress - (1 - self.decay), 0.0) / max(self.decay, 1e-9))
