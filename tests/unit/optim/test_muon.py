"""Muon against torch's own, on one rank and on several."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import SMALL_SHAPE
from torch import Tensor, nn

from gpt2kit.model.gpt2 import GPT2
from gpt2kit.optim import muon
from gpt2kit.optim.adamw import parameter_groups
from gpt2kit.optim.muon import POLYNOMIALS, Muon, Polynomial, orthogonalize

# Rows and columns of matrices, and the number of parts side by side in each.
SHAPES = [(8, 8, 1), (8, 32, 1), (32, 8, 1), (8, 8, 1), (8, 24, 3), (8, 32, 1)]


class Comparison:
    """The same matrices under Muon and, each part by itself, under torch's Muon."""

    def __init__(self, shapes: list[tuple[int, int, int]]) -> None:
        torch.manual_seed(1)
        self.initial = [torch.randn(rows, columns) for rows, columns, _ in shapes]
        self.parts = [parts for *_, parts in shapes]
        self.matrices = [nn.Parameter(matrix.clone()) for matrix in self.initial]
        self.separate = [
            [nn.Parameter(part.clone()) for part in matrix.chunk(parts, 1)]
            for matrix, parts in zip(self.initial, self.parts, strict=True)
        ]
        groups = [{"params": self.matrices, "parts": self.parts}, {"params": [nn.Parameter(torch.zeros(3))]}]
        self.muon = Muon(groups, lr=0.02, weight_decay=0.1)
        self.muon.param_groups[0]["newton_schulz_steps"] = 5  # as torch's
        parts = [part for parts in self.separate for part in parts]
        self.torch_muon = torch.optim.Muon(
            parts, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )

    def step(self, seed: int) -> None:
        torch.manual_seed(seed)
        for matrix, separate in zip(self.matrices, self.separate, strict=True):
            matrix.grad = torch.randn_like(matrix)
            for part, gradient in zip(separate, matrix.grad.chunk(len(separate), 1), strict=True):
                part.grad = gradient.clone()
        self.muon.step()
        self.torch_muon.step()

    def assert_moved_like_torch(self) -> None:
        """Compare the changes with those under torch's Muon, up to the rounding of bfloat16."""
        for initial, matrix, separate in zip(self.initial, self.matrices, self.separate, strict=True):
            expected = torch.cat([part.detach() for part in separate], 1)
            assert (matrix - expected).norm() < 0.03 * (initial - expected).norm() != 0


@pytest.mark.parametrize("rows", [2, 8, 16])
def test_each_part_of_a_matrix_moves_as_under_torchs_muon(rows: int) -> None:
    comparison = Comparison([*SHAPES, (rows, 24, 3), (rows, 24, 3)])
    for step in range(4):
        comparison.step(step)
    comparison.assert_moved_like_torch()


def test_a_transposed_weight_gets_the_transposed_update() -> None:
    torch.manual_seed(1)
    weight, gradient = torch.randn(8, 24), torch.randn(8, 24)
    updated = []
    for flip in (False, True):
        p = nn.Parameter(weight.T.clone() if flip else weight.clone())
        p.grad = gradient.T.clone() if flip else gradient.clone()
        Muon([{"params": [p]}, {"params": [nn.Parameter(torch.zeros(1))]}]).step()
        updated.append(p.detach().T if flip else p.detach())
    assert torch.allclose(*updated, atol=1e-6)


