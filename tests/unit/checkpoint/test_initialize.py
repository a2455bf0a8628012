"""A run from weights: they are there, what was done is told, and a resume needs their source no more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from helpers import (
    ROOT,
    Outcome,
    Run,
    export_with_transformers,
    final_weights,
    logged_rows,
    same_weights,
    train_run,
    train_tokenizer,
)
from safetensors.torch import load_file, save_file

from gpt2kit.checkpoint import checkpoint, initialize
from gpt2kit.cli import train as cli
from gpt2kit.data import TextDataModule
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.vocabulary_transfer import map_vocabulary, resize_positions
from gpt2kit.tokenization import tokenizer
from gpt2kit.training.module import GPT2Module

SHAPE = ("--model.n_layer", "--model.n_head", "--model.n_embd")
TIED = ("model.transformer.wte.weight", "model.lm_head.weight")


@pytest.fixture(scope="module")
def bare(options: list[str]) -> list[str]:
    """The options without those that the weights decide: shape, context, tokenizer."""
    decided = (*SHAPE, "--data.tokenizer", "--data.block_size")
    return [word for word in options if not word.startswith(decided)]


@pytest.fixture(scope="module")
def other(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    train_tokenizer([str(corpus / "train.txt")], folder, kind="char")
    return folder


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_with_transformers(run, tmp_path_factory.mktemp("hf") / "model")


@pytest.mark.parametrize("source", ["run", "file", "folder"])
def test_a_run_begins_with_the_weights(
    source: str, run: Run, folder: Path, bare: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = {"run": run.folder, "file": checkpoint.find(run.folder), "folder": folder}[source]
    more = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--save_every=1", "--model.freeze_steps=1"]
    began = train_run(tmp_path, bare, *more, f"--model.init_from={path}", "--model.freeze=[body]")
    was = checkpoint.open(run.folder)
    first = checkpoint.open(checkpoint.checkpoints(began)[1])
    assert first.metadata["step"] == 1 and first.model.shape["n_layer"] == 2
    assert tokenizer.fingerprint(first.tokenizer) == tokenizer.fingerprint(was.tokenizer)
    before = was.model.state_dict()
    after = first.model.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {"transformer.wte.weight", "lm_head.weight"}
    validated = {row["step"]: row["val_bpb"] for row in logged_rows(began) if "val_bpb" in row}
    assert validated[0] == pytest.approx(logged_rows(run.folder)[-1]["val_bpb"], rel=1e-6), "before the first step"
    told = capsys.readouterr().err
    assert f"before training: {validated[0]:.4f} bits per byte" in told and f"weights of {path}" in told
    assert f"{validated[0]:.4f} before training, {validated[2]:.4f} now" in told
    facts = checkpoint.open(began).metadata["start"]
    assert facts["from"] == str(path) and facts["vocabulary"] is None and facts["context"] == [16, 16]
    assert facts["weights"] == initialize.hash_weights(was) and facts["val_bpb"] == validated[0]
    assert facts["tokens_seen"] == (40 * 8 * 16 if source != "folder" else None)


def test_a_resumed_run_needs_its_source_no_more(run: Run, bare: list[str], tmp_path: Path, other: Path) -> None:
    """Neither the weights nor the tokenizer: all is in the checkpoint."""
    source = Path(shutil.copytree(run.folder, tmp_path / "source"))
    words = [word for word in bare if "cache_dir" not in word] + [f"--data.cache_dir={tmp_path / 'cache'}"]
    words += [f"--model.init_from={source}", "--model.schedule=Constant", "--save_every=1"]
    words += ["--model.freeze=body", "--model.freeze_steps=3"]
    straight = train_run(tmp_path / "straight", words, "--trainer.max_steps=5")
    halted = train_run(tmp_path / "halted", words, "--trainer.max_steps=2")
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "cache")
    resumed = train_run(tmp_path / "halted", words, "--trainer.max_steps=5", "--ckpt_path=last")
    assert resumed == halted and same_weights(final_weights(straight), final_weights(resumed))
    one, two = (checkpoint.open(folder).metadata for folder in (straight, resumed))
    assert one["start"] == two["start"] and one["start"]["val_bpb"] is not None
    steps = [row["step"] for row in logged_rows(resumed) if "val_bpb" in row]
    assert steps.count(0) == 1, "only a new run is validated before its first step"


def test_another_vocabulary_must_be_wanted(
    run: Run, bare: list[str], other: Path, tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    words = [*bare, f"--model.init_from={run.folder}", f"--data.tokenizer={other}", "--trainer.max_steps=2"]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.val_check_interval=1"]
    code, _, err = call(cli.main, *words)
    size = tokenizer.size(tokenizer.load(other))
    assert code == 2 and f"({size} tokens instead of 320)" in err and "--model.replace_tokenizer true" in err
    code, _, err = call(cli.main, *words, "--model.replace_tokenizer=true")
    assert code == 0 and f"start  new vocabulary of {size} tokens: {size} are copied" in err
    began = checkpoint.open(tmp_path / "lightning_logs/version_0")
    assert began.model.shape["vocab_size"] == size and began.metadata["start"]["vocabulary"]["copied"] == size
    state = final_weights(tmp_path / "lightning_logs/version_0")
    assert torch.equal(*(state[name] for name in TIED))
    code, _, err = call(cli.main, *words[:-1], "--model.replace_tokenizer=true", "--ckpt_path=last")
    assert code == 0, "a moved run is resumed like any other"


def test_the_tokenizer_of_the_weights_may_be_named(run: Run, folder: Path, bare: list[str], tmp_path: Path) -> None:
    began = train_run(
        tmp_path, bare, f"--model.init_from={folder}", f"--data.tokenizer={folder}", "--trainer.max_steps=1"
    )
    assert checkpoint.open(began).metadata["start"]["vocabulary"] is None


@pytest.mark.parametrize(
    ("size", "told"), [(8, "context 8 instead of 16 tokens"), (24, "context 24 instead of 16 tokens")]
)
def test_another_context_is_said(
    size: int, told: str, run: Run, bare: list[str], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    words = [*bare, f"--model.init_from={run.folder}", f"--data.block_size={size}", "--trainer.max_steps=1"]
    code, _, err = call(cli.main, *words, f"--trainer.default_root_dir={tmp_path}", "--model.freeze=[embeddings]")
    assert code == 0 and told in err
    began = checkpoint.open(tmp_path / "lightning_logs/version_0")
    was = checkpoint.open(run.folder).model.transformer.wpe.weight
    found = began.model.transformer.wpe.weight
    assert found.shape == (size, 32) and began.metadata["start"]["context"] == [16, size]
    assert torch.equal(found, resize_positions(was, size)) and torch.equal(found[0], was[0])


def missing(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if "h.1.mlp" not in name}, folder / "model.safetensors")


def architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))


def misfit(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [(missing, "is missing"), (architecture, "of type 'llama'"), (misfit, "tensor"), (shutil.rmtree, "no such")],
)
def test_weights_that_do_not_fit_are_refused(
    harm: Callable[[Path], None],
    message: str,
    folder: Path,
    bare: list[str],
    tmp_path: Path,
    call: Callable[..., Outcome],
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    harm(copy)
    code, _, err = call(cli.main, *bare, f"--model.init_from={copy}", f"--trainer.default_root_dir={tmp_path}")
    assert code == 4 and err.startswith("error: model.init_from: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "lightning_logs").exists()


def test_a_hub_name_without_a_network(bare: list[str], inside: Path, call: Callable[..., Outcome]) -> None:
    code, _, err = call(cli.main, *bare, "--model.init_from=hf://some/model")
    assert code == 4 and "model.init_from: some/model: no such folder, and not available from the hub" in err
    assert err.count("\n") == 1


def test_sizes_that_are_not_the_weights_are_refused(run: Run, bare: list[str], call: Callable[..., Outcome]) -> None:
    words = [*bare, f"--model.init_from={run.folder}"]
    code, _, err = call(cli.main, *words, "--model.n_layer=6", "--model.n_embd=64")
    assert code == 2 and "model.n_layer 6: the weights of model.init_from have 2" in err and "model.n_embd 64" in err
    code, _, err = call(cli.main, *bare, "--model.replace_tokenizer=true")
    assert code == 2 and "needs model.init_from" in err
    code, _, err = call(cli.main, *bare, "--model.freeze_steps=-1")
    assert code == 2 and "model.freeze_steps -1: must not be negative" in err


def test_a_trainer_of_lightnings_own_loads_initial_weights(run: Run, corpus: Path, tmp_path: Path) -> None:
    """Without trainer.py: random weights are never taken for those that were asked for."""
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
    for name, tensor in gpt2.model.state_dict().items():
        assert torch.equal(tensor, source.state[name]), name


def logits(model: GPT2, embeddings: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(inputs_embeds=embeddings[None], use_cache=False).logits[0]
    return found


def test_loaded_weights_give_the_logits_of_their_source(run: Run, tmp_path: Path) -> None:
    """To the bit, also after they were saved and loaded again; and what is trained of them is not the source's."""
    source = checkpoint.open(run.folder)
    model = GPT2(source.shape)
    _, lines = initialize.load_initial_weights(model, source, source.tokenizer, str(run.folder))
    assert lines == [f"weights of {run.folder}"]
    torch.save(model.state_dict(), tmp_path / "state.pt")
    again = GPT2(source.shape)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    embeddings = source.model.transformer.wte.weight[:16].detach()
    expected = logits(source.model, embeddings)
    assert torch.equal(logits(model, embeddings), expected) and torch.equal(logits(again, embeddings), expected)
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
    assert torch.equal(logits(source.model, embeddings), expected)


