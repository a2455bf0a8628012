"""The linear algebra of Muon: many matrices of one shape are made about orthogonal at once."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of a quintic with the steepest slope at 0: few steps, singular values of 0.7 to 1.2."""
_AT_ONCE = {"cpu": 1 << 20, "other": 1 << 26}
"""Numbers, in matrices of one shape, that are turned at once: on a CPU about what its caches hold."""


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
