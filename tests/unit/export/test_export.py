"""An exported folder is the checkpoint, as anybody loads it; what is not proved gets no name."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, Run, train_run, train_tokenizer
from safetensors.torch import load_file

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import export, parser
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.export import gguf as gguf_file
from gpt2kit.export import huggingface, reload_check
from gpt2kit.tokenization import tokenizer
from gpt2kit.training.module import GPT2Module


def main(args: list[str]) -> None:
    parser.run(export.export, args)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "model"
    export.export(str(run.folder), target)
    return target


def test_the_folder_has_what_it_should(run: Run, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == huggingface.FILES
    assert all(
        path.stat().st_mode & 0o777 == (folder / "config.json").stat().st_mode & 0o777 for path in folder.iterdir()
    )
    config, generation = (json.loads((folder / name).read_text()) for name in ("config.json", huggingface.GENERATION))
    end = tokenizer.eos_id(checkpoint.open(run.folder).tokenizer)
    assert config["bos_token_id"] == config["eos_token_id"] == generation["eos_token_id"] == end
    assert config["architectures"] == ["GPT2LMHeadModel"] and config["dtype"] == "float32"
    assert config["tie_word_embeddings"] and "auto_map" not in config
    state = load_file(folder / "model.safetensors")
    assert config["vocab_size"] == len(state["transformer.wte.weight"]) == 320, "no padded rows"
    assert "lm_head.weight" not in state, "tied: saved once"
    assert not list(folder.parent.glob(".*")), "nothing else is left"


def test_transformers_writes_what_we_write(run: Run, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, found = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    opened = checkpoint.open(run.folder)
    text = "the quick brown fox <|endoftext|> 春"
    assert (
        found(text)["input_ids"] == opened.tokenizer.encode(text).ids and found.decode(found(text)["input_ids"]) == text
    )
    assert found.eos_token_id == tokenizer.eos_id(opened.tokenizer)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, opened.model(ids).logits[..., :320])
    assert model.lm_head.weight is model.transformer.wte.weight


def test_there_and_back_is_bit_equal(run: Run, folder: Path, options: list[str], tmp_path: Path) -> None:
    """Run -> Hugging Face -> run -> Hugging Face: the same bits and the same tokenizer."""
    kept = [w for w in options if not w.startswith(("--model.", "--data.tokenizer", "--data.block_size"))]
    again = train_run(
        tmp_path,
        kept,
        f"--model.init_from={folder}",
        "--trainer.max_steps=1",
        "--model.schedule=Linear",
        "--model.optimizer=gpt2kit.optim.AdamW",
        "--model.optimizer.lr=0",
    )
    one, two = checkpoint.open(run.folder), checkpoint.open(again)
    rows = slice(0, 320)
    for name, tensor in one.model.state_dict().items():
        other = two.model.state_dict()[name]
        assert (
            torch.equal(tensor[rows], other[rows]) if "wte" in name or "lm_head" in name else torch.equal(tensor, other)
        )
    assert tokenizer.to_json(one.tokenizer) == tokenizer.to_json(two.tokenizer)
    export.export(str(again), tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, run: Run, tmp_path: Path, near: None, call: Callable[..., Outcome]) -> None:
    code, out, err = call(main, "--ckpt_path", run.folder, "--output_dir", tmp_path / "half", "--dtype", dtype)
    assert code == 0 and not err and f"rounding to {dtype} moves logits by up to" in out
    state = load_file(tmp_path / "half" / "model.safetensors")
    assert all(tensor.dtype == getattr(torch, dtype) for tensor in state.values())
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == dtype
    card = (tmp_path / "half/README.md").read_text()
    assert f"as {dtype}" in card


def test_what_does_not_fit_half_precision_is_refused(run: Run) -> None:
    opened = checkpoint.open(run.folder)
    opened.state["transformer.ln_f.weight"][0] = 1e5
    with pytest.raises(CheckpointError, match="too large for float16"):
        huggingface.rounded(opened, "float16")


def test_nothing_is_overwritten(
    run: Run, folder: Path, tmp_path: Path, near: None, call: Callable[..., Outcome]
) -> None:
    target = Path(shutil.copytree(folder, tmp_path / "model"))
    (target / "README.md").write_text("mine")
    words = ["--ckpt_path", run.folder, "--output_dir", target]
    code, _, err = call(main, *words)
    assert code == 2 and "replace it with --force" in err and (target / "README.md").read_text() == "mine"
    (target / "thesis.txt").write_text("mine")
    code, _, err = call(main, *words, "--force")
    assert code == 2 and "holds other files (thesis.txt)" in err and (target / "thesis.txt").exists()
    (target / "thesis.txt").unlink()
    code, out, _ = call(main, *words, "--force")
    assert code == 0 and "as float32" in out and (target / "README.md").read_text() != "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "README.md").write_text("mine")
    code, _, err = call(main, "--ckpt_path", run.folder, "--output_dir", stranger, "--force")
    assert code == 2 and "was not written by export.py" in err and (stranger / "README.md").read_text() == "mine"
    code, _, err = call(main, "--ckpt_path", run.folder, "--output_dir", target / "config.json")
    assert code == 2 and "a file. Name a folder" in err


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reload the folder in this process, which is quicker."""

    def reloaded(folder: Path, *asked: Any) -> dict[str, Any]:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                return reload_check.reload(str(folder), *asked)
        except Exception as error:
            raise CheckpointError(f"transformers does not load the exported folder: {error}") from None

    monkeypatch.setattr(huggingface, "reloaded", reloaded)


