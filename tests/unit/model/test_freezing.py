from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import SMALL_SHAPE
from torch.optim import Optimizer

from gpt2kit.errors import UserError
from gpt2kit.model.config import tensor_sizes
from gpt2kit.model.freezing import FrozenParameters, find_parameters
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.optim.adamw import AdamW, parameter_groups
from gpt2kit.optim.muon import Muon

NAMES = [name for name in tensor_sizes({**SMALL_SHAPE, "n_layer": 12}) if name != "lm_head.weight"]


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        ([], []),
        ([1], ["h.1."]),
        (["1"], ["h.1."]),
        (["9-10", 0], ["h.0.", "h.9.", "h.10."]),
        (["embeddings"], ["wte.", "wpe."]),
        (["layers", "ln_f"], ["h.", "ln_f."]),
        (["body"], ["wpe.", "h.", "ln_f."]),
        (["h.1.attn", "wpe"], ["h.1.attn.", "wpe."]),
    ],
)
def test_parts_name_parameters(parts: list[str | int], prefixes: list[str]) -> None:
    expected = [name for name in NAMES if name.removeprefix("transformer.").startswith(tuple(prefixes))]
    assert find_parameters(NAMES, parts) == expected


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("12", "the model has layers 0 to 11. Nearest: 11"),
        (99, "Nearest: 11"),
        ("3-1", "Nearest: 1-3"),
        ("0-99", "Nearest: 0-11"),
        ("9-12", "Nearest: 9-11"),
        ("50-60", "Nearest: 11"),
        pytest.param("9" * 5000, "no such part", id="long"),
        ("wt", "did you mean wte?"),
        ("embedding", "did you mean embeddings?"),
        ("h.12", "no such part"),
        ("", "no such part. Use a layer from 0 to 11"),
        (["nothing", "0-99"], "no such part"),
        (["nothing", "0-99"], "; model.freeze 0-99: the model has layers"),
        (["body", "wte"], "no parameter is left to train"),
    ],
)
def test_unknown_parts_are_refused_with_the_nearest_ones(part: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        find_parameters(NAMES, part)


def train(model: GPT2, frozen: FrozenParameters, optimizer: Optimizer, steps: range) -> set[str]:
    """Train a model for some steps and return the parameters that have changed."""
    before = {name: p.clone() for name, p in model.named_parameters()}
    for step in steps:
        optimizer.zero_grad()
        torch.manual_seed(step)
        model.nll(torch.randint(0, 40, (2, 17)))[0].backward()
        frozen.drop_gradients(step)
        optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


@pytest.mark.parametrize("optimizer_class", [AdamW, Muon])
@pytest.mark.parametrize("freeze", ["body", "embeddings", "layers"])
def test_frozen_parameters_are_neither_trained_nor_decayed(optimizer_class: type[AdamW | Muon], freeze: str) -> None:
    model = GPT2(SMALL_SHAPE)
    names = {name for name, _ in model.named_parameters()}
    frozen = FrozenParameters(model, freeze)
    optimizer = optimizer_class(parameter_groups(model))
    assert len([p for group in optimizer.param_groups for p in group["params"]]) == len(names) - len(frozen.names)
    assert train(model, frozen, optimizer, range(2)) == names - set(frozen.names)


@pytest.mark.parametrize("optimizer_class", [AdamW, Muon])
def test_parameters_frozen_for_some_steps_are_trained_from_then_on(optimizer_class: type[AdamW | Muon]) -> None:
    models = []
    for steps in (3, None):
        torch.manual_seed(1)
        model = GPT2(SMALL_SHAPE)
        frozen = FrozenParameters(model, "body", steps)
        optimizer = optimizer_class(parameter_groups(model))
        assert train(model, frozen, optimizer, range(3)) == {"transformer.wte.weight"}
        assert len(optimizer.state) == 1, "only the token embedding has a state"
        models.append(model)
    assert all(map(torch.equal, *(model.parameters() for model in models))), "as if they were frozen for good"
    model = GPT2(SMALL_SHAPE)
    frozen, names = FrozenParameters(model, "body", 3), {name for name, _ in model.named_parameters()}
    assert train(model, frozen, optimizer_class(parameter_groups(model)), range(4)) == names
