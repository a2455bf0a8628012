"""Dropout and GELU for CPUs."""

from __future__ import annotations

import pytest
import torch
from helpers import SMALL, SMALL_SHAPE
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2kit.model.cpu_layers import GELU, Dropout, dropout, gelu
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training.module import GPT2Module


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_a_fraction_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.ones(999, 1001, dtype=dtype, requires_grad=True)
    y = dropout(x, p, training=True)
    assert y.dtype == dtype
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
    assert y.double().mean().item() == pytest.approx(1, abs=0.01)
    tolerance = 1e-4 if dtype == torch.float32 else 0.004
    assert y.detach().unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=tolerance)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y), "the gradient is 0 or the scale, like the output"


def test_elements_that_share_a_random_draw_are_independent() -> None:
    torch.manual_seed(2)
    dropped = dropout(torch.ones(400_000), 0.3, training=True) == 0
    assert (dropped.view(-1, 4).double().mean(0) - 0.3).abs().max() < 0.01
    for distance in (1, 2, 3, 4):
        both = (dropped[distance:] & dropped[:-distance]).double().mean().item()
        assert both == pytest.approx(0.09, abs=0.003)


@pytest.mark.parametrize("size", [0, 1, 3, 5])
def test_dropout_works_for_any_number_of_elements(size: int) -> None:
    x = torch.ones(size)
    assert dropout(x, 0.5, training=True).shape == x.shape
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x


def test_dropout_depends_on_the_seed() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(1000), 0.5, training=True)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_other_devices_use_torchs_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    monkeypatch.setattr(F, "dropout", lambda x, p: (calls.append(p), x)[1])
    dropout(torch.ones(3, device="meta"), 0.5, training=True)
    assert calls == [0.5]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_gelu_equals_that_of_transformers(dtype: torch.dtype, tolerance: float) -> None:
    from transformers.activations import NewGELUActivation

    x = torch.linspace(-12, 12, 4001, dtype=dtype)
    expected = NewGELUActivation()(x.double())
    torch.testing.assert_close(gelu(x).double(), expected, rtol=tolerance, atol=tolerance)


def test_all_layers_of_a_model_are_replaced() -> None:
    layers = [part for part in GPT2(SMALL_SHAPE).modules() if isinstance(part, nn.Dropout)]
    assert layers and all(isinstance(part, Dropout) and part.p == 0.1 for part in layers)
    for name, is_replaced in (("gelu_new", True), ("relu", False), ("gelu", False)):
        model = GPT2({**SMALL_SHAPE, "activation_function": name})
        assert isinstance(model.transformer.h[0].mlp.act, GELU) is is_replaced


def test_recomputed_activations_draw_the_same_random_numbers() -> None:
    grads = []
    for recompute in (False, True):
        torch.manual_seed(4)
        gpt2 = GPT2Module(**SMALL, dropout=0.3, gradient_checkpointing=recompute)
        gpt2.model.use_attention("plain")
        torch.manual_seed(5)
        gpt2.model.nll(torch.arange(34).view(2, 17))[0].backward()
        grads.append(gpt2.model.transformer.h[0].mlp.c_fc.weight.grad)
    torch.testing.assert_close(*grads)
