"""Whole runs that start from the weights of another run or of a Hugging Face model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from helpers import (
    ROOT,
    Outcome,
    Run,
    final_weights,
    logged_rows,
    same_weights,
    train_run,
    train_tokenizer,
)
from proofs.kills import Setting, run_with_kills

from gpt2kit.checkpoint import checkpoint, initialize, paths
from gpt2kit.cli import parser, test, train
from gpt2kit.data import TextDataModule
from gpt2kit.tokenization import tokenizer
from gpt2kit.training.module import GPT2Module

EMBEDDINGS = ("model.transformer.wte.weight", "model.lm_head.weight")


@pytest.fixture(scope="module")
def bare(options: list[str]) -> list[str]:
    """The options without those that the weights decide: architecture, context, tokenizer."""
    decided = ("--model.n_layer", "--model.n_head", "--model.n_embd", "--data.tokenizer", "--data.block_size")
    return [option for option in options if not option.startswith(decided)]


@pytest.fixture(scope="module")
def characters(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tokenizer, of characters."""
    folder = tmp_path_factory.mktemp("characters")
    train_tokenizer([str(corpus / "train.txt")], folder, kind="char")
    return folder


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the trained run, as transformers writes it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("hf") / "model"
    source = checkpoint.open(run.folder)
    model = GPT2LMHeadModel(GPT2Config(**source.shape))
    rows = source.shape["vocab_size"]  # without the padding
    embeddings = {name.removeprefix("model."): source.state["transformer.wte.weight"][:rows] for name in EMBEDDINGS}
    model.load_state_dict(source.state | embeddings)
    model.save_pretrained(folder)
    tokenizer.save(source.tokenizer, folder)
    return folder


