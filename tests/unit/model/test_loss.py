"""Both heads against float64 and against each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2kit.data.order import IGNORE
from gpt2kit.model import loss

Head = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
    logits = (hidden.double() @ weight.double().T)[..., :size].flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")


def graded(head: Head, dtype: torch.dtype, autocast: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(3, 7, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(64, 8, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 40, (3, 7))
    targets[0, 3:] = IGNORE
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        nll = head(hidden, weight, targets, 40)
    (nll / 3).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert not weight.grad[40:].any()  # rows that are no tokens learn nothing
    return nll.detach().double(), hidden.grad.double(), weight.grad.double()


@pytest.mark.parametrize("chunk", [64, 64 * 5, 1 << 24])
@pytest.mark.parametrize("head", [loss.full_nll, loss.chunked_nll])
def test_loss_and_gradients_are_exact(head: Head, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", chunk)
    wanted = graded(reference, torch.float64)
    for found, value in zip(graded(head, torch.float64), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
    for found, value in zip(graded(head, torch.float32), graded(reference, torch.float32), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)
    for found, value in zip(graded(head, torch.float32, True), graded(reference, torch.float32), strict=True):
        torch.testing.assert_close(found, value, rtol=0.05, atol=0.05)


def test_chunks_need_no_gradient_where_none_is_asked() -> None:
    weight = torch.randn(64, 8, requires_grad=True)
    with torch.no_grad():
        nll = loss.chunked_nll(torch.randn(2, 4, 8), weight, torch.randint(0, 40, (2, 4)), 40)
    assert nll.grad_fn is None and nll > 0


def test_a_head_that_is_not_trained_costs_no_gradient() -> None:
    """Frozen embeddings, LoRA: only the hidden states get one; or only the weight does."""
    hidden, weight, targets = torch.randn(2, 4, 8), torch.randn(64, 8), torch.randint(0, 40, (2, 4))
    for number, (one, other) in enumerate(((hidden, weight), (weight, hidden))):
        one.requires_grad_(True)
        other.requires_grad_(False)
        nll = loss.chunked_nll(hidden, weight, targets, 40)
        assert nll.grad_fn.saved_tensors[1 - number] is None  # type: ignore[union-attr]
        found = torch.autograd.grad(nll, one)
        torch.testing.assert_close(found, torch.autograd.grad(reference(hidden, weight, targets, 40), one))


def test_gradients_may_be_asked_for_twice_but_not_of_gradients() -> None:
    hidden, weight = torch.randn(2, 4, 8, requires_grad=True), torch.randn(64, 8, requires_grad=True)
    nll = loss.chunked_nll(hidden, weight, torch.randint(0, 40, (2, 4)), 40).square()
    first = torch.autograd.grad(nll, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(nll, (hidden, weight), create_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="once_differentiable"):  # not silently as if they were constants
        again[0].sum().backward()


@pytest.mark.parametrize("rows", [0, 2])
def test_rows_without_any_target_teach_nothing(rows: int) -> None:
    hidden, weight = torch.randn(rows, 4, 8, requires_grad=True), torch.randn(64, 8, requires_grad=True)
    nll = loss.chunked_nll(hidden, weight, torch.full((rows, 4), IGNORE), 40)
    nll.backward()
    assert nll == 0 and hidden.grad is not None and not hidden.grad.any() and not weight.grad.any()  # type: ignore[union-attr]


def test_many_positions_of_a_small_vocabulary_do_not_overflow_float16() -> None:
    """A sum over a chunk of them would be Inf before any loss scale could help."""
    hidden = torch.full((1, 40_000, 2), 4.0, requires_grad=True)
    weight = torch.zeros(64, 2, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss.chunked_nll(hidden, weight, torch.zeros(1, 40_000, dtype=torch.long), 40).backward()
    assert weight.grad is not None and weight.grad.isfinite().all()
    assert weight.grad[0, 0].item() == pytest.approx(-40_000 * 4 * (1 - 1 / 40), rel=1e-2)
