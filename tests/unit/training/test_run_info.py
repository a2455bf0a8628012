from __future__ import annotations

import pytest

from gpt2kit.training import run_info, run_summary
from gpt2kit.training.module import GPT2Module


def test_gpt2_small_has_its_known_number_of_parameters() -> None:
    gpt2 = GPT2Module(n_layer=12, n_head=12, n_embd=768, n_positions=1024)
    gpt2.take_vocabulary(50257, None)
    model = run_info.describe_model(gpt2)
    assert model["parameters"] == 124_439_808 and model["embeddings"] == (50257 + 1024) * 768


@pytest.mark.parametrize(
    ("unique_tokens", "tokens", "dropout", "advice"),
    [
        (1_000, 10_000, 0.0, "memorize it. Use a smaller one, dropout 0.1"),
        (1_000, 10_000, 0.1, "the text is small for this model, and dropout limits"),
        (9_000, 9_000, 0.0, "the model is large"),
        (100_000, 10_000, 0.0, "the run is short"),
        (10_000_000, 10_000_000, 0.0, "the model is small"),
        (200_000, 400_000, 0.1, "the sizes of model and text fit"),
    ],
)
def test_the_sizes_of_model_text_and_run_are_compared(
    unique_tokens: int, tokens: int, dropout: float, advice: str
) -> None:
    info = {
        "text": {"splits": {"train": {"tokens": unique_tokens}}},
        "run": {"tokens": tokens, "epochs": tokens / unique_tokens},
        "model": {"parameters": 10_000, "shape": {"resid_pdrop": dropout}},
    }
    assert advice in run_summary.compare_sizes(info)


def test_too_little_memory_is_reported_with_its_largest_part() -> None:
    memory = {"parts": {"weights": 5 * 10**9, "gradients": 0}, "total": 5 * 10**9, "free": 10**9, "machine": 2 * 10**9}
    lines = "\n".join(line for _, line in run_summary.memory_lines(memory))
    assert "MORE THAN IS FREE, most of it weights" in lines and "weights 5.00 GB" in lines and "gradients" not in lines
    unknown = run_summary.memory_lines({**memory, "free": None, "machine": None})
    assert unknown[0] == ("memory", "about 5.00 GB")
