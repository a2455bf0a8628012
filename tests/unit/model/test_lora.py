from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import SMALL, Outcome, Run, final_weights, logged_rows, same_weights, train_run

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import export
from gpt2kit.cli import train as cli
from gpt2kit.errors import CheckpointError
from gpt2kit.model.finetuning import merge_lora
from gpt2kit.training.module import GPT2Module


@pytest.fixture(scope="module")
def words(run: Run, options: list[str]) -> list[str]:
    kept = [w for w in options if not w.startswith(("--model.", "--data.tokenizer", "--data.block_size"))]
    return [*kept, f"--model.init_from={run.folder}", "--model.lora_r=4", "--model.schedule=Constant", "--save_every=2"]


def test_what_is_opened_is_what_was_trained() -> None:
    torch.manual_seed(1)
    gpt2 = GPT2Module(**SMALL, lora_r=3).eval()
    batch = torch.randint(0, 40, (2, 17))
    plain = gpt2.model.nll(batch)[0]
    gpt2.configure_model()
    gpt2.configure_model()  # Lightning may call it again
    assert torch.equal(plain, gpt2.model.nll(batch)[0]), "no change to begin with"
    for name, parameter in gpt2.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    state = merge_lora({f"model.{name}": tensor for name, tensor in gpt2.model.state_dict().items()})
    opened = GPT2Module(**SMALL).eval()
    opened.load_state_dict(state, strict=True)
    torch.testing.assert_close(opened.model.nll(batch)[0], gpt2.model.nll(batch)[0])
    assert not torch.allclose(opened.model.nll(batch)[0], plain)


def test_a_run_trains_them_alone_and_resumes_exactly(run: Run, words: list[str], tmp_path: Path) -> None:
    straight = train_run(tmp_path / "straight", words, "--trainer.max_steps=6")
    halted = train_run(tmp_path / "halted", words, "--trainer.max_steps=2")
    resumed = train_run(tmp_path / "halted", words, "--trainer.max_steps=6", "--ckpt_path=last")
    assert halted == resumed and same_weights(final_weights(straight), final_weights(resumed))
    was, now = final_weights(run.folder), final_weights(straight)
    for name, tensor in was.items():
        kept = now.get(
            name, now.get(name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias"))
        )
        assert torch.equal(tensor, kept), name
    opened, source = checkpoint.open(straight), checkpoint.open(run.folder)
    moved = opened.model.transformer.h[0].attn.c_attn.weight - source.model.transformer.h[0].attn.c_attn.weight
    assert torch.linalg.matrix_rank(moved, tol=1e-4) == 4
    last = [row["val_bpb"] for row in logged_rows(straight) if "val_bpb" in row]
    assert last[0] == pytest.approx(logged_rows(run.folder)[-1]["val_bpb"], rel=1e-6) and last[-1] != last[0]
    export.export(str(straight), tmp_path / "model")
    again = train_run(
        tmp_path / "again", words, f"--model.init_from={straight}", "--model.lora_r=0", "--trainer.max_steps=1"
    )
    assert logged_rows(again)[0]["val_bpb"] == pytest.approx(last[-1], rel=1e-5), "a new run begins with the sum"
    with pytest.raises(CheckpointError, match=r"model\.lora_r or model"):
        train_run(tmp_path / "x", words, "--trainer.max_steps=8", f"--ckpt_path={straight}", "--model.lora_r=8")


def test_alpha_decides_the_scale(words: list[str], tmp_path: Path) -> None:
    folder = train_run(tmp_path, words, "--model.lora_alpha=12", "--trainer.max_steps=2")
    raw = checkpoint.read(checkpoint.find(folder))
    state, name = raw["state_dict"], "model.transformer.h.0.attn.c_attn"
    a, b = (state[f"{name}.lora_{letter}.default.weight"] for letter in "AB")
    expected = state[f"{name}.base_layer.weight"] + 3.0 * (b @ a).T  # alpha 12, rank 4
    assert torch.equal(checkpoint.open(folder).state["transformer.h.0.attn.c_attn.weight"], expected)
    with pytest.raises(CheckpointError, match=r"model\.lora_alpha"):
        train_run(tmp_path, words, "--trainer.max_steps=4", f"--ckpt_path={folder}", "--model.lora_alpha=4")
    for alpha in ("x", 0, True, float("inf")):
        raw["gpt2kit"]["freeze"]["lora_alpha"] = alpha
        torch.save(raw, tmp_path / "bad.ckpt")
        with pytest.raises(CheckpointError, match=r"lora_alpha .* is invalid"):
            checkpoint.open(tmp_path / "bad.ckpt")


def test_it_writes_while_it_trains_and_a_plan_counts_what_is_trained(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = "--trainer.callbacks+=gpt2kit.callbacks.TextSamples"
    folder = train_run(tmp_path, words, "--trainer.max_steps=2", samples)
    assert "step 2" in (folder / "samples.md").read_text()
    capsys.readouterr()
    cli.main([*words, "--trainer.max_steps=2", "--plan"])
    small = capsys.readouterr().out
    cli.main([*[w for w in words if "lora" not in w], "--trainer.max_steps=2", "--plan"])
    whole = capsys.readouterr().out
    sizes = [float(re.findall(r"checkpoints of ([\d.]+) MB", told)[0]) for told in (small, whole)]
    assert sizes[0] < 0.8 * sizes[1]


def test_a_strangers_adapters_are_looked_at(run: Run, words: list[str], tmp_path: Path) -> None:
    straight = train_run(tmp_path, words, "--trainer.max_steps=2")
    file = checkpoint.find(straight)
    raw = checkpoint.read(file)
    name = "model.transformer.h.0.attn.c_attn.lora_A.default.weight"
    for bad in (torch.zeros(4, 7), torch.zeros(4), 3, None):
        harmed = {**raw, "state_dict": {**raw["state_dict"], name: bad}}
        torch.save(harmed, tmp_path / "bad.ckpt")
        with pytest.raises(CheckpointError, match=r"tensor model\.transformer\.h\.0\.attn\.c_attn"):
            checkpoint.open(tmp_path / "bad.ckpt")


def test_mistakes(
    words: list[str], call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, inside: Path
) -> None:
    code, _, err = call(cli.main, *words, "--model.lora_r=-1", "--model.freeze=body")
    assert code == 2 and "model.lora_r -1: must not be negative" in err
    code, _, err = call(cli.main, *words, "--model.lora_r=0", "--model.lora_alpha=3")
    assert code == 2 and "model.lora_alpha 3.0: needs model.lora_r" in err
    code, _, err = call(cli.main, *words, "--model.lora_alpha=-1")
    assert code == 2 and "model.lora_alpha -1.0: must be above 0" in err
    code, _, err = call(cli.main, *words, "--model.freeze=body")
    assert code == 2 and "model.lora_r freezes all weights" in err
    code, _, err = call(cli.main, *words, "--model.init_from=null")
    assert code == 2 and "model.lora_r: needs model.init_from" in err
    monkeypatch.setitem(sys.modules, "peft", None)
    code, _, err = call(cli.main, *words, "--trainer.max_steps=1")
    assert code == 2 and "pip install 'peft>=0.18'" in err
