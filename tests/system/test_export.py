"""export.py: the folder agrees with the checkpoint when transformers loads it; otherwise it is not written."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, Run, train_run
from safetensors.torch import load_file, save_file

import gpt2kit
from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import export, parser
from gpt2kit.errors import CheckpointError
from gpt2kit.export import gguf as gguf_file
from gpt2kit.export import huggingface
from gpt2kit.tokenization import tokenizer


def main(args: list[str]) -> None:
    parser.run(export.export, args)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "model"
    export.export(str(run.folder), target)
    return target


def test_the_folder_is_complete(run: Run, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == huggingface.FILES
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {folder.stat().st_mode & 0o666}
    config, generation = (json.loads((folder / name).read_text()) for name in ("config.json", huggingface.GENERATION))
    end = tokenizer.eos_id(checkpoint.open(run.folder).tokenizer)
    assert config["bos_token_id"] == config["eos_token_id"] == generation["eos_token_id"] == end
    assert config["architectures"] == ["GPT2LMHeadModel"] and config["dtype"] == "float32"
    assert config["tie_word_embeddings"] and "auto_map" not in config
    state = load_file(folder / "model.safetensors")
    assert config["vocab_size"] == len(state["transformer.wte.weight"]) == 320, "no padded rows"
    assert "lm_head.weight" not in state, "tied: saved once"
    assert not list(folder.parent.glob(".*")), "temporary folders are removed"


def test_transformers_agrees_with_the_checkpoint(run: Run, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, exported_tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    opened = checkpoint.open(run.folder)
    text = "the quick brown fox <|endoftext|> 春"
    ids = exported_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == opened.tokenizer.encode(text).ids and exported_tokenizer.decode(ids) == text
    end = tokenizer.eos_id(opened.tokenizer)
    assert exported_tokenizer.eos_token_id == end and exported_tokenizer(text)["input_ids"] == [end, *ids]
    ids = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, opened.model(ids).logits[..., :320])
    assert model.lm_head.weight is model.transformer.wte.weight


def test_weights_are_bit_identical_after_export_and_init_from(
    run: Run, folder: Path, options: list[str], tmp_path: Path, reload_in_process: None
) -> None:
    """Export a run, start a run from the export without changing the weights, and export it again."""
    again = train_run(
        tmp_path,
        [option for option in options if not option.startswith(("--model.", "--data.tokenizer", "--data.block_size"))],
        f"--model.init_from={folder}",
        "--trainer.max_steps=1",
        "--model.schedule=Linear",
        "--model.optimizer=gpt2kit.optim.AdamW",
        "--model.optimizer.lr=0",
    )
    one, two = checkpoint.open(run.folder), checkpoint.open(again)
    for name, tensor in one.state.items():
        rows = 320 if "wte" in name or "lm_head" in name else len(tensor)  # without padded rows
        assert torch.equal(tensor[:rows], two.state[name][:rows]), name
    assert tokenizer.to_json(one.tokenizer) == tokenizer.to_json(two.tokenizer)
    export.export(str(again), tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export_in_half_precision(
    dtype: str, run: Run, tmp_path: Path, reload_in_process: None, call: Callable[..., Outcome]
) -> None:
    code, out, err = call(main, "--ckpt_path", run.folder, "--output_dir", tmp_path / "half", "--dtype", dtype)
    assert code == 0 and not err and f"rounding to {dtype} changes logits by up to" in out
    state = load_file(tmp_path / "half" / "model.safetensors")
    assert all(tensor.dtype == getattr(torch, dtype) for tensor in state.values())
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == dtype
    assert f"as {dtype}" in (tmp_path / "half/README.md").read_text()


def test_a_model_with_a_context_of_one_token_is_exported(run: Run, tmp_path: Path, reload_in_process: None) -> None:
    opened, name = checkpoint.open(run.folder), "transformer.wpe.weight"
    shape, state = {**opened.shape, "n_positions": 1}, {**opened.state, name: opened.state[name][:1].clone()}
    small = dataclasses.replace(opened, shape=shape, state=state)
    huggingface.write(small, tmp_path, "small", "float32")
    assert huggingface.check(small, tmp_path, "float32").tokens == 0, "there is no room for a continuation"


def test_only_an_export_is_replaced_and_only_with_force(
    run: Run, folder: Path, tmp_path: Path, reload_in_process: None, call: Callable[..., Outcome]
) -> None:
    target = Path(shutil.copytree(folder, tmp_path / "model"))
    (target / "README.md").write_text("mine")
    arguments = ["--ckpt_path", run.folder, "--output_dir", target]
    code, _, err = call(main, *arguments)
    assert code == 2 and "replace it with --force" in err and (target / "README.md").read_text() == "mine"
    (target / "thesis.txt").write_text("mine")
    code, _, err = call(main, *arguments, "--force")
    assert code == 2 and "contains other files (thesis.txt)" in err and (target / "thesis.txt").exists()
    (target / "thesis.txt").unlink()
    code, out, _ = call(main, *arguments, "--force")
    assert code == 0 and "as float32" in out and (target / "README.md").read_text() != "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    code, _, err = call(main, "--ckpt_path", run.folder, "--output_dir", other, "--force")
    assert code == 2 and "is not an earlier export" in err and (other / "README.md").read_text() == "mine"
    os.mkfifo(tmp_path / "pipe")
    for name in ("model/config.json", "pipe"):
        code, _, err = call(main, "--ckpt_path", run.folder, "--output_dir", tmp_path / name, "--force")
        assert code == 2 and "is a file. Name a folder" in err


def damage_exports(change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Change each folder after it is written and before it is checked."""
    write = huggingface.write

    def write_and_change(opened: Any, folder: Path, *more: Any) -> None:
        write(opened, folder, *more)
        change(folder)

    monkeypatch.setattr(huggingface, "write", write_and_change)


