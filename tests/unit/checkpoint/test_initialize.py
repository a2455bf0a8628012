"""Loading the weights of another model, adapted to another context and vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_huggingface_model, train_tokenizer
from torch import Tensor

from gpt2kit.checkpoint import checkpoint, initialize
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.vocabulary_transfer import map_vocabulary, resize_positions
from gpt2kit.tokenization import existing, tokenizer
from gpt2kit.tokenization.options import TokenizerSpec


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_huggingface_model(corpus / "tokenizer", tmp_path_factory.mktemp("model"))


@pytest.fixture
def source(folder: Path) -> LoadedCheckpoint:
    return checkpoint.open(folder)


@pytest.fixture(scope="module")
def characters(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tokenizer, of characters."""
    folder = tmp_path_factory.mktemp("characters")
    train_tokenizer([str(corpus / "train.txt")], folder, kind="char")
    return folder


def logits(model: GPT2, embeddings: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(inputs_embeds=embeddings[None], use_cache=False).logits[0]
    return output


def test_loaded_weights_give_the_logits_of_their_source(source: LoadedCheckpoint) -> None:
    model = GPT2(source.shape)
    start, lines = initialize.load_initial_weights(model, source, source.tokenizer, "a")
    assert lines == ["weights of a"] and start["vocabulary"] is None and start["context"] == [16, 16]
    embeddings = source.model.transformer.wte.weight[:16].detach()
    expected = logits(source.model, embeddings)
    assert torch.equal(logits(model, embeddings), expected)
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
    assert torch.equal(logits(source.model, embeddings), expected), "training does not change the source"


@pytest.mark.parametrize(("size", "change"), [(8, "cut off"), (24, "interpolated; train for some steps")])
def test_positions_are_adapted_to_another_context(size: int, change: str, source: LoadedCheckpoint) -> None:
    model = GPT2({**source.shape, "n_positions": size})
    start, lines = initialize.load_initial_weights(model, source, source.tokenizer, "a")
    assert lines[1:] == [f"context {size} instead of 16 tokens: position embeddings are {change}"]
    positions = source.state["transformer.wpe.weight"]
    assert start["context"] == [16, size]
    assert torch.equal(model.transformer.wpe.weight, resize_positions(positions, size))


@pytest.mark.parametrize("size", [8, 16, 24])
def test_copied_tokens_keep_their_logits_in_another_vocabulary_and_context(
    size: int, source: LoadedCheckpoint, characters: Path
) -> None:
    new = tokenizer.load(characters)
    model = GPT2({**source.shape, "vocab_size": tokenizer.size(new), "n_positions": size})
    start, _ = initialize.load_initial_weights(model, source, new, "a", replace_tokenizer=True)
    assert start["vocabulary"]["copied"] == tokenizer.size(new)
    pairs = [(i, ids[0]) for i, ids in enumerate(map_vocabulary(new, source.tokenizer).old_ids) if len(ids) == 1][:8]
    new_ids, old_ids = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    transformer, old_transformer = model.transformer, source.model.transformer
    shift = old_transformer.wpe.weight[: len(pairs)] - transformer.wpe.weight[: len(pairs)]  # the contexts differ
    actual = logits(model, (transformer.wte(new_ids) + shift).detach())[:, new_ids]
    torch.testing.assert_close(actual, logits(source.model, old_transformer.wte(old_ids).detach())[:, old_ids])
    assert model.lm_head.weight is transformer.wte.weight


def test_the_token_that_becomes_the_line_break_keeps_its_row(folder: Path, tmp_path: Path) -> None:
    bert = Path(shutil.copytree(folder, tmp_path / "bert"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bert / name).unlink(missing_ok=True)
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(316))]
    (bert / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    source = checkpoint.open(bert)
    assert tokenizer.eos_id(source.tokenizer) == 3
    new = existing.adopt(TokenizerSpec("wordpiece", vocab=str(bert / "vocab.txt"), newline="[SEP]"))
    model = GPT2({**source.shape, "vocab_size": 321})
    start, lines = initialize.load_initial_weights(model, source, new, "a")  # without replace_tokenizer
    assert lines[1:] == [
        "the token that ended a text is now the line break. <|endoftext|> is added as token 320, and starts as the "
        "mean of all"
    ]
    before, after = source.state["transformer.wte.weight"], model.transformer.wte.weight
    assert torch.equal(after[:320], before[:320]) and tokenizer.encode(new, "w5\nw6") == [9, 3, 10]
    torch.testing.assert_close(after[320], before[4:320].mean(0))
    assert start["vocabulary"]["copied"] == 320
    other = existing.adopt(TokenizerSpec("wordpiece", vocab=str(bert / "vocab.txt")))
    with pytest.raises(UserError, match="321 tokens instead of 320"):  # its [SEP] is neither an end nor a line break
        initialize.map_source_vocabulary(source, other, "a", replace_tokenizer=False)


def test_another_vocabulary_must_be_requested(source: LoadedCheckpoint, characters: Path) -> None:
    with pytest.raises(UserError, match=r"tokens instead of 320.*--model\.replace_tokenizer true"):
        initialize.map_source_vocabulary(source, tokenizer.load(characters), "a", replace_tokenizer=False)


def test_a_source_that_cannot_be_opened_is_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (copy / "model.safetensors").unlink()
    for path, message in ((copy, "contains neither"), (tmp_path / "none", "no such"), ("hf://a/b", "a/b: no such")):
        with pytest.raises(CheckpointError, match=f"model.init_from: .*{message}"):
            initialize.open_source(str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_steps": 2}, "model.freeze_steps 2: needs model.freeze"),
        ({"lora_r": 4}, "model.lora_r: needs model.init_from"),
        ({"replace_tokenizer": True}, "model.replace_tokenizer: needs model.init_from"),
        ({"lora_r": 4, "init_from": "a", "freeze": "body"}, "model.lora_r freezes all weights"),
        ({"lora_alpha": 3.0}, "model.lora_alpha 3.0: needs model.lora_r"),
        ({"adapter_base": "a"}, "model.adapter_base: needs model.init_from"),
    ],
)
def test_contradicting_options_are_reported(options: dict[str, Any], message: str) -> None:
    defaults = {
        "init_from": None,
        "freeze": (),
        "freeze_steps": None,
        "adapter_base": None,
        "lora_r": 0,
        "lora_alpha": None,
        "replace_tokenizer": False,
    }
    problems = initialize.option_problems({**defaults, **options})
    assert any(problem.startswith(message) or message in problem for problem in problems)
    assert initialize.option_problems(defaults) == []
