from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import SMALL, final_weights, same_weights, train_run
from proofs.kills import Setting, run_with_kills

from gpt2kit.checkpoint import checkpoint
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.model.finetuning import find_parameters
from gpt2kit.optim.adamw import AdamW, parameter_groups
from gpt2kit.optim.muon import Muon
from gpt2kit.runs import lifecycle
from gpt2kit.training.module import GPT2Module

DEEP = {**SMALL, "n_layer": 12}


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], []),
        ([1], ["h.1."]),
        (["1"], ["h.1."]),
        (["9-10", 0], ["h.0.", "h.9.", "h.10."]),
        (["embeddings"], ["wte.", "wpe."]),
        (["layers", "ln_f"], ["h.", "ln_f."]),
        (["body"], ["wpe.", "h.", "ln_f."]),
        (["h.1.attn", "wpe"], ["h.1.attn.", "wpe."]),
    ],
)
def test_words_name_parts(words: list[str | int], meant: list[str]) -> None:
    names = [name for name, _ in GPT2Module(**DEEP).model.named_parameters()]
    expected = [name for name in names if name.removeprefix("transformer.").startswith(tuple(meant))] if meant else []
    assert find_parameters(names, words) == expected


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("12", "the model has layers 0 to 11. Nearest: 11"),
        (99, "Nearest: 11"),
        ("3-1", "Nearest: 1-3"),
        ("0-99", "Nearest: 0-11"),
        ("9-12", "Nearest: 9-11"),
        ("50-60", "Nearest: 11"),
        pytest.param("9" * 5000, "no such part", id="long"),
        ("wt", "did you mean wte?"),
        ("embedding", "did you mean embeddings?"),
        ("h.12", "no such part"),
        ("", "no such part. Use a layer from 0 to 11"),
    ],
)
def test_what_is_no_part_is_refused_with_the_nearest(word: str | int, said: str) -> None:
    names = [name for name, _ in GPT2Module(**DEEP).model.named_parameters()]
    with pytest.raises(UserError, match=re.escape(said)):
        find_parameters(names, word)
    with pytest.raises(UserError, match=r"no such part.*; model\.freeze 0-99: the model has layers"):
        find_parameters(names, ["nothing", "0-99"])
    with pytest.raises(UserError, match="no parameter is left to train"):
        find_parameters(names, ["body", "wte"])


@pytest.mark.parametrize("kind", [AdamW, Muon])
@pytest.mark.parametrize("freeze", ["body", "embeddings", "layers"])
def test_frozen_for_good_is_not_in_the_optimizer_and_does_not_decay(kind: type, freeze: str) -> None:
    torch.manual_seed(1)
    gpt2 = GPT2Module(**SMALL, freeze=freeze)
    before = {name: p.clone() for name, p in gpt2.model.named_parameters()}
    optimizer = kind(parameter_groups(gpt2.model))
    assert len([p for group in optimizer.param_groups for p in group["params"]]) == len(before) - len(gpt2.frozen.names)
    for _ in range(2):
        gpt2.model.nll(torch.arange(34).reshape(2, 17))[0].backward()
        optimizer.step()
    changed = {name for name, p in gpt2.model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == set(before) - set(gpt2.frozen.names)


def states(run: Path) -> dict[int, dict[str, torch.Tensor]]:
    return dict(checkpoint.read(checkpoint.checkpoints(run)[0])["optimizer_states"][0]["state"])


@pytest.mark.parametrize("kind", ["Muon", "AdamW"])
def test_frozen_for_some_steps(kind: str, options: list[str], tmp_path: Path) -> None:
    """Nothing moves or decays before its step, gradients are summed only from then on, and a resume changes nothing."""
    words = [*options, f"--model.optimizer=gpt2kit.optim.{kind}", "--model.schedule=Constant", "--save_every=1"]
    words += ["--trainer.accumulate_grad_batches=2", "--data.batch_size=4", "--trainer.gradient_clip_val=0.5"]
    held = ["--model.freeze=body", "--model.freeze_steps=3"]
    never = train_run(tmp_path / "never", words, "--trainer.max_steps=3", "--model.freeze=body")
    start = GPT2Module(n_layer=2, n_head=2, n_embd=32, vocab_size=320, n_positions=16)
    for steps in (2, 3):
        early = train_run(tmp_path / f"halted{steps}", words, *held, f"--trainer.max_steps={steps}")
        found = final_weights(early)
        assert not found["model.transformer.h.0.ln_1.bias"].any(), "untouched"
        assert found.keys() == start.state_dict().keys()
        assert len(states(early)) == 1, "only the token embedding has a state"
    assert same_weights(final_weights(never), final_weights(early)), "held for three steps is frozen for three steps"
    straight = train_run(tmp_path / "straight", words, *held, "--trainer.max_steps=6")
    assert final_weights(straight)["model.transformer.h.0.ln_1.bias"].any()
    for steps in (2, 3):
        resumed = train_run(tmp_path / f"halted{steps}", words, *held, "--trainer.max_steps=6", "--ckpt_path=last")
        assert same_weights(final_weights(straight), final_weights(resumed))
        one, other = states(straight), states(resumed)
        assert all(torch.equal(one[n][k], other[n][k]) for n in one for k in one[n] if torch.is_tensor(one[n][k]))


def test_shares_are_held_as_a_whole_model_is(options: list[str], tmp_path: Path) -> None:
    """FSDP puts parameters of its own into the model, after it is known what is frozen."""
    words = [*options, "--trainer.max_steps=2", "--data.batch_size=4", "--model.freeze=body", "--model.freeze_steps=2"]
    whole = train_run(tmp_path / "whole", words)
    shares = Setting("shares", [*words, "--data.batch_size=2"], 2, "fsdp")
    run, _ = run_with_kills(shares, tmp_path / "shares", [])
    found, expected = final_weights(run), final_weights(whole)
    assert not found["model.transformer.h.0.ln_1.bias"].any(), "untouched"
    unlike = {name for name, tensor in expected.items() if not torch.equal(found[name], tensor)}
    assert unlike == {"model.transformer.wte.weight", "model.lm_head.weight"}, "which differ by the rounding of sums"


def test_another_shape_is_refused_before_its_weights_are_put_in(options: list[str], tmp_path: Path) -> None:
    run = train_run(tmp_path, options, "--trainer.max_steps=1")
    with pytest.raises(CheckpointError, match=r"model\.n_layer was 2, now 3"):
        train_run(tmp_path, options, "--trainer.max_steps=4", f"--ckpt_path={run}", "--model.n_layer=3")


def test_another_freeze_is_another_run(options: list[str], tmp_path: Path) -> None:
    run = train_run(tmp_path, options, "--trainer.max_steps=2", "--model.freeze=[0]")
    for other in ("--model.freeze=[1]", "--model.freeze=[]", "--model.freeze=[0,1]"):
        with pytest.raises(CheckpointError, match=r"another model.freeze"):
            train_run(tmp_path, options, "--trainer.max_steps=4", f"--ckpt_path={run}", other)
        with pytest.raises(CheckpointError, match="other settings"):
            lifecycle.find_resumable("last", tmp_path / "lightning_logs", {"data": {}, "model": {"freeze": other}})
