from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import SMALL_SHAPE
from torch import Tensor, nn

from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.optim import muon
from gpt2kit.optim.adamw import AdamW, parameter_groups
from gpt2kit.optim.muon import Muon, orthogonalize
from gpt2kit.optim.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay


def test_matrices_decay_biases_norms_and_embeddings_do_not() -> None:
    model = GPT2(SMALL_SHAPE)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices, rest = (sorted(names[id(p)] for p in group["params"]) for group in parameter_groups(model))
    layer = [f"attn.{n}.weight" for n in ("c_attn", "c_proj")] + [f"mlp.{n}.weight" for n in ("c_fc", "c_proj")]
    assert matrices == sorted(f"transformer.h.{i}.{name}" for i in range(2) for name in layer)
    assert "transformer.wte.weight" in rest and "transformer.wpe.weight" in rest
    assert all(name.endswith(("bias", "wte.weight", "wpe.weight")) or ".ln_" in name for name in rest)
    assert len(matrices) + len(rest) == len(names)
    assert parameter_groups(model)[1]["weight_decay"] == 0.0


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_what_must_not_decay_does_not(kind: type) -> None:
    torch.manual_seed(1)
    model = GPT2(SMALL_SHAPE)
    before = copy.deepcopy(model.state_dict())
    optimizer = kind(parameter_groups(model))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.endswith("weight") and (".attn." in n or ".mlp." in n)}


def test_muon_saves_and_loads_as_one_optimizer() -> None:
    def train(model: nn.Module, optimizer: Muon, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            ids = torch.randint(0, 40, (2, 8))
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()

    torch.manual_seed(1)
    straight = GPT2({**SMALL_SHAPE, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0})
    halted = copy.deepcopy(straight)
    optimizer = Muon(parameter_groups(straight))
    train(straight, optimizer, range(6))
    first = Muon(parameter_groups(halted))
    train(halted, first, range(3))
    saved = copy.deepcopy(first.state_dict())
    second = Muon(parameter_groups(halted), lr=1.0)
    second.load_state_dict(saved)
    train(halted, second, range(3, 6))
    for one, other in zip(straight.parameters(), halted.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_is_indifferent_to_a_transposed_weight() -> None:
    torch.manual_seed(1)
    weight, gradient = torch.randn(8, 24), torch.randn(8, 24)
    updated = []
    for flip in (False, True):
        p = nn.Parameter(weight.T.clone() if flip else weight.clone())
        p.grad = gradient.T.clone() if flip else gradient.clone()
        Muon([{"params": [p]}, {"params": [nn.Parameter(torch.zeros(1))]}]).step()
        updated.append(p.detach().T if flip else p.detach())
    assert torch.allclose(*updated, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "table"),
    [
        (Constant(warmup=2), {0: 1 / 3, 1: 2 / 3, 2: 1.0, 99: 1.0}),
        (Linear(warmup=0), {0: 1.0, 50: 0.5, 100: 0.0}),
        (Linear(warmup=0.1, min_lr_ratio=0.5), {4: 5 / 11, 10: 1.0, 55: 0.75, 100: 0.5}),
        (Cosine(warmup=0, min_lr_ratio=0.1), {0: 1.0, 50: 0.55, 100: 0.1}),
        (WarmupStableDecay(warmup=0, decay_ratio=0.4), {0: 1.0, 60: 1.0, 80: 0.5, 100: 0.0, 500: 0.0}),
        (WarmupStableDecay(warmup=0, decay_ratio=0.0), {99: 1.0}),
    ],
)
def test_schedules(schedule: Schedule, table: dict[int, float]) -> None:
    for step, factor in table.items():
        assert schedule(step, 100) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [(Cosine, {"warmup": 200.0}), (Linear, {"warmup": -1}), (WarmupStableDecay, {"decay_ratio": 40})],
)
def test_a_schedule_that_would_never_reach_its_rate_is_refused(
    schedule: type[Schedule], options: dict[str, float]
) -> None:
    """A fraction of 200 is 200 times all steps, not 200 steps."""
    with pytest.raises(UserError, match=f"{next(iter(options))} "):
        schedule(**options)


SHAPES = [(8, 8, 1), (8, 32, 1), (32, 8, 1), (8, 8, 1), (8, 24, 3), (8, 32, 1)]
"""Rows, columns, and how many matrices side by side they are."""


def pair(shapes: list[tuple[int, int, int]]) -> tuple[list[nn.Parameter], Muon, list[nn.Parameter], torch.optim.Muon]:
    """The same matrices under ours and, each part by itself, under torch's."""
    torch.manual_seed(1)
    ours = [nn.Parameter(torch.randn(rows, columns)) for rows, columns, _ in shapes]
    parts = [parts for *_, parts in shapes]
    theirs = [nn.Parameter(q.clone()) for p, n in zip(ours, parts, strict=True) for q in p.detach().chunk(n, 1)]
    groups = [{"params": ours, "parts": parts}, {"params": [nn.Parameter(torch.zeros(3))]}]
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return ours, Muon(groups, lr=0.02, weight_decay=0.1), theirs, other


