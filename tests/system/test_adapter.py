"""export.py --adapter: peft loads the LoRA matrices of a run, and every command opens what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Outcome, Run, train_run

import gpt2kit
from gpt2kit.checkpoint import adapter, checkpoint
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli import export, generate, parser, test
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.export import adapter as adapter_export

pytest.importorskip("peft", reason="optional: pip install peft")
# peft asks transformers for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def main(args: list[str]) -> None:
    parser.run(export.export, args)


@pytest.fixture(scope="module")
def lora(run: Run, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with LoRA from the weights of the trained run."""
    decided = ("--model.", "--data.tokenizer", "--data.block_size")
    others = [option for option in options if not option.startswith(decided)]
    settings = [f"--model.init_from={run.folder}", "--model.lora_r=4", "--model.lora_alpha=12"]
    work = tmp_path_factory.mktemp("lora")
    return train_run(work, [*others, *settings], "--model.schedule=Constant", "--trainer.max_steps=3")


@pytest.fixture(scope="module")
def exported(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter, written with the check in a fresh process."""
    folder = tmp_path_factory.mktemp("export") / "adapter"
    export.export(str(lora), folder, adapter=True)
    return folder


def test_the_folder_is_what_peft_reads(run: Run, lora: Path, exported: Path) -> None:
    from peft import LoraConfig

    assert {path.name for path in exported.iterdir()} == adapter_export.FILES
    config = LoraConfig.from_pretrained(exported)
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 12, None)
    opened = checkpoint.open(exported, options=ForeignOptions(adapter_base=str(run.folder)))
    expected = checkpoint.open(lora)
    assert all(torch.equal(opened.state[name], tensor) for name, tensor in expected.state.items())


def test_generate_test_and_the_api_open_an_adapter(
    run: Run, lora: Path, exported: Path, corpus: Path, tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    base = ["--adapter_base", run.folder]
    prompt = ["--prompt", "the quick", "--max_new_tokens", 5]
    commands = (
        (generate.generate, prompt),
        (test.test, ["--files", corpus / "test.txt", "--reader.document", "line"]),
    )
    for command, arguments in commands:
        outcomes = [
            call(lambda args, command=command: parser.run(command, args), *path, *arguments)
            for path in ([lora], [exported, *base])
        ]
        assert [code for code, _, _ in outcomes] == [0, 0], outcomes
        texts = [out.replace(str(exported), "").replace(str(lora), "") for _, out, _ in outcomes]
        if command is generate.generate:
            assert texts[0] == texts[1]
        else:
            assert "bits per byte" in texts[1]
    models = gpt2kit.load(lora), gpt2kit.load(exported, adapter_base=run.folder)
    scores = [model.score("the quick brown fox").bits_per_byte for model in models]
    assert scores[0] == scores[1]


def test_an_adapter_is_compared_with_its_base(
    run: Run, exported: Path, corpus: Path, tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    text = ["--files", corpus / "test.txt", "--reader.document", "line", "--json_output", tmp_path / "test.json"]
    base = ["--adapter_base", run.folder]
    code, _, err = call(lambda args: parser.run(test.test, args), run.folder, exported, *base, *text)
    assert code == 0, err
    results = json.loads((tmp_path / "test.json").read_text())["results"]
    assert results[0]["bits_per_byte"] != results[1]["bits_per_byte"]
    code, _, err = call(lambda args: parser.run(test.test, args), run.folder, run.folder, *base, *text)
    assert code == 4 and "--adapter_base: none of the checkpoints is an adapter. Leave out" in err


def test_a_run_starts_from_an_adapter(run: Run, lora: Path, exported: Path, options: list[str], tmp_path: Path) -> None:
    decided = ("--model.", "--data.tokenizer", "--data.block_size")
    others = [option for option in options if not option.startswith(decided)]
    start = [f"--model.init_from={exported}", f"--model.adapter_base={run.folder}", "--trainer.max_steps=1"]
    next_run = train_run(tmp_path, [*others, *start, "--model.optimizer=gpt2kit.optim.AdamW", "--model.optimizer.lr=0"])
    state, expected = checkpoint.open(next_run).state, checkpoint.open(lora).state
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    resumed = train_run(tmp_path, [*others, *start, "--trainer.max_steps=2"], "--ckpt_path=last")
    assert resumed == next_run
    with pytest.raises(UserError, match=r"model.init_from: .* Give the base as --model.adapter_base"):
        train_run(tmp_path, [*others, f"--model.init_from={exported}"])


def test_the_base_on_the_hub_is_recorded(
    run: Run, lora: Path, tmp_path: Path, reload_in_process: None, call: Callable[..., Outcome]
) -> None:
    arguments = [lora, "--output_dir", tmp_path / "adapter", "--adapter", "--dtype", "bfloat16", "--adapter_base"]
    code, out, err = call(main, *arguments, "me/base@v1")
    assert code == 0 and "loads in peft" in out and "base: hf://me/base@v1" in out and not err, err
    assert "rounding to bfloat16 changes logits by up to" in out
    settings = json.loads((tmp_path / "adapter" / adapter.CONFIG).read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("me/base", "v1")
    assert "base_model: me/base" in (tmp_path / "adapter" / "README.md").read_text()
    code, _, err = call(main, *arguments, "me/other")
    assert code == 2 and "replace it with --force" in err
    code, out, _ = call(main, *arguments, "me/other", "--force")
    assert code == 0 and "base: hf://me/other" in out
    code, _, err = call(main, *arguments, run.folder, "--force")
    assert code == 2 and "not a name on the hub, which others can load" in err


def test_what_has_no_adapter_is_refused(
    run: Run, lora: Path, options: list[str], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    target = ["--output_dir", tmp_path / "adapter", "--adapter"]
    code, _, err = call(main, run.folder, *target)
    assert code == 4 and "was not trained with LoRA, so it has no adapter. Leave out --adapter" in err
    code, _, err = call(main, lora, *target, "--gguf")
    assert code == 2 and "--gguf: needs the whole model. Leave out --adapter" in err
    others = [option for option in options if not option.startswith(("--model.", "--data.tokenizer", "--data.block"))]
    settings = [f"--model.init_from={run.folder}", "--model.lora_r=2", "--data.block_size=8"]
    shorter = train_run(tmp_path, [*others, *settings, "--trainer.max_steps=1"])
    code, _, err = call(main, shorter, *target)
    assert code == 4 and "its frozen weights are not those that it started from" in err
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_that_peft_reads_differently_is_not_written(
    lora: Path, tmp_path: Path, reload_in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "PREFIX", "base_model.model.x.")
    with pytest.raises(CheckpointError):
        export.export(str(lora), tmp_path / "adapter", adapter=True)
    assert not list(tmp_path.iterdir())
