"""The linear algebra of Muon: many matrices of one shape are made about orthogonal at once."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

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
    """`[count, rows, columns]` (rows <= columns) with singular values of about 1, by Newton-Schulz in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315  # of a quintic with the steepest slope at 0: few steps, values of 0.7 to 1.2
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