def spoiled(change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch) -> None:
    real = huggingface.write

    def write(opened: Any, folder: Path, *more: Any) -> None:
        real(opened, folder, *more)
        change(folder)

    monkeypatch.setattr(huggingface, "write", write)


def other_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    state = load_file(folder / "model.safetensors")
    state["transformer.h.1.attn.c_attn.weight"] += 0.1
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def lost_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    state = load_file(folder / "model.safetensors")
    del state["transformer.h.1.attn.c_attn.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def other_tokenizer(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["merges"] = raw["model"]["merges"][:5]
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_weights, "another one than the checkpoint's: logits differ"),
        (lost_weights, "not complete: ['transformer.h.1.attn.c_attn.weight']"),
        (other_tokenizer, "tokenizer gives other ids"),
        (no_tokenizer, "transformers does not load the exported folder"),
    ],
)
def test_a_folder_that_is_not_the_checkpoint_gets_no_name(
    change: Callable[[Path], object],
    message: str,
    run: Run,
    folder: Path,
    tmp_path: Path,
    near: None,
    call: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Path(shutil.copytree(folder, tmp_path / "model"))
    before = (target / "model.safetensors").read_bytes()
    spoiled(change, monkeypatch)
    code, out, err = call(main, "--ckpt_path", run.folder, "--output_dir", target, "--force")
    assert code == 4 and message in err and err.count("\n") == 1 and not out, err
    assert (target / "model.safetensors").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_near_ties_may_part_and_others_not() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0 + 1e-6], [0.0, 1.0, 3.0]])
    assert huggingface.count_agreeing([0, 2, 2], [0, 2, 2], logits, 1e-5, 1) == 2
    assert huggingface.count_agreeing([0, 2, 2], [0, 1, 0], logits, 1e-5, 1) == 0
    assert huggingface.count_agreeing([0, 2, 2], [0, 2, 1], logits, 1e-5, 1) == -1
    assert huggingface.count_agreeing([0, 2, 2], [0, 2], logits, 1e-5, 1) == -1


def test_the_card_says_what_is_known_and_no_paths(run: Run, folder: Path, tmp_path: Path) -> None:
    card = (folder / "README.md").read_text()
    facts = checkpoint.open(run.folder).metadata
    assert card.startswith("---\n# license: ") and "\nlicense:" not in card
    assert f"| tokens seen in training | {40 * 8 * 16:,} |" in card
    assert f"| training text | {facts['train_tokens']:,} tokens |" in card
    assert f"| bits per byte of the validation text | {facts['val_bpb']:.4f} |" in card
    assert "| shape | 2 layers, 2 heads, width 32 |" in card and "| context | 16 tokens |" in card
    assert str(run.work) not in card and "settings" not in card
    opened = checkpoint.open(run.folder)
    count = sum(p.numel() for p in GPT2Module(**{**opened.model.shape, "vocab_size": 320}).parameters())
    assert f"| parameters | {count:,}, as float32 |" in card
    opened.metadata.update(start={"from": "hf://owner/name"}, tokens_seen="many", val_bpb=None, document_start=0)
    card = huggingface.model_card(opened, "mine", "float16")
    assert "base_model: owner/name\n" in card and "weights of | owner/name |" in card and "many" not in card
    assert "document alone | yes" in card and "bits per byte of the" not in card


def test_its_examples_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    monkeypatch.chdir(folder.parent)
    for program in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL):
        exec(program, {})
    assert "Once" in capsys.readouterr().out