def draw(step: int, shapes: list[tuple[int, int, int]], ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    """The same gradients for both."""
    torch.manual_seed(step)
    alone = iter(theirs)
    for p, (*_, parts) in zip(ours, shapes, strict=True):
        p.grad = torch.randn_like(p)
        for gradient in p.grad.chunk(parts, 1):
            next(alone).grad = gradient.clone()


def assert_same(ours: list[Tensor], shapes: list[tuple[int, int, int]], theirs: list[nn.Parameter]) -> None:
    """They have moved alike, but for bfloat16's rounding."""
    alone = iter(theirs)
    for start, p, (*_, parts) in zip(pair(shapes)[0], ours, shapes, strict=True):
        joined = torch.cat([next(alone).detach() for _ in range(parts)], 1)
        assert (p - joined).norm() < 0.03 * (start - joined).norm() != 0


def five_steps(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Newton-Schulz as it is defined."""
    x = matrices.bfloat16().to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        g = x @ x.mT
        x = 3.4445 * x + (-4.7750 * g + 2.0315 * g @ g) @ x
    return x


@pytest.mark.parametrize("columns", [64, 96, 256, 768])
def test_many_steps_at_once_are_as_exact_as_one_by_one(columns: int) -> None:
    """Long rows go another way. Few large singular values among small ones are what that way is afraid of."""
    torch.manual_seed(1)
    noise = torch.randn(3, 64, columns)
    large = 10 * torch.randn(3, 64, 4) @ torch.randn(4, columns)
    for matrices in (noise, large + noise, large + 0.1 * noise, large + 1e-3 * noise):
        exact, found = five_steps(matrices, torch.float64), orthogonalize(matrices).double()
        rounded = (five_steps(matrices, torch.bfloat16) - exact).norm()
        assert (found - exact).norm() < 1.2 * rounded + 0.01 * exact.norm()
        assert torch.linalg.matrix_norm(found, 2).max() < 1.25
    assert not orthogonalize(torch.zeros(2, 64, columns)).any()


SPECTRA = {
    "flat": lambda rows: torch.ones(rows),
    "falling": lambda rows: torch.logspace(0, -2, rows),
    "steep": lambda rows: torch.logspace(0, -6, rows),
    "one": lambda rows: torch.cat([torch.ones(1), torch.full((rows - 1,), 1e-3)]),
    "half": lambda rows: torch.cat([torch.ones(rows // 2), torch.full((rows - rows // 2,), 1e-3)]),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rows", [4, 16, 64])
def test_no_singular_value_explodes(rows: int, spectrum: str) -> None:
    """Three steps at once make 100,000 of some: gradients of LoRA's small matrices were such."""
    torch.manual_seed(1)
    left = torch.linalg.qr(torch.randn(100, rows, rows))[0] * SPECTRA[spectrum](rows)
    right = torch.linalg.qr(torch.randn(100, 4 * rows, rows))[0].mT
    assert torch.linalg.matrix_norm(orthogonalize(left @ right).float(), 2).max() < 1.25


@pytest.mark.parametrize("rows", [2, 8, 16])
def test_muon_is_torchs_muon_for_each_part(rows: int) -> None:
    """Ours turns matrices of one shape together, and those in one matrix apart, be they wide, square or tall."""
    shapes = [*SHAPES, (rows, 24, 3), (rows, 24, 3)]
    ours, one, theirs, other = pair(shapes)
    for step in range(4):
        draw(step, shapes, ours, theirs)
        one.step()
        other.step()
    assert_same([*ours], shapes, theirs)


def test_queries_keys_and_values_are_turned_apart() -> None:
    model = GPT2(SMALL_SHAPE)
    hidden = parameter_groups(model)[0]
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)].split(".")[-2]: n for p, n in zip(hidden["params"], hidden["parts"], strict=True)}
    assert found == {"c_attn": 3, "c_proj": 1, "c_fc": 1}


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_ranks_share_the_turning(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turns some of the matrices, none twice, and all end with the same weights, those of one process alone."""
    sent: dict[int, list[Tensor]] = {rank: [] for rank in range(ranks)}
    turned: list[int] = []

    def counted(matrices: Tensor) -> Tensor:
        turned.append(len(matrices))
        return orthogonalize(matrices)

    monkeypatch.setattr(muon, "orthogonalize", counted)
    ended = []
    for receiving in (False, True):
        for rank in range(ranks):
            ours, one, theirs, other = pair(SHAPES)
            one.ranks = rank, ranks
            left = {owner: iter(tensors) for owner, tensors in sent.items()}

            def broadcast(
                tensor: Tensor, owner: int, rank: int = rank, left: Any = left, late: bool = receiving
            ) -> None:
                if owner != rank and late:
                    tensor.copy_(next(left[owner]))
                elif owner == rank and not late:
                    sent[rank].append(tensor.clone())

            monkeypatch.setattr(muon.dist, "broadcast", broadcast)
            draw(0, SHAPES, ours, theirs)
            one.step()
            other.step()
            ended.append([*map(torch.clone, ours)])
    assert sum(turned) == 2 * (len(SHAPES) + 2), "each matrix by one rank, in both rounds"
    for found in ended[ranks:]:
        assert_same(found, SHAPES, theirs)
        assert all(map(torch.equal, found, ended[ranks])), "to the bit"