def change_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["transformer.h.1.attn.c_attn.weight"] += 0.1
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def remove_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["transformer.h.1.attn.c_attn.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def change_tokenizer(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["merges"] = raw["model"]["merges"][:5]
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_weights, "differs from the checkpoint: logits differ"),
        (remove_weights, "not complete: ['transformer.h.1.attn.c_attn.weight']"),
        (change_tokenizer, "tokenizer gives different ids"),
        (remove_tokenizer, "transformers cannot load the exported folder"),
    ],
)
def test_an_export_that_differs_from_the_checkpoint_is_not_written(
    change: Callable[[Path], object],
    message: str,
    run: Run,
    folder: Path,
    tmp_path: Path,
    reload_in_process: None,
    call: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Path(shutil.copytree(folder, tmp_path / "model"))
    before = (target / "model.safetensors").read_bytes()
    damage_exports(change, monkeypatch)
    code, out, err = call(main, "--ckpt_path", run.folder, "--output_dir", target, "--force")
    assert code == 4 and message in err and err.count("\n") == 1 and not out, err
    assert (target / "model.safetensors").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_example_of_the_model_card_gives_the_text_of_generate(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    assert "Once" in capsys.readouterr().out
    options = {"temperature": 0, "max_new_tokens": 9, "token_healing": False}
    for prompt in ("", "the quick brown"):
        (sample,) = names["generator"](prompt, do_sample=False, max_new_tokens=9)
        assert sample["generated_text"] == gpt2kit.load(str(run.folder)).generate(prompt, **options)


def test_an_error_in_the_fresh_process_is_reported_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_exports(remove_tokenizer, monkeypatch)
    with pytest.raises(CheckpointError, match=r"transformers cannot load the exported folder: .*Nothing was written"):
        export.export(str(run.folder), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_gguf_file_is_complete(
    run: Run, tmp_path: Path, reload_in_process: None, call: Callable[..., Outcome]
) -> None:
    """The logits are compared by the export itself, and test_llama_cpp.py runs the format."""
    import gguf

    code, out, _ = call(main, "--ckpt_path", run.folder, "--output_dir", tmp_path / "model", "--gguf")
    assert code == 0 and "largest difference" in out
    file = gguf.GGUFReader(tmp_path / "model" / "model.gguf")
    shapes = {tensor.name: list(tensor.shape) for tensor in file.tensors}
    assert shapes["token_embd.weight"] == [32, 320] and shapes["position_embd.weight"] == [32, 16]
    assert shapes["blk.1.attn_qkv.weight"] == [32, 96] and shapes["blk.1.ffn_up.bias"] == [128]
    assert len(shapes) == 4 + 12 * 2 and "output.weight" not in shapes
    fields = {name: field.contents() for name, field in file.fields.items()}
    opened = checkpoint.open(run.folder)
    end = tokenizer.eos_id(opened.tokenizer)
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == end
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.tokens"] == [opened.tokenizer.id_to_token(i) for i in range(320)]
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and fields["gpt2.context_length"] == 16
    assert fields["tokenizer.ggml.token_type"][end] == gguf.TokenType.CONTROL


def test_a_gguf_file_that_differs_from_the_checkpoint_is_not_written(
    run: Run, tmp_path: Path, reload_in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "TRANSPOSED", ("c_attn.weight", "c_fc.weight"))  # c_proj, square in attention
    with pytest.raises(Exception, match=r"logits differ|mismatch|does not load"):
        export.export(str(run.folder), tmp_path / "model", gguf=True)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_for_gguf_is_reported(
    run: Run, tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "PACKAGES", ("not_there",))
    code, _, err = call(main, "--ckpt_path", run.folder, "--output_dir", tmp_path / "model", "--gguf")
    assert code == 2 and "pip install 'gguf>=0.17' 'accelerate>=1'" in err and not list(tmp_path.iterdir())


def test_push_to_hub(
    run: Run, tmp_path: Path, reload_in_process: None, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    requests: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, name: str, **arguments: Any) -> None:
            requests.append((name, arguments))

        def upload_folder(self, **arguments: Any) -> None:
            requests.append(("upload", arguments))
            assert {path.name for path in Path(arguments["folder_path"]).iterdir()} == huggingface.FILES

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    arguments = ["--ckpt_path", run.folder, "--output_dir", tmp_path / "model", "--push_to_hub", "me/model"]
    code, out, _ = call(main, *arguments)
    assert code == 0 and "uploaded to me/model" in out
    assert requests[0][0] == "me/model" and requests[0][1]["private"] and requests[1][1]["repo_id"] == "me/model"

    def fail(self: Hub, **arguments: Any) -> None:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(Hub, "upload_folder", fail)
    code, _, err = call(main, *arguments, "--force")
    assert code == 5 and "the upload failed (no network)" in err and err.count("\n") == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_missing_checkpoint_is_reported(call: Callable[..., Outcome], inside: Path) -> None:
    code, _, err = call(main, "--ckpt_path", "nothing", "--output_dir", "model")
    assert code == 4 and "no such checkpoint" in err and not list(inside.iterdir())
