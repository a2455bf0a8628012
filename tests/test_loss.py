"""Both heads against float64 and against each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2kit import loss
from gpt2kit.blocks import IGNORE

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
@pytest.mark.parametrize("head", [loss.whole_nll, loss.chunked_nll])
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
