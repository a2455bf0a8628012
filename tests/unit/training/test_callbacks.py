"""The samples of TextSamples, without training; tests/system/test_training_callbacks.py has whole runs."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.seed import isolate_rng

from gpt2kit.data import TextDataModule
from gpt2kit.errors import UserError
from gpt2kit.runs import folder
from gpt2kit.tokenization import tokenizer
from gpt2kit.training.callbacks import EpochExports, TextSamples, append_section, format_section, plain_state
from gpt2kit.training.module import GPT2Module


def test_generation_changes_neither_the_model_nor_any_random_state(corpus: Path) -> None:
    gpt2 = GPT2Module(n_layer=2, n_head=2, n_embd=32, vocab_size=320, n_positions=16, dropout=0.1).train()
    gpt2.model.use_attention("plain")
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    with isolate_rng():
        first, second = (
            TextSamples(["the"], max_new_tokens=8).generate(gpt2, tokenizer.load(corpus / "tokenizer"))
            for _ in range(2)
        )
    assert first == second and first[0][0].startswith("the")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))
    assert gpt2.training and gpt2.model.training and gpt2.model.config._attn_implementation == "plain"
    assert all(torch.equal(before[name], tensor) for name, tensor in gpt2.state_dict().items())


def test_an_output_that_is_not_finite_gives_a_note_and_no_text(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    gpt2 = GPT2Module(n_layer=1, n_head=2, n_embd=32, vocab_size=320, n_positions=16)
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.mul_(1e38)
    text = TextDataModule([], tokenizer=str(corpus / "tokenizer"))
    trainer: Any = SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        global_step=3,
        callback_metrics={},
        lightning_module=gpt2,
        datamodule=text,
    )
    with caplog.at_level(logging.INFO, "gpt2kit"):
        TextSamples(["the"]).on_validation_end(trainer, gpt2)
    assert "samples: no text at step 3: current weights: the output of the model is NaN or infinite" in caplog.text


def test_samples_share_the_weights_in_training() -> None:
    gpt2 = GPT2Module(n_layer=1, n_head=2, n_embd=32, vocab_size=320, n_positions=16)
    state = plain_state(gpt2, gpt2.state_dict())
    assert state.keys() == gpt2.model.state_dict().keys()
    for name, parameter in gpt2.model.named_parameters():
        assert state[name].data_ptr() == parameter.data_ptr()


def test_generated_text_cannot_look_like_a_section() -> None:
    hostile = "`a` \r## step 5, epoch\n## step 6, epoch 1\n\u2028## step 7\x00\u202e"
    section = format_section([hostile], [[hostile]], 3, 0.5, None)
    assert [match[1] for match in folder.SECTION.finditer(section)] == ["3"]
    assert "\u2028" not in section and "<U+202E>" in section


def test_a_resumed_run_replaces_later_sections(tmp_path: Path) -> None:
    path = tmp_path / "samples.md"
    for step, text in ((10, "a"), (20, "b"), (30, "c"), (20, "d")):
        append_section(path, step, format_section([""], [[text]], step, 0.1, 1.0))
    content = path.read_text(encoding="utf-8")
    assert [content.count(f"    {letter}\n") for letter in "abcd"] == [1, 0, 0, 1]


def test_invalid_options_are_refused_together() -> None:
    with pytest.raises(UserError, match=r"temperature -1.*num_samples 0"):
        TextSamples(["a"], temperature=-1, num_samples=0)
    with pytest.raises(UserError, match="every 0: must be at least 1"):
        EpochExports(every=0)
