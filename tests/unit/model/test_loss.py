"""The chunked and the full loss against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2kit.data.order import IGNORE
from gpt2kit.model import loss

Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
    logits = (hidden.double() @ weight.double().T)[..., :size].flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")


def loss_and_gradients(head: Loss, dtype: torch.dtype, autocast: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(3, 7, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(64, 8, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 40, (3, 7))
    targets[0, 3:] = IGNORE
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        nll = head(hidden, weight, targets, 40)
    (nll / 3).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert not weight.grad[40:].any()  # rows beyond the vocabulary are padding
    return nll.detach().double(), hidden.grad.double(), weight.grad.double()


@pytest.mark.parametrize("chunk", [64, 64 * 5, 1 << 24])
@pytest.mark.parametrize("head", [loss.full_nll, loss.chunked_nll])
def test_loss_and_gradients_are_exact(head: Loss, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", chunk)
    for dtype, autocast, tolerance in (
        (torch.float64, False, 1e-12),
        (torch.float32, False, 1e-5),
        (torch.float32, True, 0.05),
    ):
        actual, expected = loss_and_gradients(head, dtype, autocast), loss_and_gradients(reference, dtype)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_no_gradient_is_computed_without_autograd() -> None:
    weight = torch.randn(64, 8, requires_grad=True)
    with torch.no_grad():
        nll = loss.chunked_nll(torch.randn(2, 4, 8), weight, torch.randint(0, 40, (2, 4)), 40)
    assert nll.grad_fn is None and nll > 0


def test_only_trained_tensors_get_a_gradient() -> None:
    """With frozen embeddings or LoRA these are the hidden states alone."""
    hidden, weight, targets = torch.randn(2, 4, 8), torch.randn(64, 8), torch.randint(0, 40, (2, 4))
    for number, (trained, frozen) in enumerate(((hidden, weight), (weight, hidden))):
        trained.requires_grad_(True)
        frozen.requires_grad_(False)
        nll = loss.chunked_nll(hidden, weight, targets, 40)
        assert nll.grad_fn.saved_tensors[1 - number] is None  # type: ignore[union-attr]
        grad = torch.autograd.grad(nll, trained)
        torch.testing.assert_close(grad, torch.autograd.grad(reference(hidden, weight, targets, 40), trained))


def test_a_second_backward_pass_works_and_a_second_derivative_is_refused() -> None:
    hidden, weight = torch.randn(2, 4, 8, requires_grad=True), torch.randn(64, 8, requires_grad=True)
    nll = loss.chunked_nll(hidden, weight, torch.randint(0, 40, (2, 4)), 40).square()
    first = torch.autograd.grad(nll, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(nll, (hidden, weight), create_graph=True)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="once_differentiable"):  # and not computed as if they were constants
        second[0].sum().backward()


@pytest.mark.parametrize("rows", [0, 2])
def test_rows_without_targets_have_no_gradient(rows: int) -> None:
    hidden, weight = torch.randn(rows, 4, 8, requires_grad=True), torch.randn(64, 8, requires_grad=True)
    nll = loss.chunked_nll(hidden, weight, torch.full((rows, 4), IGNORE), 40)
    nll.backward()
    assert nll == 0 and hidden.grad is not None and not hidden.grad.any() and not weight.grad.any()  # type: ignore[union-attr]


def test_sums_over_many_positions_do_not_overflow_float16() -> None:
    hidden = torch.full((1, 40_000, 2), 4.0, requires_grad=True)
    weight = torch.zeros(64, 2, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss.chunked_nll(hidden, weight, torch.zeros(1, 40_000, dtype=torch.long), 40).backward()
    assert weight.grad is not None and weight.grad.isfinite().all()
    assert weight.grad[0, 0].item() == pytest.approx(-40_000 * 4 * (1 - 1 / 40), rel=1e-2)
