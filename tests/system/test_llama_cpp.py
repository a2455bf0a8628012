"""GGUF files in llama.cpp itself; tests/proofs/prove_clients.py has more texts, every type and other programs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers import SAMPLE_TEXTS, SMALL_SHAPE, train_tokenizer, varied_texts
from proofs import llama_server

from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.export import gguf, huggingface
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer

CONTEXT, TEXTS, TOKENS = 64, 300, 12
PROMPTS = ["the quick brown", "白日依山盡", " a  b\n"]
# llama.cpp reads U+2581 as a space, so a vocabulary of characters with it is refused.
SOURCE = "\n".join(SAMPLE_TEXTS).replace("\u2581", "") + "\n"


@pytest.mark.parametrize("kind", ["bpe", "char", "spm-bpe"])
def test_llama_cpp_reads_and_continues_texts_with_the_same_ids(kind: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(SOURCE * 3, encoding="utf-8")
    train_tokenizer([str(tmp_path / "text.txt")], tmp_path / "tokenizer", kind, 480)
    encoder = tokenizer.load(tmp_path / "tokenizer")
    shape = {**SMALL_SHAPE, "vocab_size": tokenizer.size(encoder), "n_positions": CONTEXT}
    torch.manual_seed(1)
    model = GPT2(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # the logits of random weights are nearly equal
    opened = LoadedCheckpoint(tmp_path, shape, encoder, {}, state=dict(model.state_dict()))
    gguf.write(tmp_path / gguf.NAME, shape, huggingface.round_weights(opened, "float32"), encoder, "test")
    texts = varied_texts(TEXTS, SOURCE)
    if kind != "bpe":
        texts = [text.replace("\u2581", "") for text in texts]
    with llama_server.serving(sys.executable, tmp_path / gguf.NAME, CONTEXT) as address:
        for text, ids in zip(texts, tokenizer.encode_batch(encoder, texts), strict=True):
            assert llama_server.ask(address, "tokenize", content=text, parse_special=False)["tokens"] == ids, text
        settings = {"n_predict": TOKENS, "temperature": 0, "return_tokens": True, "ignore_eos": True}
        rows = [llama_server.ask(address, "completion", prompt=prompt, **settings)["tokens"] for prompt in PROMPTS]
    assert len(set(map(tuple, rows))) == len(PROMPTS)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        start = [tokenizer.eos_id(encoder), *tokenizer.encode(encoder, prompt)]
        assert huggingface.continue_greedily(model, start, len(start) + TOKENS)[len(start) :] == row, prompt