def test_muon_and_its_adamw_are_saved_and_loaded_as_one_optimizer() -> None:
    def train(model: nn.Module, optimizer: Muon, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            ids = torch.randint(0, 40, (2, 8))
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()

    torch.manual_seed(1)
    uninterrupted = GPT2({**SMALL_SHAPE, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0})
    resumed = copy.deepcopy(uninterrupted)
    train(uninterrupted, Muon(parameter_groups(uninterrupted)), range(6))
    first = Muon(parameter_groups(resumed))
    train(resumed, first, range(3))
    saved = copy.deepcopy(first.state_dict())
    for name in ("maximize", "differentiable"):  # as in a checkpoint of a version of torch without these options
        del saved["param_groups"][1][name]
    second = Muon(parameter_groups(resumed), lr=1.0)
    second.load_state_dict(saved)
    train(resumed, second, range(3, 6))
    assert all(map(torch.equal, uninterrupted.parameters(), resumed.parameters()))


def single_steps(matrices: Tensor, dtype: torch.dtype, polynomials: Sequence[Polynomial]) -> Tensor:
    """Take Newton-Schulz steps as they are defined."""
    x = matrices.bfloat16().to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for a, b, c in polynomials:
        g = x @ x.mT
        x = a * x + (b * g + c * g @ g) @ x
    return x


@pytest.mark.parametrize("steps", POLYNOMIALS)
@pytest.mark.parametrize("columns", [64, 96, 256, 768])
def test_two_steps_at_once_are_as_exact_as_single_steps(columns: int, steps: int) -> None:
    """Matrices with few large singular values among small ones are the hardest."""
    torch.manual_seed(1)
    noise = torch.randn(3, 64, columns)
    large = 10 * torch.randn(3, 64, 4) @ torch.randn(4, columns)
    for matrices in (noise, large + noise, large + 0.1 * noise, large + 1e-3 * noise):
        exact = single_steps(matrices, torch.float64, POLYNOMIALS[steps])
        actual = orthogonalize(matrices, POLYNOMIALS[steps]).double()
        rounding = (single_steps(matrices, torch.bfloat16, POLYNOMIALS[steps]) - exact).norm()
        assert (actual - exact).norm() < 1.2 * rounding + 0.01 * exact.norm()
        assert torch.linalg.matrix_norm(actual, 2).max() < 1.25
    assert not orthogonalize(torch.zeros(2, 64, columns)).any()


SPECTRA = {
    "flat": lambda rows: torch.ones(rows),
    "falling": lambda rows: torch.logspace(0, -2, rows),
    "steep": lambda rows: torch.logspace(0, -6, rows),
    "one": lambda rows: torch.cat([torch.ones(1), torch.full((rows - 1,), 1e-3)]),
    "half": lambda rows: torch.cat([torch.ones(rows // 2), torch.full((rows - rows // 2,), 1e-3)]),
}


@pytest.mark.parametrize("steps", POLYNOMIALS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rows", [4, 16, 64])
def test_all_singular_values_stay_below_a_bound(rows: int, spectrum: str, steps: int) -> None:
    """Three steps at once would let some grow to 100,000, as in the gradients of LoRA's small matrices."""
    torch.manual_seed(1)
    left = torch.linalg.qr(torch.randn(100, rows, rows))[0] * SPECTRA[spectrum](rows)
    right = torch.linalg.qr(torch.randn(100, 4 * rows, rows))[0].mT
    updates = orthogonalize(left @ right, POLYNOMIALS[steps]).float()
    assert torch.linalg.matrix_norm(updates, 2).max() < 1.25


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_ranks_orthogonalize_in_turn(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each matrix is orthogonalized by one rank, and all ranks end with the same weights.

    In the first round each rank runs alone and what it broadcasts is recorded; in the second round it is delivered.
    """
    sent: dict[int, list[Tensor]] = {rank: [] for rank in range(ranks)}
    sizes: list[int] = []

    def orthogonalize_and_count(matrices: Tensor, polynomials: Sequence[Polynomial]) -> Tensor:
        sizes.append(len(matrices))
        return orthogonalize(matrices, polynomials)

    monkeypatch.setattr(muon, "orthogonalize", orthogonalize_and_count)
    comparisons = []
    for is_second_round in (False, True):
        for rank in range(ranks):
            received = {owner: iter(tensors) for owner, tensors in sent.items()}

            def broadcast(
                tensor: Tensor, owner: int, rank: int = rank, received: Any = received, deliver: bool = is_second_round
            ) -> None:
                if deliver and owner != rank:
                    tensor.copy_(next(received[owner]))
                elif not deliver and owner == rank:
                    sent[rank].append(tensor.clone())

            monkeypatch.setattr(muon.dist, "broadcast", broadcast)
            comparison = Comparison(SHAPES)
            comparison.muon.ranks = rank, ranks
            comparison.step(0)
            comparisons.append(comparison)
    assert sum(sizes) == 2 * (len(SHAPES) + 2), "each matrix by one rank, in both rounds"
    for comparison in comparisons[ranks:]:
        comparison.assert_moved_like_torch()
        assert all(map(torch.equal, comparison.matrices, comparisons[ranks].matrices))


def test_small_decay_is_not_lost_in_bfloat16() -> None:
    """1 - 5e-4 rounds to 1 in bfloat16; after 200 steps 10 % of the weight are gone."""
    torch.manual_seed(1)
    matrix = nn.Parameter(torch.randn(16, 16, dtype=torch.bfloat16))
    initial = matrix.detach().clone()
    optimizer = Muon(
        [{"params": [matrix], "parts": [1]}, {"params": [nn.Parameter(torch.zeros(3))]}], lr=5e-3, weight_decay=0.1
    )
    for _ in range(200):
        matrix.grad = torch.zeros_like(matrix)
        optimizer.step()
    torch.testing.assert_close(matrix.detach(), initial * (1 - 5e-4) ** 200, rtol=0.01, atol=0)