@pytest.mark.parametrize("size", [8, 16, 24])
def test_copied_tokens_keep_their_logits_in_another_vocabulary_and_context(run: Run, other: Path, size: int) -> None:
    """The layers are copied, and a token's input and output rows are the same one."""
    source, new = checkpoint.open(run.folder), tokenizer.load(other)
    model = GPT2({**source.shape, "vocab_size": tokenizer.size(new), "n_positions": size})
    initialize.load_initial_weights(model, source, new, str(run.folder), replace_tokenizer=True)
    mapping = map_vocabulary(new, source.tokenizer)
    pairs = [(i, ids[0]) for i, ids in enumerate(mapping.old_ids) if len(ids) == 1][:8]
    new_ids, old_ids = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    ours, theirs = model.transformer, source.model.transformer
    moved = theirs.wpe.weight[: len(pairs)] - ours.wpe.weight[: len(pairs)]  # other contexts have other positions
    found = logits(model, (ours.wte(new_ids) + moved).detach())[:, new_ids]
    torch.testing.assert_close(found, logits(source.model, theirs.wte(old_ids).detach())[:, old_ids])
    assert model.lm_head.weight is ours.wte.weight


def test_two_ranks_begin_with_the_same_weights(run: Run, bare: list[str], tmp_path: Path, other: Path) -> None:
    """As one rank does; and the two embeddings stay one."""
    words = [*bare, f"--model.init_from={run.folder}", "--trainer.max_steps=3", "--model.dropout=0"]
    words += [f"--data.tokenizer={other}", "--model.replace_tokenizer=true", "--model.freeze=body"]
    words += ["--model.freeze_steps=2", "--model.optimizer=gpt2kit.optim.AdamW"]
    alone = train_run(tmp_path / "one", words)
    two = [*words, "--data.batch_size=4", "--trainer.strategy=ddp", "--trainer.devices=2"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "trainer.py"), *two, f"--trainer.default_root_dir={tmp_path / 'two'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("before training:") == 1
    states = [final_weights(folder) for folder in (alone, tmp_path / "two/lightning_logs/version_0")]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-3, atol=1e-4)
    assert torch.equal(*(states[1][name] for name in TIED))
