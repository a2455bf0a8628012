from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SAMPLE_TEXTS, SMALL, SMALL_SHAPE, train_each_kind, train_tokenizer, varied_texts
from tokenizers import Tokenizer

from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.export import gguf, gguf_vocabulary
from gpt2kit.export.gguf_vocabulary import Vocabulary
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer

KINDS = ["bpe", "char", "spm-bpe", "char without a space"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("kinds")
    # Without U+2581: a vocabulary that has this character is refused.
    (folder / "text.txt").write_text("\n".join(SAMPLE_TEXTS * 3).replace("\u2581", "") + "\n", encoding="utf-8")
    (folder / "poem.txt").write_text("白日依山盡，黃河入海流。\n" * 9, encoding="utf-8")
    for kind in KINDS:
        name, text = kind.split()[0], "poem.txt" if "without" in kind else "text.txt"
        train_tokenizer([str(folder / text)], folder / kind, name, 480)
    return {kind: tokenizer.load(folder / kind) for kind in KINDS}


def small_model(size: int, **changes: int) -> GPT2:
    torch.manual_seed(1)
    return GPT2({**SMALL_SHAPE, "vocab_size": size, "n_positions": 128, **changes}).eval()


def unpadded(model: GPT2) -> dict[str, torch.Tensor]:
    """Return the tensors of a model without padded rows of the embedding."""
    size = model.shape["vocab_size"]
    rows = model.transformer.wte.weight.data[:size]
    return {**model.state_dict(), "transformer.wte.weight": rows, "lm_head.weight": rows}


def merge_by_score(vocabulary: Vocabulary, text: str) -> list[int]:
    """Return the ids of a text as llama.cpp's `llama` does: it merges the best pair, of several the leftmost one."""
    ids = {token: i for i, token in vocabulary.tokens.items()}
    symbols = list(text.replace(" ", "\u2581"))
    while True:
        pairs = [first + second for first, second in itertools.pairwise(symbols)]
        known = [(-vocabulary.scores.get(pair, 0.0), at) for at, pair in enumerate(pairs) if pair in ids]
        if not known:
            break
        at = min(known)[1]
        symbols[at : at + 2] = [pairs[at]]
    names = ([symbol] if symbol in ids else [f"<0x{byte:02X}>" for byte in symbol.encode()] for symbol in symbols)
    return [ids[name] for symbol_names in names for name in symbol_names]


@pytest.mark.parametrize("kind", ["char", "spm-bpe", "char without a space"])
def test_merging_by_scores_gives_the_same_ids(trained: dict[str, Tokenizer], kind: str) -> None:
    vocabulary = gguf_vocabulary.describe(trained[kind])
    texts = [text.replace("\u2581", "") for text in varied_texts(600, "\n".join(SAMPLE_TEXTS))]
    assert vocabulary.model == "llama" and len(vocabulary.byte_ids) == (255 if "without" in kind else 256)
    for text, ids in zip(texts, tokenizer.encode_batch(trained[kind], texts), strict=True):
        assert merge_by_score(vocabulary, text) == ids, text


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("spm-unigram", {}, "has no bytes for characters"),
        ("words", {}, "has no tokenizer of whole words"),
        ("wordpiece", {}, "does not split text as this WordPiece does"),
        ("bpe", {"normalizer": "nfkc"}, "does not normalize text"),
        ("char", {"normalizer": "nfc"}, "does not normalize text"),
        ("char", {"special_tokens": ["[]"]}, "would merge characters to tokens"),
    ],
)
def test_tokenizers_that_llama_cpp_does_not_implement_are_refused(
    kind: str, options: dict[str, Any], reason: str, corpus: Path, tmp_path: Path
) -> None:
    train_tokenizer([str(corpus / "train.txt")], tmp_path, kind=kind, vocab_size=300, **options)
    (problem,) = gguf.gguf_problems(SMALL_SHAPE, tokenizer.load(tmp_path))
    assert problem.startswith(f"--gguf: llama.cpp {reason}") and "--kind bpe, char or spm-bpe" in problem


def test_a_vocabulary_with_the_sign_for_a_space_is_refused(tmp_path: Path) -> None:
    train_each_kind(tmp_path)
    with pytest.raises(UserError, match=r"reads . \(U\+2581\) as a space"):
        gguf_vocabulary.describe(tokenizer.load(tmp_path / "char"))


