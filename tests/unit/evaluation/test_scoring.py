from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gpt2kit.evaluation.scoring import Ranks, Windows

sizes = st.integers(1, 40).flatmap(
    lambda context: st.tuples(st.integers(0, 200), st.just(context), st.integers(1, context))
)


@given(sizes, st.integers(1, 9))
def test_windows_predict_each_token_after_the_first_once_with_enough_context(
    size: tuple[int, int, int], batch_size: int
) -> None:
    tokens, context, stride = size
    windows = Windows(tokens, context, stride)
    predicted = []
    for batch in windows.batches(batch_size):
        assert 1 <= len(batch) <= batch_size
        spans = [windows.span(number) for number in batch]
        assert len({(last - first, windows.known(n)) for n, (first, last) in zip(batch, spans, strict=True)}) == 1
        for number, (first, last) in zip(batch, spans, strict=True):
            assert first < last <= tokens and last - first <= context + 1
            new = range(first + 1 + windows.known(number), last)
            assert all(token - first >= min(windows.least_context, token) for token in new)
            assert all(token - first <= context for token in new)
            predicted += new
    assert predicted == list(range(1, tokens))


@given(sizes, st.data())
def test_the_windows_of_a_span_are_the_fewest_that_predict_it(size: tuple[int, int, int], data: st.DataObject) -> None:
    tokens, context, stride = size
    if tokens < 2:
        return
    windows = Windows(tokens, context, stride)
    first = data.draw(st.integers(1, tokens - 1))
    last = data.draw(st.integers(first + 1, tokens))
    numbers = windows.predicting(first, last)
    predicted: list[int] = []
    for number in numbers:
        predicted += range(windows.first_target(number), windows.span(number)[1])
    assert set(range(first, last)) <= set(predicted)
    assert all(windows.first_target(number) < last for number in numbers[1:])


def test_each_batch_is_scored_by_one_rank() -> None:
    batches = list(Windows(200, 16, 7).batches(4))
    by_rank = [list(Ranks(rank, 3).select(batches)) for rank in range(3)]
    assert sorted(itertools.chain(*by_rank), key=lambda batch: batch.start) == batches