def test_a_folder_that_transformers_cannot_load(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the fresh process, too, the reason is one line."""
    spoiled(no_tokenizer, monkeypatch)
    with pytest.raises(CheckpointError, match=r"transformers does not load the exported folder: .*Nothing was written"):
        export.export(str(run.folder), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_gguf(run: Run, tmp_path: Path, near: None, call: Callable[..., Outcome]) -> None:
    """Read back by transformers, it has the same logits (the format itself was compared with llama.cpp's)."""
    import gguf

    code, out, _ = call(main, "--ckpt_path", run.folder, "--output_dir", tmp_path / "model", "--gguf")
    assert code == 0 and "largest difference" in out
    read = gguf.GGUFReader(tmp_path / "model" / "model.gguf")
    shapes = {tensor.name: list(tensor.shape) for tensor in read.tensors}
    assert shapes["token_embd.weight"] == [32, 320] and shapes["position_embd.weight"] == [32, 16]
    assert shapes["blk.1.attn_qkv.weight"] == [32, 96] and shapes["blk.1.ffn_up.bias"] == [128]
    assert len(shapes) == 4 + 12 * 2 and "output.weight" not in shapes
    fields = {name: field.contents() for name, field in read.fields.items()}
    opened = checkpoint.open(run.folder)
    end = tokenizer.eos_id(opened.tokenizer)
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == end
    assert fields["tokenizer.ggml.tokens"] == [opened.tokenizer.id_to_token(i) for i in range(320)]
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and fields["gpt2.context_length"] == 16
    assert fields["tokenizer.ggml.token_type"][end] == gguf.TokenType.CONTROL


def test_gguf_that_is_another_model_gets_no_name(
    run: Run, tmp_path: Path, near: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "TRANSPOSED", ("c_attn.weight", "c_fc.weight"))  # c_proj, square in attention
    for layer in ("transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"):
        assert checkpoint.open(run.folder).model.get_parameter(f"{layer}.weight").any()
    with pytest.raises(Exception, match=r"logits differ|mismatch|does not load"):
        export.export(str(run.folder), tmp_path / "model", gguf=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "more"), [("char", {}), ("bpe", {"normalizer": "nfkc"}), ("wordpiece", {})])
def test_gguf_only_where_llama_cpp_gives_the_same_tokens(
    kind: str, more: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    train_tokenizer([str(corpus / "train.txt")], tmp_path, kind=kind, vocab_size=300, **more)  # type: ignore[arg-type]
    shape = GPT2Module(n_layer=1, n_head=1, n_embd=8, vocab_size=300, n_positions=8).shape
    (problem,) = gguf_file.problems(shape, tokenizer.load(tmp_path))
    assert problem.startswith("--gguf: llama.cpp splits text only as byte-level BPE does")
    good = tokenizer.load(corpus / "tokenizer")
    assert not gguf_file.problems(shape, good)
    assert "not relu" in gguf_file.problems({**shape, "activation_function": "relu"}, good)[0]


def test_gguf_without_its_package(
    run: Run, tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "PACKAGES", ("not_there",))
    code, _, err = call(main, "--ckpt_path", run.folder, "--output_dir", tmp_path / "model", "--gguf")
    assert code == 2 and "pip install 'gguf>=0.17' 'accelerate>=1'" in err and not list(tmp_path.iterdir())


def test_the_hub(
    run: Run, tmp_path: Path, near: None, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, name: str, **words: Any) -> None:
            asked.append((name, words))

        def upload_folder(self, **words: Any) -> None:
            asked.append(("upload", words))
            assert {path.name for path in Path(words["folder_path"]).iterdir()} == huggingface.FILES

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    words = ["--ckpt_path", run.folder, "--output_dir", tmp_path / "model", "--push_to_hub", "me/model"]
    code, out, _ = call(main, *words)
    assert code == 0 and "sent to me/model" in out
    assert asked[0] == ("me/model", {"private": True, "exist_ok": True}) and asked[1][1]["repo_id"] == "me/model"

    def refuse(self: Hub, **words: Any) -> None:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(Hub, "upload_folder", refuse)
    code, _, err = call(main, *words, "--force")
    assert code == 5 and "the upload failed (no network)" in err and err.count("\n") == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_missing_checkpoint(tmp_path: Path, call: Callable[..., Outcome], inside: Path) -> None:
    code, _, err = call(main, "--ckpt_path", "nothing", "--output_dir", "model")
    assert code == 4 and "no such checkpoint" in err and not list(inside.iterdir())
    with pytest.raises(UserError):
        huggingface.refuse_other_files(Path(sys.executable), False)
