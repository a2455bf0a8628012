"""Whole runs that train a part of the model: frozen parameters, and LoRA."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Outcome, Run, final_weights, logged_rows, same_weights, train_run
from proofs.kills import Setting, run_with_kills

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import export, train
from gpt2kit.errors import CheckpointError
from gpt2kit.runs import lifecycle

HIDDEN = "model.transformer.h.0.ln_1.bias"  # 0 until it is trained


def optimizer_state(run: Path) -> dict[int, dict[str, torch.Tensor]]:
    return dict(checkpoint.read(paths.checkpoints(run)[0])["optimizer_states"][0]["state"])


@pytest.mark.parametrize("kind", ["Muon", "AdamW"])
def test_parameters_frozen_for_some_steps(kind: str, options: list[str], tmp_path: Path) -> None:
    arguments = [*options, f"--model.optimizer=gpt2kit.optim.{kind}", "--model.schedule=Constant", "--save_every=1"]
    arguments += ["--trainer.accumulate_grad_batches=2", "--data.batch_size=4", "--trainer.gradient_clip_val=0.5"]
    for_some_steps = [*arguments, "--model.freeze=body", "--model.freeze_steps=3"]
    forever = train_run(tmp_path / "forever", arguments, "--trainer.max_steps=3", "--model.freeze=body")
    stopped = train_run(tmp_path / "stopped", for_some_steps, "--trainer.max_steps=3")
    assert not final_weights(stopped)[HIDDEN].any() and len(optimizer_state(stopped)) == 1
    assert same_weights(final_weights(forever), final_weights(stopped))
    uninterrupted = train_run(tmp_path / "uninterrupted", for_some_steps, "--trainer.max_steps=5")
    assert final_weights(uninterrupted)[HIDDEN].any()
    second = paths.checkpoints(stopped)[1]
    assert paths.step_of(second) == 2, "resumed while the body is still frozen"
    resumed = train_run(tmp_path / "stopped", for_some_steps, "--trainer.max_steps=5", f"--ckpt_path={second}")
    assert same_weights(final_weights(uninterrupted), final_weights(resumed))
    expected, state = optimizer_state(uninterrupted), optimizer_state(resumed)
    assert all(torch.equal(expected[n][k], state[n][k]) for n in expected for k in expected[n])


def test_sharded_parameters_are_frozen_too(options: list[str], tmp_path: Path) -> None:
    """FSDP replaces the parameters after it is known which ones are frozen."""
    arguments = [*options, "--trainer.max_steps=2", "--data.batch_size=4"]
    arguments += ["--model.freeze=body", "--model.freeze_steps=2"]
    expected = final_weights(train_run(tmp_path / "one", arguments))
    sharded = Setting("sharded", [*arguments, "--data.batch_size=2"], 2, "fsdp")
    weights = final_weights(run_with_kills(sharded, tmp_path / "sharded", [])[0])
    assert not weights[HIDDEN].any()
    different = {name for name, tensor in expected.items() if not torch.equal(weights[name], tensor)}
    assert different == {"model.transformer.wte.weight", "model.lm_head.weight"}, "by the rounding of sums"


def test_another_shape_or_freeze_is_refused_on_resume(options: list[str], tmp_path: Path) -> None:
    run = train_run(tmp_path, options, "--trainer.max_steps=1", "--model.freeze=[0]")
    for option, message in (
        ("--model.n_layer=3", r"model\.n_layer was 2, now 3"),
        ("--model.freeze=[1]", r"other values of model\.freeze"),
        ("--model.freeze=[]", r"other values of model\.freeze"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train_run(tmp_path, options, "--trainer.max_steps=4", "--model.freeze=[0]", f"--ckpt_path={run}", option)
    with pytest.raises(CheckpointError, match="with these settings"):
        lifecycle.find_resumable("last", tmp_path / "lightning_logs", {"data": {}, "model": {"freeze": [1]}})


@pytest.fixture(scope="module")
def lora(run: Run, options: list[str]) -> list[str]:
    """The options of a LoRA run from the weights of the trained run."""
    decided = ("--model.", "--data.tokenizer", "--data.block_size")
    others = [option for option in options if not option.startswith(decided)]
    return [*others, f"--model.init_from={run.folder}", "--model.lora_r=4", "--model.schedule=Constant"]


def test_a_lora_run_trains_small_matrices_and_resumes_exactly(
    run: Run, lora: list[str], tmp_path: Path, reload_in_process: None
) -> None:
    arguments = [*lora, "--model.lora_alpha=12", "--save_every=2"]
    uninterrupted = train_run(tmp_path / "uninterrupted", arguments, "--trainer.max_steps=6")
    train_run(tmp_path / "stopped", arguments, "--trainer.max_steps=2")
    resumed = train_run(tmp_path / "stopped", arguments, "--trainer.max_steps=6", "--ckpt_path=last")
    weights = final_weights(uninterrupted)
    assert same_weights(weights, final_weights(resumed))
    for name, tensor in final_weights(run.folder).items():
        base_name = re.sub(r"\.(weight|bias)$", r".base_layer.\1", name)
        assert torch.equal(tensor, weights[base_name if base_name in weights else name]), name
    layer = "transformer.h.0.attn.c_attn"
    a, b = (weights[f"model.{layer}.lora_{letter}.default.weight"] for letter in "AB")
    merged = weights[f"model.{layer}.base_layer.weight"] + 3.0 * (b @ a).T  # alpha 12, rank 4
    assert torch.equal(checkpoint.open(uninterrupted).state[f"{layer}.weight"], merged)
    bits = [row["val_bpb"] for row in logged_rows(uninterrupted) if "val_bpb" in row]
    assert bits[0] == pytest.approx(logged_rows(run.folder)[-1]["val_bpb"], rel=1e-6) and bits[-1] != bits[0]
    export.export(str(uninterrupted), tmp_path / "model")
    next_run = [*lora, f"--model.init_from={uninterrupted}", "--model.lora_r=0", "--trainer.max_steps=1"]
    first_bits = logged_rows(train_run(tmp_path / "next", next_run))[0]["val_bpb"]
    assert first_bits == pytest.approx(bits[-1], rel=1e-5), "a new run starts from the merged weights"
    for option in ("--model.lora_r=8", "--model.lora_alpha=4"):
        with pytest.raises(CheckpointError, match=r"model\.lora_"):
            train_run(tmp_path / "x", arguments, "--trainer.max_steps=8", f"--ckpt_path={uninterrupted}", option)


def test_a_lora_run_generates_samples_and_its_plan_has_smaller_checkpoints(
    lora: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = "--trainer.callbacks+=gpt2kit.callbacks.TextSamples"
    folder = train_run(tmp_path, lora, "--trainer.max_steps=2", samples)
    assert "step 2" in (folder / "samples.md").read_text()
    sizes = []
    for arguments in (lora, [option for option in lora if "lora" not in option]):
        capsys.readouterr()
        train.main([*arguments, "--trainer.max_steps=2", "--plan"])
        sizes += [float(size) for size in re.findall(r"checkpoints of ([\d.]+) MB", capsys.readouterr().out)]
    assert sizes[0] < 0.8 * sizes[1]


def test_contradicting_options_are_reported_together(lora: list[str], call: Callable[..., Outcome]) -> None:
    code, _, err = call(train.main, *lora, "--model.freeze=body", "--model.freeze_steps=-1")
    assert code == 2 and "model.lora_r freezes all weights" in err and "model.freeze_steps -1: must be" in err
    assert err.count("error: ") == 1