@pytest.mark.usefixtures("own_runs")
def test_an_exported_model_has_the_scores_of_its_checkpoint(
    run: Run, folder: Path, call: Callable[..., Outcome], inside: Path, corpus: Path
) -> None:
    def main(args: list[str]) -> None:
        parser.run(test.test, args)

    code, out, err = call(main, "--ckpt_path", run.folder, folder, "--json_output", "-")
    first, second = json.loads(out)["results"]
    assert code == 0 and f"{folder}: tested on the test text of" in err
    assert all(first[name] == second[name] for name in ("nll", "tokens", "interval_95"))
    assert second["difference"]["bits_per_byte"] == 0 and second["difference"]["interval_95"] == [0, 0]
    code, _, err = call(main, "--ckpt_path", folder)
    assert code == 2 and "Give text files as --files" in err


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_a_run_starts_from_the_weights(
    kind: str, run: Run, folder: Path, bare: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = {"run": run.folder, "folder": folder}[kind]
    arguments = [*bare, "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--save_every=1"]
    arguments += [f"--model.init_from={path}", "--model.freeze=[body]", "--model.freeze_steps=1"]
    if kind == "folder":
        arguments.append(f"--data.tokenizer={folder}")  # the weights' own tokenizer may be named
    new = train_run(tmp_path, arguments)
    source, first = checkpoint.open(run.folder), checkpoint.open(paths.checkpoints(new)[1])
    assert first.metadata["step"] == 1 and first.shape["n_layer"] == 2
    assert tokenizer.fingerprint(first.tokenizer) == tokenizer.fingerprint(source.tokenizer)
    changed = {name for name in source.state if not torch.equal(source.state[name], first.state[name])}
    assert changed == {"transformer.wte.weight", "lm_head.weight"}
    bits = {row["step"]: row["val_bpb"] for row in logged_rows(new) if "val_bpb" in row}
    assert bits[0] == pytest.approx(logged_rows(run.folder)[-1]["val_bpb"], rel=1e-6), "before the first step"
    output = capsys.readouterr().err
    assert f"before training: {bits[0]:.4f} bits per byte" in output and f"weights of {path}" in output
    assert f"{bits[0]:.4f} before training, {bits[2]:.4f} now" in output
    start = checkpoint.open(new).metadata["start"]
    assert start["from"] == str(path) and start["vocabulary"] is None and start["context"] == [16, 16]
    assert start["weights"] == initialize.hash_weights(source) and start["val_bpb"] == bits[0]
    assert start["tokens_seen"] == (40 * 8 * 16 if kind == "run" else None)


def test_text_that_the_weights_know_gets_lower_rates(
    run: Run, bare: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("".join(f"ZQ{n}#{n * n}@{n % 7}\n" for n in range(300)))
    bare = [option for option in bare if not option.startswith(("--model.optimizer", "--model.schedule"))]
    arguments = [*bare, f"--model.init_from={run.folder}", "--trainer.max_steps=1"]
    new = f"--data.train_files={foreign}"
    runs = {
        "known": [],
        "new": [new],
        "set": ["--model.optimizer.lr=0.004"],
        "adamw": ["--model.optimizer=gpt2kit.optim.AdamW", new],
    }
    rates = {}
    for name, more in runs.items():
        train.main([*arguments, *more, f"--trainer.default_root_dir={tmp_path}", f"--run_name={name}"])
        settings = yaml.safe_load((tmp_path / "lightning_logs" / name / "config.yaml").read_text())
        rates[name] = settings["model"]["optimizer"]["init_args"]
    own = checkpoint.open(run.folder).metadata["val_bpb"]
    note = r"learning rates x (\S+): (\S+) bits per byte before training, (\S+) on the weights' own text"
    notes = re.findall(note, capsys.readouterr().err)
    (known_factor, known_bits, known_own), (new_factor, new_bits, _), *_ = notes
    assert known_own == f"{own:.3f}" and float(known_bits) < 1.2 * own and float(new_bits) > 1.5 * own
    assert float(known_factor) < 0.5 and new_factor == "1"
    assert rates["new"]["lr"] == 5e-3 and rates["new"]["adamw_lr"] == 1.2e-2 and rates["adamw"]["lr"] == 2e-3
    assert rates["known"]["lr"] < 2.5e-3 and rates["known"]["adamw_lr"] < 6e-3
    assert rates["set"] == {**rates["known"], "lr": 4e-3}


def test_a_resumed_run_needs_neither_its_source_nor_the_tokenizer(run: Run, bare: list[str], tmp_path: Path) -> None:
    source = Path(shutil.copytree(run.folder, tmp_path / "source"))
    arguments = [option for option in bare if "cache_dir" not in option]
    arguments += [f"--data.cache_dir={tmp_path / 'cache'}", f"--model.init_from={source}", "--save_every=1"]
    arguments += ["--model.schedule=Constant", "--model.freeze=body", "--model.freeze_steps=3"]
    uninterrupted = train_run(tmp_path / "uninterrupted", arguments, "--trainer.max_steps=5")
    train_run(tmp_path / "stopped", arguments, "--trainer.max_steps=2")
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "cache")
    resumed = train_run(tmp_path / "stopped", arguments, "--trainer.max_steps=5", "--ckpt_path=last")
    assert same_weights(final_weights(uninterrupted), final_weights(resumed))
    expected, start = (checkpoint.open(folder).metadata["start"] for folder in (uninterrupted, resumed))
    assert expected == start and start["val_bpb"] is not None
    steps = [row["step"] for row in logged_rows(resumed) if "val_bpb" in row]
    assert steps.count(0) == 1, "only a new run is validated before its first step"


def test_a_run_from_nanogpt_resumes_with_the_same_command(
    bare: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = tmp_path / "letters.json"
    letters.write_text(json.dumps(list("\n abcdefghi")))
    nanogpt = ROOT / "tests/data/foreign/nanogpt.pt"
    arguments = [*bare, f"--model.init_from={nanogpt}", f"--data.tokenizer={letters}", "--data.block_size=8"]
    arguments += ["--trainer.callbacks=gpt2kit.callbacks.TextSamples", "--trainer.val_check_interval=1"]
    run = train_run(tmp_path, arguments, "--trainer.max_steps=1")
    assert "the vocabulary has no end-of-text token: documents follow each other" in capsys.readouterr().err
    assert "## step 1" in (run / "samples.md").read_text()
    assert train_run(tmp_path, arguments, "--trainer.max_steps=2", "--ckpt_path=last") == run
    trained = checkpoint.open(run)
    assert paths.step_of(trained.path) == 2 and trained.shape["activation_function"] == "gelu"
    assert tokenizer.size(trained.tokenizer) == 11 and tokenizer.find_eos(trained.tokenizer) is None
    assert [trained.tokenizer.id_to_token(i) for i in range(11)] == list("\n abcdefghi")
    assert trained.metadata["append_eos"] is False
    assert not torch.equal(trained.state["transformer.h.0.mlp.c_fc.bias"], torch.zeros(32)), "biases are trained"


def test_a_run_with_another_vocabulary(
    run: Run, bare: list[str], characters: Path, tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    arguments = [*bare, f"--model.init_from={run.folder}", f"--data.tokenizer={characters}"]
    arguments += [f"--trainer.default_root_dir={tmp_path}", "--trainer.val_check_interval=1"]
    code, _, err = call(train.main, *arguments, "--trainer.max_steps=1")
    size = tokenizer.size(tokenizer.load(characters))
    assert code == 2 and f"({size} tokens instead of 320)" in err and "--model.replace_tokenizer true" in err
    arguments.append("--model.replace_tokenizer=true")
    code, _, err = call(train.main, *arguments, "--trainer.max_steps=1")
    assert code == 0 and f"start  new vocabulary of {size} tokens: {size} are copied" in err
    new = checkpoint.open(tmp_path / "lightning_logs/version_0")
    assert new.shape["vocab_size"] == size and new.metadata["start"]["vocabulary"]["copied"] == size
    state = final_weights(tmp_path / "lightning_logs/version_0")
    assert torch.equal(*(state[name] for name in EMBEDDINGS))
    assert call(train.main, *arguments, "--trainer.max_steps=2", "--ckpt_path=last")[0] == 0


def test_weights_that_do_not_fit_are_refused_before_the_run_has_a_folder(
    run: Run, folder: Path, bare: list[str], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    arguments = [*bare, f"--trainer.default_root_dir={tmp_path}"]
    code, _, err = call(train.main, *arguments, f"--model.init_from={copy}")
    assert code == 4 and err.startswith("error: model.init_from: ") and "tensor" in err and err.count("\n") == 1
    code, _, err = call(train.main, *arguments, f"--model.init_from={run.folder}", "--model.n_layer=6")
    assert code == 2 and "model.n_layer 6: the weights of model.init_from have 2" in err
    assert not (tmp_path / "lightning_logs").exists()


def test_a_plain_lightning_trainer_loads_initial_weights(run: Run, corpus: Path, tmp_path: Path) -> None:
    source = checkpoint.open(run.folder)
    sizes = {name: source.shape[name] for name in ("n_layer", "n_head", "n_embd", "n_positions")}
    gpt2 = GPT2Module(**sizes, init_from=str(run.folder), compile="off")
    text = TextDataModule(
        [str(corpus / "train.txt")],
        [str(corpus / "valid.txt")],
        tokenizer=str(corpus / "tokenizer"),
        block_size=16,
        cache_dir=str(tmp_path),
    )
    trainer = pl.Trainer(max_steps=0, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(gpt2, text)
    assert gpt2.start is not None and gpt2.start["from"] == str(run.folder)
    assert all(torch.equal(tensor, source.state[name]) for name, tensor in gpt2.model.state_dict().items())


def test_two_ranks_start_from_the_same_weights(run: Run, bare: list[str], tmp_path: Path, characters: Path) -> None:
    arguments = [*bare, f"--model.init_from={run.folder}", "--trainer.max_steps=3", "--model.dropout=0"]
    arguments += [f"--data.tokenizer={characters}", "--model.replace_tokenizer=true", "--model.freeze=body"]
    arguments += ["--model.freeze_steps=2", "--model.optimizer=gpt2kit.optim.AdamW"]
    expected = final_weights(train_run(tmp_path / "one", arguments))
    two, _ = run_with_kills(Setting("two", [*arguments, "--data.batch_size=4"], 2), tmp_path / "two", [])
    assert (tmp_path / "two/log.txt").read_text().count("before training:") == 1
    weights = final_weights(two)
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(*(weights[name] for name in EMBEDDINGS))