def test_other_merges_than_those_of_sentencepiece_are_refused(trained: dict[str, Tokenizer]) -> None:
    raw = json.loads(tokenizer.to_json(trained["spm-bpe"]))
    merges = raw["model"]["merges"]
    tokens = ["".join(pair) for pair in merges]
    pair = next(pair for pair, token in zip(merges, tokens, strict=True) if tokens.count(token) > 1)
    others = [other for other in merges if other != pair]
    for changed, reason in ((others, "would merge characters to tokens"), ([*others, pair], "merges the pairs of one")):
        raw["model"]["merges"] = changed
        with pytest.raises(UserError, match=reason):
            gguf_vocabulary.describe(Tokenizer.from_str(json.dumps(raw)))


def test_other_activations_are_refused(corpus: Path) -> None:
    byte_level = tokenizer.load(corpus / "tokenizer")
    assert not gguf.gguf_problems(SMALL_SHAPE, byte_level)
    assert "not relu" in gguf.gguf_problems({**SMALL_SHAPE, "activation_function": "relu"}, byte_level)[0]


@pytest.mark.parametrize("gguf_type", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_a_file_holds_the_rounded_weights(gguf_type: Any, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    model = small_model(tokenizer.size(trained["bpe"]))
    state = unpadded(model)
    gguf.write(tmp_path / gguf.NAME, model.shape, state, trained["bpe"], "test", gguf_type)
    file = {tensor.name: tensor for tensor in GGUFReader(tmp_path / gguf.NAME).tensors}
    rounded = gguf.round_weights(state, gguf_type)
    embedding = file["token_embd.weight"]
    values = torch.from_numpy(dequantize(embedding.data, embedding.tensor_type).reshape(-1, SMALL["n_embd"]).copy())
    assert torch.equal(values, rounded["transformer.wte.weight"])
    assert embedding.tensor_type.name.lower() == {"q4_0": "q8_0"}.get(gguf_type, gguf_type)
    assert file["blk.0.ffn_up.weight"].tensor_type.name.lower() == gguf_type
    assert file["position_embd.weight"].tensor_type.name == file["blk.0.ffn_up.bias"].tensor_type.name == "F32"
    largest = {"f32": 0, "f16": 1e-4, "bf16": 1e-3, "q8_0": 1e-3, "q4_0": 2e-2}[gguf_type]
    for name, tensor in state.items():
        assert rounded[name].shape == tensor.shape and (rounded[name] - tensor).abs().max() <= largest, name


def test_rows_that_are_not_whole_blocks_stay_in_16_bits(tmp_path: Path) -> None:
    state = small_model(300, n_embd=48).state_dict()
    types = {name: gguf.tensor_type(name, tensor, "q4_0") for name, tensor in state.items()}
    assert types["transformer.h.0.attn.c_attn.weight"] == types["transformer.wte.weight"] == "f16"
    assert types["transformer.h.0.mlp.c_proj.weight"] == "q4_0", "its rows have 192 values"
    (tmp_path / "a.gguf").touch()
    line = gguf.summarize(tmp_path / "a.gguf", state, "q4_0", 0.5)
    assert "changes logits by up to 0.5" in line and "7 matrices, such as transformer.wte.weight, are f16" in line
    assert "are f16" not in gguf.summarize(tmp_path / "a.gguf", small_model(300).state_dict(), "q4_0", 0.5)


def test_weights_that_are_too_large_for_a_type_are_refused() -> None:
    state = small_model(300).state_dict()
    state["transformer.h.0.mlp.c_fc.weight"][0, 0] = 1e9
    gguf.round_weights(state, "bf16")
    for gguf_type in ("f16", "q8_0"):
        with pytest.raises(CheckpointError, match=rf"c_fc.weight: too large for {gguf_type}. Use --gguf_type bf16"):
            gguf.round_weights(state, gguf_type)  # type: ignore[arg-type]


def test_the_modelfile_has_the_defaults_of_generation() -> None:
    lines = gguf.modelfile(SMALL_SHAPE).splitlines()
    assert lines[:2] == ["FROM ./model.gguf", 'TEMPLATE """{{ .Prompt }}"""']
    assert {'PARAMETER stop "<|endoftext|>"', "PARAMETER num_ctx 16", "PARAMETER num_predict 8"} < set(lines)
    assert f"PARAMETER temperature {GenerationOptions().temperature}" in lines
