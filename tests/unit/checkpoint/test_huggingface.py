"""Hugging Face folders: the same figures as the checkpoint they were made of, and harmless when they are hostile."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, Run, export_with_transformers
from safetensors.torch import load_file, save_file

from gpt2kit.checkpoint import checkpoint, huggingface
from gpt2kit.cli import parser, test
from gpt2kit.errors import CheckpointError
from gpt2kit.model.config import padded_vocab_size
from gpt2kit.tokenization import tokenizer


def main(args: list[str]) -> None:
    parser.run(test.test, args)


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_with_transformers(run, tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_an_exported_model_has_the_same_figures(
    run: Run, whole: Path, call: Callable[..., Outcome], inside: Path, corpus: Path
) -> None:
    code, out, err = call(main, "--ckpt_path", run.folder, whole, "--json_output", "-")
    one, other = json.loads(out)["results"]
    assert code == 0 and f"{whole}: tested on the text of" in err
    assert (
        one["nll"] == other["nll"] and one["tokens"] == other["tokens"] and one["interval_95"] == other["interval_95"]
    )
    assert other["difference"]["bits_per_byte"] == 0 and other["difference"]["interval_95"] == [0, 0]
    code, out, _ = call(main, "--ckpt_path", whole, "--files", corpus / "test.txt", "--json_output", "-")
    assert code == 0 and json.loads(out)["results"][0]["nll"] == one["nll"]
    code, _, err = call(main, "--ckpt_path", whole)
    assert code == 2 and "Name text files with --files" in err


def test_a_vocabulary_that_fills_no_rows_of_64(corpus: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    found = tokenizer.load(corpus / "tokenizer")
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=8, vocab_size=333, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save(found, tmp_path)
    opened = checkpoint.open(tmp_path)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        ours = opened.model(ids).logits
        theirs = model(ids, labels=ids)
        nll = opened.model.token_nll(ids)
    assert ours.shape[-1] == padded_vocab_size(333) == 384
    torch.testing.assert_close(ours[..., :333], theirs.logits, rtol=0, atol=0)
    assert nll.mean().item() == pytest.approx(theirs.loss.item(), rel=1e-6), "rows that are no tokens take nothing"


@pytest.mark.parametrize("prefix", [True, False])
def test_older_files_of_pickled_tensors(folder: Path, prefix: bool) -> None:
    wanted = checkpoint.open(folder).model.state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril().bool()
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    if not prefix:
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items() if "lm_head" not in name}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=prefix)
    found = checkpoint.open(folder).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_half_precision_weights_are_taken(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, folder / "model.safetensors")
    found = checkpoint.open(folder).model.state_dict()["transformer.wpe.weight"]
    assert found.dtype == torch.float32 and torch.equal(found, state["transformer.wpe.weight"].bfloat16().float())


@pytest.mark.parametrize("how", ["tokenizer_config", "config"])
def test_another_end_of_text_token_is_used(how: str, folder: Path) -> None:
    before = checkpoint.open(folder).tokenizer
    number = tokenizer.eos_id(before)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "[END]"))
    (folder / "tokenizer_config.json").unlink()
    if how == "tokenizer_config":
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "[END]"}}))
    edited(folder / "config.json", eos_token_id=number if how == "config" else 50256)
    found = checkpoint.open(folder).tokenizer
    assert tokenizer.eos_id(found) == number and found.encode("the fox").ids == before.encode("the fox").ids
    assert found.decode(found.encode("[END] <|endoftext|>").ids) == "[END] <|endoftext|>"
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    edited(folder / "config.json", eos_token_id=None)
    with pytest.raises(CheckpointError, match="has no end-of-text token"):
        checkpoint.open(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import sys; sys.bomb = True",))


def with_state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        state: dict[str, Any] = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return harm


def with_bin(make: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(make(state), folder / "pytorch_model.bin")

    return harm


def with_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder / "config.json", **changes)


def writing(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


WPE = "transformer.wpe.weight"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle bomb": (with_bin(lambda state: {**state, "x": Bomb()}), "not a readable file of tensors"),
    "a bomb alone": (with_bin(lambda state: Bomb()), "not a readable file of tensors"),
    "a list of tensors": (with_bin(lambda state: list(state.values())), "not a dictionary of tensors"),
    "repeated places": (
        with_bin(lambda state: {**state, WPE: torch.zeros(1).expand(16, 32)}),
        f"tensor model.{WPE} is",
    ),
    "a sparse tensor": (with_bin(lambda state: {**state, WPE: state[WPE].to_sparse()}), "model"),
    "a number for a tensor": (with_bin(lambda state: {**state, WPE: 3}), f"tensor model.{WPE} is int"),
    "missing tensor": (with_state(lambda state: state.pop(WPE)), f"tensor model.{WPE} is missing"),
    "surplus tensor": (with_state(lambda state: state.update(x=torch.zeros(1))), "x is not part of the model"),
    "wrong shape": (with_state(lambda state: state.update({WPE: torch.zeros(3, 3)})), "requires floats (16, 32)"),
    "wrong dtype": (with_state(lambda state: state.update({WPE: torch.zeros(16, 32).long()})), "torch.int64"),
    "nan": (with_state(lambda state: state[WPE].fill_(torch.nan)), "contains NaN or Inf"),
    "untied": (
        with_state(lambda state: state.update({"lm_head.weight": torch.ones(320, 32)})),
        "the output embedding differs from the input embedding",
    ),
    "untied by config": (with_config(tie_word_embeddings=False), "tie_word_embeddings is False"),
    "truncated": (truncated, "not a readable file of tensors"),
    "text for tensors": (writing("model.safetensors", b"hello"), "not a readable file of tensors"),
    "a header of absurd size": (writing("model.safetensors", b"\xff" * 7 + b"\x7f{}"), "not a readable file"),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), "contains neither"),
    "absurd size": (with_config(n_embd=1 << 40), "n_embd 1099511627776 is invalid"),
    "absurd vocabulary": (with_config(vocab_size=1 << 24), "requires floats (16777216, 32)"),
    "size beyond its tensors": (with_config(n_embd=1 << 16, n_head=1), "requires floats"),
    "text as size": (with_config(n_layer="2"), "n_layer '2' is invalid"),
    "another architecture": (with_config(model_type="llama", architectures=["LlamaForCausalLM"]), "of type 'llama'"),
    "another head": (with_config(architectures=["GPT2ForSequenceClassification"]), "not a GPT-2 language model"),
    "code of its own": (
        with_config(auto_map={"AutoModel": "canary.Model", "AutoConfig": "canary.Config"}, model_type="canary"),
        "of type 'canary'",
    ),
    "quantized": (with_config(quantization_config={"bits": 4}), "quantization_config"),
    "other attention": (with_config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    "no JSON": (writing("config.json", b"{"), "not a readable JSON file"),
    "a JSON list": (writing("config.json", b"[]"), "not a JSON object"),
    "deep JSON": (writing("config.json", b"[" * 100_000), "not a readable JSON file"),
    "binary config": (writing("config.json", b"\xff\xfe"), "not a readable JSON file"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "contains no tokenizer.json"),
    "a broken tokenizer": (writing("tokenizer.json", b"{}"), "not a tokenizer"),
    "a text for a tokenizer": (writing("tokenizer.json", b"hello"), "not a readable JSON file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_strangers_folder_is_refused_in_one_line(
    case: str, folder: Path, call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "canary.py").write_text("import sys; sys.canary = True")
    monkeypatch.syspath_prepend(folder)
    harm, message = HOSTILE[case]
    harm(folder)
    code, out, err = call(main, "--ckpt_path", folder, "--files", "a.txt")
    assert code == 4 and err.startswith("error: ") and err.count("\n") == 1 and not out, err
    assert message in err and str(folder) in err
    assert not hasattr(sys, "bomb") and not hasattr(sys, "canary") and "canary" not in sys.modules
    assert not list(inside.glob("*")) or list(inside.iterdir()) == [folder]


def test_a_tokenizer_of_another_model_is_refused(folder: Path, corpus: Path) -> None:
    from helpers import train_tokenizer

    train_tokenizer([str(corpus / "train.txt")], folder, vocab_size=330)
    with pytest.raises(CheckpointError, match="330 tokens, the model 320"):
        checkpoint.open(folder)


def test_the_hub(whole: Path, call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a name that is clearly one; a mistyped path goes nowhere."""
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def unreachable(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    for name in ("hf://owner/name", "owner/name"):
        code, _, err = call(main, "--ckpt_path", name)
        assert code == 4 and "no such folder, and not available from the hub (ConnectionError: no network)" in err
        assert err.count("\n") == 1
    (inside / "runs").mkdir()
    for name in ("runs/version_1", "version_1", "a/b/c"):
        code, _, err = call(main, "--ckpt_path", name)
        assert code == 4 and "no such checkpoint or run folder" in err
    assert [name for name, _ in asked] == ["owner/name"] * 2
    assert all("*" not in pattern and ".py" not in pattern for pattern in asked[0][1])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(whole))
    assert checkpoint.open("hf://owner/name").model.shape["n_embd"] == 32
    assert huggingface.find_folder(str(whole)) == whole
