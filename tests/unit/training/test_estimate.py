"""The estimate of a step's memory, against sums that are known and against the layers really gone through."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from gpt2kit.checkpoint import checkpoint
from gpt2kit.training.estimate import MOMENTS, LiveTensors, checkpoint_bytes, estimate_step
from gpt2kit.training.module import GPT2Module

CPU = torch.device("cpu")


def model(n_layer: int = 2, **options: object) -> GPT2Module:
    return GPT2Module(
        **{"n_layer": n_layer, "n_head": 2, "n_embd": 64, "vocab_size": 500, "n_positions": 32, **options}  # type: ignore[arg-type]
    )


def test_what_is_alive_is_counted_once_and_forgotten_when_it_goes() -> None:
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
    passes, update = estimate_step(gpt2, (4, 32), "32-true", CPU).values()
    count = sum(p.numel() for p in gpt2.parameters())
    hidden = sum(p.numel() for p in gpt2.model.transformer.h.parameters() if p.dim() == 2)
    assert passes["weights"] == 4 * count and update["activations"] < 0.02 * 4 * count
    assert update["weights"] == pytest.approx(4 * count, rel=0.01) == update["gradients"]
    # Muon keeps one moment of the hidden matrices, AdamW two of the rest and a counter for each tensor.
    assert passes["optimizer state"] == pytest.approx(4 * hidden + 8 * (count - hidden), rel=0.01)
    assert checkpoint_bytes(gpt2) == pytest.approx(4 * count + passes["optimizer state"], rel=0.01)


def test_a_deep_model_on_few_tokens_has_its_peak_in_the_update() -> None:
    """Whichever moment is the peak, no part is below nothing, and each layer adds as much as another."""
    few, many = (
        [estimate_step(model(n), (1, 32), "32-true", CPU) for n in (4, 5, 6)],
        estimate_step(model(4), (64, 32), "32-true", CPU),
    )
    assert sum(few[0]["update"].values()) > sum(few[0]["passes"].values())
    assert sum(many["update"].values()) < sum(many["passes"].values())
    assert all(size >= 0 for step in few for moment in step.values() for size in moment.values())
    for moment in MOMENTS:
        four, five, six = (sum(step[moment].values()) for step in few)
        assert six - five == pytest.approx(five - four, rel=0.01)


def test_what_saves_memory_is_seen() -> None:
    def total(**options: object) -> int:
        batch = options.pop("batch", (16, 32))
        accumulate = options.pop("accumulate", 1)
        moments = estimate_step(model(4, **options), batch, "32-true", CPU, accumulate)  # type: ignore[arg-type]
        return max(sum(moment.values()) for moment in moments.values())

    whole = total()
    assert total(gradient_checkpointing=True) < 0.75 * whole
    assert total(batch=(8, 32)) < 0.7 * whole
    assert total(accumulate=2) > whole  # the first pass's gradients are there in the second


def test_the_model_is_left_as_it_was() -> None:
    gpt2 = model(4)
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    state = torch.get_rng_state()
    estimate_step(gpt2, (2, 32), "bf16-mixed", CPU)
    assert torch.equal(state, torch.get_rng_state()) and len(gpt2.model.transformer.h) == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in gpt2.state_dict().items())
    assert all(p.grad is None for p in gpt2.parameters())


def test_a_checkpoint_is_as_large_as_foretold(run: object) -> None:
    folder: Path = run.folder  # type: ignore[attr-defined]
    path = checkpoint.checkpoints(folder)[0]
    gpt2 = GPT2Module(**checkpoint.open(path).model.shape)
    assert path.stat().st_size == pytest.approx(checkpoint_bytes(gpt2), rel=0.6)  # tokenizer and settings weigh here
    assert path.stat().st_size > checkpoint_bytes(gpt2)
