"""Samples while training: there to be read, and without a trace in the training."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import train
from gpt2kit.errors import UserError
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.training import samples
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.samples import TextSamples, append_section, format_section, plain_state

CONFIG = """
trainer:
  callbacks:
    - class_path: gpt2kit.callbacks.TextSamples
      init_args: {prompts: ["the quick", "江南 🫨", ""], max_new_tokens: 12}
"""


def trained(work: Path, options: list[str], *more: str) -> Path:
    more = (*more, "--trainer.val_check_interval=4", f"--trainer.default_root_dir={work}")
    train.main([*options, *more])
    return work / "lightning_logs" / "version_0"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.checkpoints(run)[0])["state_dict"]


def test_weights_are_bit_equal_with_and_without(options: list[str], tmp_path: Path) -> None:
    config = tmp_path / "samples.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    without = trained(tmp_path / "without", options, "--trainer.max_steps=10")
    sampled = trained(tmp_path / "with", options, "--trainer.max_steps=10", f"--config={config}")
    one, other = weights(without), weights(sampled)
    assert all(torch.equal(one[name], other[name]) for name in one)
    text = (sampled / "samples.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## step")] == [
        line for line in text.splitlines() if line.startswith(("## step 4,", "## step 8,", "## step 10,"))
    ]
    assert text.count("    the quick") == text.count("    江南 🫨") == 3 == text.count("No prompt")
    assert "bits per byte" in text

    resumed = trained(tmp_path / "with", options, "--trainer.max_steps=14", f"--config={config}", "--ckpt_path=last")
    again = (resumed / "samples.md").read_text(encoding="utf-8")
    assert again.startswith(text.rstrip()) and again.count("## step") == 5


def test_neither_the_model_nor_any_generator_is_changed(corpus: Path) -> None:
    gpt2 = GPT2Module(n_layer=2, n_head=2, n_embd=32, vocab_size=320, n_positions=16, dropout=0.1).train()
    gpt2.model.use_attention("plain")
    kind = gpt2.model.config._attn_implementation
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    with samples.isolate_rng():
        first = TextSamples(["the"], max_new_tokens=8).generate(gpt2, tokenizers.load(corpus / "tokenizer"))
        second = TextSamples(["the"], max_new_tokens=8).generate(gpt2, tokenizers.load(corpus / "tokenizer"))
    assert first == second and first[0][0].startswith("the")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))
    assert gpt2.training and gpt2.model.training and gpt2.model.config._attn_implementation == kind
    assert all(torch.equal(before[name], tensor) for name, tensor in gpt2.state_dict().items())


def test_samples_read_the_weights_in_training_without_a_copy() -> None:
    gpt2 = GPT2Module(n_layer=1, n_head=2, n_embd=32, vocab_size=320, n_positions=16)
    state = plain_state(gpt2.state_dict())
    assert state.keys() == gpt2.model.state_dict().keys()
    for name, parameter in gpt2.model.named_parameters():
        assert state[name].data_ptr() == parameter.data_ptr()


def test_texts_cannot_pass_for_sections() -> None:
    hostile = "`a` \r## step 5, epoch\n## step 6, epoch 1\n\u2028## step 7\x00"
    section = format_section([hostile], [[hostile]], 3, 0.5, None)
    assert [match[1] for match in samples.folder.SECTION.finditer(section)] == ["3"]


def test_sections_of_a_way_not_taken_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "samples.md"
    for step, text in ((10, "a"), (20, "b"), (30, "c"), (20, "d")):
        append_section(path, step, format_section([""], [[text]], step, 0.1, 1.0))
    found = path.read_text(encoding="utf-8")
    assert [found.count(f"    {letter}\n") for letter in "abcd"] == [1, 0, 0, 1]


def test_wrong_wishes_are_refused() -> None:
    with pytest.raises(UserError, match=r"temperature -1.*num_samples 0"):
        TextSamples(["a"], temperature=-1, num_samples=0)
