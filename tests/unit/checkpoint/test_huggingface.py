"""Models in Hugging Face's format, also older, unusual and hostile ones."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_huggingface_model, train_tokenizer
from safetensors.torch import load_file, save_file

from gpt2kit.checkpoint import checkpoint, huggingface
from gpt2kit.errors import CheckpointError
from gpt2kit.model.config import padded_vocab_size
from gpt2kit.tokenization import tokenizer


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_huggingface_model(corpus / "tokenizer", tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_vocabulary_that_is_not_a_multiple_of_64_is_padded(corpus: Path, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    save_huggingface_model(corpus / "tokenizer", tmp_path, vocab_size=333)
    opened = checkpoint.open(tmp_path)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        logits = opened.model(ids).logits
        expected = GPT2LMHeadModel.from_pretrained(tmp_path).eval()(ids, labels=ids)
        nll = opened.model.token_nll(ids)
    assert logits.shape[-1] == padded_vocab_size(333) == 384
    torch.testing.assert_close(logits[..., :333], expected.logits)
    assert nll.mean().item() == pytest.approx(expected.loss.item(), rel=1e-6), "the padding is not in the loss"


@pytest.mark.parametrize("prefix", [True, False])
def test_older_files_of_pickled_tensors_are_read(folder: Path, prefix: bool) -> None:
    expected = checkpoint.open(folder).model.state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril().bool()
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    if not prefix:
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items() if "lm_head" not in name}
    state["transformer.wpe.weight" if prefix else "wpe.weight"].requires_grad_()  # as some programs save them
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=prefix)
    opened = checkpoint.open(folder)
    assert not any(tensor.requires_grad for tensor in opened.state.values()), "which NumPy could not read"
    actual = opened.model.state_dict()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_weights_in_several_files_are_read(folder: Path) -> None:
    expected = checkpoint.open(folder).state
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    opened = checkpoint.open(folder).state
    assert opened.keys() == expected.keys() and all(torch.equal(opened[name], expected[name]) for name in expected)
    for outside in ("../model-00001-of-00002.safetensors", "none.safetensors", 5, ["a"]):
        index.write_text(json.dumps({"weight_map": {**weight_map, names[0]: outside}}))
        with pytest.raises(CheckpointError, match="names a file that is not in its folder"):
            checkpoint.open(folder)


def test_pickled_weights_in_several_files_are_read(folder: Path) -> None:
    expected = checkpoint.open(folder).state
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    opened = checkpoint.open(folder).state
    assert opened.keys() == expected.keys() and all(torch.equal(opened[name], expected[name]) for name in expected)
    torch.save({"a": Bomb()}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00002\.bin: "):
        checkpoint.open(folder)
    assert not hasattr(sys, "bomb")


def test_half_precision_weights_become_float32(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, folder / "model.safetensors")
    weights = checkpoint.open(folder).state["transformer.wpe.weight"]
    assert weights.dtype == torch.float32 and torch.equal(weights, state["transformer.wpe.weight"].bfloat16().float())


@pytest.mark.parametrize("named_in", ["tokenizer_config", "config"])
def test_the_end_of_text_token_of_the_folder_is_used(named_in: str, folder: Path) -> None:
    before = checkpoint.open(folder).tokenizer
    number = tokenizer.eos_id(before)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "[END]"))
    (folder / "tokenizer_config.json").unlink()
    if named_in == "tokenizer_config":
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "[END]"}}))
    edit_json(folder / "config.json", eos_token_id=number if named_in == "config" else 50256)
    after = checkpoint.open(folder).tokenizer
    assert tokenizer.eos_id(after) == number and after.encode("the fox").ids == before.encode("the fox").ids
    assert after.decode(after.encode("[END] <|endoftext|>").ids) == "[END] <|endoftext|>"
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    edit_json(folder / "config.json", eos_token_id=None)
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
    return lambda folder: edit_json(folder / "config.json", **changes)


def with_file(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


WPE = "transformer.wpe.weight"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle bomb": (with_bin(lambda state: {**state, "x": Bomb()}), "not a readable file of tensors"),
    "a bomb alone": (with_bin(lambda state: Bomb()), "not a readable file of tensors"),
    "a list of tensors": (with_bin(lambda state: list(state.values())), "not a dictionary of tensors"),
    "expanded tensor": (
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
    "truncated": (truncate, "not a readable file of tensors"),
    "text for tensors": (with_file("model.safetensors", b"hello"), "not a readable file of tensors"),
    "a header of absurd size": (with_file("model.safetensors", b"\xff" * 7 + b"\x7f{}"), "not a readable file"),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), "contains neither"),
    "absurd size": (with_config(n_embd=1 << 40), "n_embd 1099511627776: must be at most 131,072"),
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
    "no JSON": (with_file("config.json", b"{"), "not a readable JSON file"),
    "a JSON list": (with_file("config.json", b"[]"), "not a JSON object"),
    "deep JSON": (with_file("config.json", b"[" * 100_000), "not a readable JSON file"),
    "binary config": (with_file("config.json", b"\xff\xfe"), "not a readable JSON file"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "contains no tokenizer: neither tokenizer.json",
    ),
    "a broken tokenizer": (with_file("tokenizer.json", b"{}"), "not a tokenizer"),
    "a text for a tokenizer": (with_file("tokenizer.json", b"hello"), "not a tokenizer (expected value"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "canary.py").write_text("import sys; sys.canary = True")
    monkeypatch.syspath_prepend(folder)
    harm, message = HOSTILE[case]
    harm(folder)
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        checkpoint.open(folder)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)
    assert not hasattr(sys, "bomb") and not hasattr(sys, "canary") and "canary" not in sys.modules


def test_a_tokenizer_of_another_model_is_refused(folder: Path, corpus: Path) -> None:
    train_tokenizer([str(corpus / "train.txt")], folder, vocab_size=330)
    with pytest.raises(CheckpointError, match="330 tokens, the model 320"):
        checkpoint.open(folder)


def test_only_hub_names_go_to_the_network(model: Path, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    requests: list[tuple[str, list[str]]] = []

    def unreachable(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        requests.append((name, allow_patterns))
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    for name in ("hf://owner/name", "owner/name"):
        with pytest.raises(CheckpointError, match=r"not available from the hub \(ConnectionError: no network\)"):
            checkpoint.open(name)
    (inside / "runs").mkdir()
    for name in ("runs/version_1", "version_1", "a/b/c"):
        with pytest.raises(CheckpointError, match="no such checkpoint or run folder"):
            checkpoint.open(name)
    assert [name for name, _ in requests] == ["owner/name"] * 2
    assert not any(fnmatch.fnmatch(name, pattern) for name in ("modeling.py", "a.bin") for pattern in requests[0][1])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(model))
    assert checkpoint.open("hf://owner/name").shape["n_embd"] == 32
    assert huggingface.find_folder(str(model)) == model
