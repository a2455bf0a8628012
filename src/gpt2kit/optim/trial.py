"""One step of an optimizer with tiny parameters, which shows what it accepts and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt2kit.errors import UserError, first_line

Groups = list[dict[str, Any]]


def tiny_groups(device: torch.device | None = None) -> Groups:
    """Return parameter groups as a model has them: one of a matrix, and one of a bias."""
    matrix, bias = (nn.Parameter(torch.zeros(size, device=device)) for size in ((2, 2), (2,)))
    return [{"params": [matrix], "parts": [1]}, {"params": [bias], "weight_decay": 0.0}]


def first_step(make: Callable[[Groups], Optimizer], groups: Groups) -> Optimizer:
    """Return the optimizer of these parameter groups after a step with gradients of 0."""
    for parameter in (parameter for group in groups for parameter in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make(groups)
    optimizer.step(lambda: 0.0)  # with a closure, as Lightning calls it
    return optimizer


def count_state(make: Callable[[Groups], Optimizer], device: torch.device) -> int:
    """Return how many numbers an optimizer keeps for each weight of a matrix.

    Raises UserError if it does not accept its options, a group of matrices and one of biases, or the device.
    """
    groups = tiny_groups(device)
    matrix = groups[0]["params"][0]
    try:
        optimizer = first_step(make, groups)
    except UserError:
        raise
    except Exception as error:  # of any class
        raise UserError(f"model.optimizer: {first_line(error)}. Change its options, or use another one") from error
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise UserError("model.optimizer.maximize true: the loss would rise. Omit it")
    return sum(isinstance(value, Tensor) and value.shape == matrix.shape for value in optimizer.state[matrix].values())
