"""Which tokens a model is given to predict which others: windows over a text, pure functions of their number.

Window w is given tokens `w * stride` to `w * stride + context - 1` and predicts those after each of them. What the
window before it has predicted counts only there: so each token but a store's first is predicted exactly once, and any
but the first `context - stride` of them from more than `context - stride` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Windows:
    """The windows of a text.

    Args:
        tokens: of the text, with the one that stands before it.
        context: tokens that the model sees at most.
        stride: tokens from one window's start to the next one's; the context for none to overlap.
    """

    tokens: int
    context: int
    stride: int

    @property
    def least_context(self) -> int:
        """Tokens that a prediction is made from, at least, once the text has so many."""
        return self.context - self.stride + 1

    def __len__(self) -> int:
        if self.tokens < 2:
            return 0
        return 1 + -(-max(self.tokens - 1 - self.context, 0) // self.stride)

    def span(self, number: int) -> tuple[int, int]:
        """The tokens of a window, inputs and targets: the first, and that behind the last."""
        start = number * self.stride
        return start, min(start + self.context + 1, self.tokens)

    def known(self, number: int) -> int:
        """Targets at the window's start that an earlier window has predicted."""
        return self.context - self.stride if number else 0

    def batches(self, batch_size: int) -> Iterator[range]:
        """Windows that have the same length and known targets, so that nothing is filled up, in order."""
        whole = len(self)
        if whole and self.span(whole - 1)[1] - self.span(whole - 1)[0] <= self.context:
            whole -= 1
        first = min(whole, 1 if self.known(1) else 0)
        if first:
            yield range(0, 1)
        for start in range(first, whole, batch_size):
            yield range(start, min(start + batch_size, whole))
        if whole < len(self):
            yield range(whole, whole + 1)

    def predicting(self, first: int, last: int) -> range:
        """The windows that predict the tokens `first` to `last - 1`."""
        return range(self._of(max(first, 1)), self._of(max(last - 1, 1)) + 1)

    def _of(self, token: int) -> int:
        return -(-max(token - self.context, 0) // self.stride)
