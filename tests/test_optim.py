from __future__ import annotations

import copy

import pytest
import torch
from test_module import SHAPE
from torch import nn

from gpt2kit.errors import UserError
from gpt2kit.module import build
from gpt2kit.optim import AdamW, Constant, Cosine, Linear, Muon, Schedule, WarmupStableDecay, parameter_groups


def test_matrices_decay_biases_norms_and_embeddings_do_not() -> None:
    model = build(SHAPE)
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
    model = build(SHAPE)
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
    straight = build({**SHAPE, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0})
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
        (Linear(warmup=0.1, final=0.5), {4: 5 / 11, 10: 1.0, 55: 0.75, 100: 0.5}),
        (Cosine(warmup=0, final=0.1), {0: 1.0, 50: 0.55, 100: 0.1}),
        (WarmupStableDecay(warmup=0, decay=0.4), {0: 1.0, 60: 1.0, 80: 0.5, 100: 0.0, 500: 0.0}),
        (WarmupStableDecay(warmup=0, decay=0.0), {99: 1.0}),
    ],
)
def test_schedules(schedule: Schedule, table: dict[int, float]) -> None:
    for step, factor in table.items():
        assert schedule(step, 100) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [(Cosine, {"warmup": 200.0}), (Linear, {"warmup": -1}), (WarmupStableDecay, {"decay": 40})],
)
def test_a_schedule_that_would_never_reach_its_rate_is_refused(
    schedule: type[Schedule], options: dict[str, float]
) -> None:
    """A fraction of 200 is 200 times all steps, not 200 steps."""
    with pytest.raises(UserError, match=f"{next(iter(options))} "):
        schedule(**options)


def test_muon_is_torchs_muon_for_matrices_that_are_not_fused() -> None:
    """Ours turns matrices of one shape together; GPT-2's fused ones are split, which torch's knows nothing of."""
    torch.manual_seed(1)
    shapes = ((8, 8), (8, 32), (32, 8), (8, 8), (8, 24))
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours[:4]] + [
        nn.Parameter(part.clone()) for part in ours[4].detach().chunk(3, 1)
    ]
    bias = nn.Parameter(torch.zeros(3))
    one = Muon([{"params": ours, "parts": [1, 1, 1, 1, 3]}, {"params": [bias]}], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for p in ours:
            p.grad = torch.randn_like(p)
        for p, q in zip(ours[:4], theirs, strict=False):
            q.grad = p.grad
        for q, part in zip(theirs[4:], ours[4].grad.chunk(3, 1), strict=True):  # type: ignore[union-attr]
            q.grad = part
        one.step()
        other.step()
    for p, q in zip([*ours[:4], *ours[4].detach().chunk(3, 1)], theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-3, atol=1e-4)


def test_queries_keys_and_values_are_turned_apart() -> None:
    model = build(SHAPE)
    hidden = parameter_groups(model)[0]
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-2]: n for p, n in zip(hidden["params"], hidden["parts"], strict=True)} == {
        "c_attn": 3,
        "c_proj": 1,
        "c_fc": 1,
    }
