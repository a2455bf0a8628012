"""The estimated memory of a step, compared with known sums and between models."""

from __future__ import annotations

import gc

import pytest
import torch
from helpers import Run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.training.estimate import LiveTensors, checkpoint_bytes, estimate_step
from gpt2kit.training.module import GPT2Module

CPU = torch.device("cpu")


def model(n_layer: int = 2, **options: object) -> GPT2Module:
    return GPT2Module(
        **{"n_layer": n_layer, "n_head": 2, "n_embd": 64, "vocab_size": 500, "n_positions": 32, **options}  # type: ignore[arg-type]
    )


def test_each_storage_is_counted_once_until_it_is_freed() -> None:
    with LiveTensors(lambda tensor: "all") as live:
        a = torch.zeros(1000)
        b = a.view(10, 100).t()
        c = a + 1
        assert live.now["all"] == 8000
        del a, b
        gc.collect()
        assert live.now["all"] == 4000 and live.peak["all"] == 8000 and len(c) == 1000


def test_weights_and_optimizer_state_are_exact() -> None:
    gpt2 = model()
    passes, update = estimate_step(gpt2, (4, 32), "32-true", CPU)
    count = sum(p.numel() for p in gpt2.parameters())
    hidden = sum(p.numel() for p in gpt2.model.transformer.h.parameters() if p.dim() == 2)
    assert passes["weights"] == 4 * count and update["activations"] < 0.02 * 4 * count
    assert update["weights"] == pytest.approx(4 * count, rel=0.01) == update["gradients"]
    # Muon keeps one moment of the hidden matrices, AdamW two of the rest and a counter for each tensor.
    assert passes["optimizer state"] == pytest.approx(4 * hidden + 8 * (count - hidden), rel=0.01)
    assert checkpoint_bytes(gpt2) == pytest.approx(4 * count + passes["optimizer state"], rel=0.01)


def test_the_peak_is_in_the_update_or_in_the_passes_and_layers_add_equally() -> None:
    deep = [estimate_step(model(n), (1, 32), "32-true", CPU) for n in (2, 3, 4)]
    assert all(size >= 0 for step in deep for moment in step for size in moment.values())
    totals = [[sum(moment.values()) for moment in step] for step in deep]  # passes, update
    assert totals[0][1] > totals[0][0], "a deep model on few tokens"
    for two, three, four in zip(*totals, strict=True):
        assert four - three == pytest.approx(three - two, rel=0.01)
    passes, update = estimate_step(model(2), (64, 32), "32-true", CPU)
    assert sum(update.values()) < sum(passes.values()), "many tokens"


def test_options_that_save_memory_lower_the_estimate() -> None:
    def total(batch: tuple[int, int] = (16, 32), accumulate: int = 1, **options: object) -> int:
        moments = estimate_step(model(2, **options), batch, "32-true", CPU, accumulate)
        return max(sum(moment.values()) for moment in moments)

    default = total()
    assert total(gradient_checkpointing=True) < 0.75 * default
    assert total(batch=(8, 32)) < 0.7 * default
    assert total(accumulate=2) > default  # the gradients of the first pass exist during the second


def test_an_estimate_does_not_change_the_model() -> None:
    gpt2 = model()
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    state = torch.get_rng_state()
    estimate_step(gpt2, (2, 32), "bf16-mixed", CPU)
    assert torch.equal(state, torch.get_rng_state()) and len(gpt2.model.transformer.h) == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in gpt2.state_dict().items())
    assert all(p.grad is None for p in gpt2.parameters())


def test_the_size_of_a_checkpoint_is_estimated(run: Run) -> None:
    path = paths.checkpoints(run.folder)[0]
    size = checkpoint_bytes(GPT2Module(**checkpoint.open(path).model.shape))
    assert size < path.stat().st_size < 1.6 * size  # tokenizer and settings count in a model this small
