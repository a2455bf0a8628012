from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import SMALL_SHAPE
from torch import Tensor

from gpt2kit.checkpoint import validation
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.lora import add_lora, lora_scale, merge_lora

MATRIX = "model.transformer.h.0.attn.c_attn"


def saved_state(model: GPT2) -> dict[str, Tensor]:
    """Return the tensors of a model by the names that checkpoints use."""
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.fixture
def model() -> GPT2:
    """A model with LoRA matrices that have been trained."""
    pytest.importorskip("peft", reason="optional: pip install peft")
    torch.manual_seed(1)
    model = GPT2(SMALL_SHAPE).eval()
    add_lora(model, 3, 12, train_embedding=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_new_matrices_change_nothing_and_are_the_only_trained_ones() -> None:
    pytest.importorskip("peft", reason="optional: pip install peft")
    model = GPT2(SMALL_SHAPE).eval()
    batch = torch.randint(0, 40, (2, 17))
    plain = model.nll(batch)[0]
    add_lora(model, 3, None, train_embedding=False)
    add_lora(model, 3, None, train_embedding=False)  # Lightning may call configure_model again
    assert torch.equal(plain, model.nll(batch)[0])
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in model.named_parameters())


def test_merged_weights_have_the_loss_of_the_trained_model(model: GPT2) -> None:
    batch = torch.randint(0, 40, (2, 17))
    state = merge_lora(saved_state(model), lora_scale(3, 12))
    validation.check_tensors(Path("a.ckpt"), SMALL_SHAPE, state)
    merged = GPT2.from_state(SMALL_SHAPE, validation.model_state(state))
    torch.testing.assert_close(merged.nll(batch)[0], model.nll(batch)[0])
    a, b = (model.state_dict()[f"{MATRIX[6:]}.lora_{letter}.default.weight"] for letter in "AB")
    assert torch.equal(state[f"{MATRIX}.weight"], model.state_dict()[f"{MATRIX[6:]}.base_layer.weight"] + 4 * (b @ a).T)


@pytest.mark.parametrize("bad", [torch.zeros(3, 7), torch.zeros(3), 3, None], ids=["size", "vector", "number", "none"])
def test_matrices_that_do_not_fit_are_refused(model: GPT2, bad: object) -> None:
    state = merge_lora({**saved_state(model), f"{MATRIX}.lora_A.default.weight": bad})
    with pytest.raises(CheckpointError, match=re.escape(f"tensor {MATRIX}")):
        validation.check_tensors(Path("a.ckpt"), SMALL_SHAPE, state)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'peft>=0\.18'"):
        add_lora(GPT2(SMALL_SHAPE), 3, None, train_embedding=False)
