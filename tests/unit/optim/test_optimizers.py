from __future__ import annotations

import copy

import pytest
import torch
from helpers import SMALL_SHAPE

from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.optim.adamw import AdamW, parameter_groups
from gpt2kit.optim.muon import Muon
from gpt2kit.optim.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay


def test_only_hidden_matrices_are_in_the_group_that_decays() -> None:
    model = GPT2(SMALL_SHAPE)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices, rest = (sorted(names[id(p)] for p in group["params"]) for group in parameter_groups(model))
    layer = [f"attn.{n}.weight" for n in ("c_attn", "c_proj")] + [f"mlp.{n}.weight" for n in ("c_fc", "c_proj")]
    assert matrices == sorted(f"transformer.h.{i}.{name}" for i in range(2) for name in layer)
    assert "transformer.wte.weight" in rest and "transformer.wpe.weight" in rest
    assert all(name.endswith(("bias", "wte.weight", "wpe.weight")) or ".ln_" in name for name in rest)
    assert len(matrices) + len(rest) == len(names)
    assert parameter_groups(model)[1]["weight_decay"] == 0.0


def test_queries_keys_and_values_of_each_head_count_as_a_matrix() -> None:
    model = GPT2(SMALL_SHAPE)
    hidden = parameter_groups(model)[0]
    names = {id(p): name for name, p in model.named_parameters()}
    parts = {names[id(p)].split(".")[-2]: n for p, n in zip(hidden["params"], hidden["parts"], strict=True)}
    assert parts == {"c_attn": 3 * SMALL_SHAPE["n_head"], "c_proj": 1, "c_fc": 1}


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_weight_decay_changes_hidden_matrices_only(kind: type) -> None:
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
def test_schedules_return_these_factors(schedule: Schedule, table: dict[int, float]) -> None:
    for step, factor in table.items():
        assert schedule(step, 100) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [(Cosine, {"warmup": 200.0}), (Linear, {"warmup": -1}), (WarmupStableDecay, {"decay_ratio": 40})],
)
def test_fractions_above_one_are_refused(schedule: type[Schedule], options: dict[str, float]) -> None:
    """A warmup of 200.0 would be 200 times all steps, not 200 steps."""
    with pytest.raises(UserError, match=f"{next(iter(options))} "):
        schedule(**options)
