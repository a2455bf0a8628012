"""Dropout drops the share that it says, keeps the mean, and drops the same in the gradient; GELU is GPT-2's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2kit.model.cpu_layers import COMPILE_OPTIONS, GELU, Dropout, dropout, gelu
from gpt2kit.training.module import GPT2Module


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_and_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.ones(999, 1001, dtype=dtype, requires_grad=True)
    found = dropout(x, p, training=True)
    assert found.dtype == dtype
    gone = (found == 0).double().mean().item()
    assert gone == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
    assert found.double().mean().item() == pytest.approx(1, abs=0.01)
    assert found.detach().unique().tolist() == pytest.approx(
        [0, 1 / (1 - p)], rel=1e-4 if dtype == torch.float32 else 0.004
    )
    found.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, found), "what was dropped has no gradient, the rest has its own"


def test_each_element_is_drawn_by_itself() -> None:
    """Four come out of one draw: all of them, and neighbours, agree as often as chance has it."""
    torch.manual_seed(2)
    gone = dropout(torch.ones(400_000), 0.3, training=True) == 0
    assert (gone.view(-1, 4).double().mean(0) - 0.3).abs().max() < 0.01
    for apart in (1, 2, 3, 4):
        both = (gone[apart:] & gone[:-apart]).double().mean().item()
        assert both == pytest.approx(0.09, abs=0.003)


@pytest.mark.parametrize("size", [0, 1, 3, 5])
def test_any_number_of_elements(size: int) -> None:
    x = torch.ones(size)
    assert dropout(x, 0.5, training=True).shape == x.shape
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x


def test_the_seed_decides() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(1000), 0.5, training=True)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_compiled_it_draws_the_same() -> None:
    """Two layers in one graph: each has its own draws, the ones of without compiling, also in the gradient."""

    def two(x: Tensor) -> Tensor:
        return dropout(torch.sin(dropout(x, 0.5, True)) + 1, 0.25, True)

    def both(function: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        x = torch.linspace(1, 2, 4096, requires_grad=True)
        y = function(x)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]

    eager, compiled = both(two), both(torch.compile(two, dynamic=False, options=COMPILE_OPTIONS))
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, other)
    assert 0.3 < (eager[1] == 0).double().mean() < 0.8


def test_all_of_a_model_has_it() -> None:
    gpt2 = GPT2Module(n_layer=2, n_head=2, n_embd=8, dropout=0.2, vocab_size=64, n_positions=8)
    layers = [part for part in gpt2.modules() if isinstance(part, nn.Dropout)]
    assert layers and all(isinstance(part, Dropout) and part.p == 0.2 for part in layers)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-13), (torch.float32, 3e-6), (torch.bfloat16, 2**-7)])
def test_gelu_is_that_of_the_library(compiled: bool, dtype: torch.dtype, near: float) -> None:
    """The value and the slope, where it bends and where it is flat; also far out, where a cube overflows float16."""
    from transformers.activations import NewGELUActivation

    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -60.0, 60.0, 1e4])]).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    wanted = NewGELUActivation()(exact)
    found = (torch.compile(gelu, dynamic=False) if compiled else gelu)(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=near, atol=near)
    slopes = [torch.autograd.grad(y.sum(), at)[0].double() for y, at in ((found, x), (wanted, exact))]
    torch.testing.assert_close(*slopes, rtol=near, atol=near)


def test_only_gelu_new_is_replaced() -> None:
    for name, ours in (("gelu_new", True), ("relu", False), ("gelu", False)):
        gpt2 = GPT2Module(n_layer=1, n_head=2, n_embd=8, activation_function=name, vocab_size=64, n_positions=8)
        assert isinstance(gpt2.model.transformer.h[0].mlp.act, GELU) is ours


def test_gradients_by_recomputation_are_those_without() -> None:
    """Activations that are computed anew in the backward pass draw again what they drew."""
    grads = []
    for again in (False, True):
        torch.manual_seed(4)
        gpt2 = GPT2Module(
            n_layer=2, n_head=2, n_embd=8, dropout=0.3, vocab_size=64, n_positions=8, gradient_checkpointing=again
        )
        gpt2.model.use_attention("plain")
        torch.manual_seed(5)
        gpt2.model.nll(torch.arange(18).view(2, 9))[0].backward()
        grads.append(gpt2.model.transformer.h[0].mlp.c_fc.weight.grad)
    torch.testing.assert_close(*grads)


def test_it_is_as_torch_does_it_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(F, "dropout", lambda x, p: (seen.append(p), x)[1])
    dropout(torch.ones(3, device="meta"), 0.5, training=True)
    assert seen == [0.5]
