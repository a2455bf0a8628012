"""Write a model as a GGUF file, for llama.cpp and programs built on it.

llama.cpp implements GPT-2 with its byte-level tokenizer. Other kinds of tokenizers and other activations are refused,
because llama.cpp would generate different text with them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gpt2kit.errors import Problems, refuse
from gpt2kit.model.config import Shape
from gpt2kit.tokenization import tokenizer as tokenizers

NAME = "model.gguf"
# gguf writes the file; transformers needs accelerate to read it.
PACKAGES = ("gguf", "accelerate")
# GPT-2's layers store these as [in, out]; GGUF, like nn.Linear, as [out, in].
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def gguf_problems(shape: Shape, tokenizer: Tokenizer) -> list[str]:
    """List why a GGUF file of this model would not generate the same text."""
    raw = json.loads(tokenizers.to_json(tokenizer))
    model, splitter = raw["model"], raw["pre_tokenizer"] or {}
    is_byte_level = (
        model["type"] == "BPE"
        and not model.get("byte_fallback")
        and not model.get("ignore_merges")
        and raw["normalizer"] is None
        and splitter.get("type") == "ByteLevel"
        and splitter.get("use_regex", True)
        and not splitter.get("add_prefix_space")
    )
    activation = shape["activation_function"]
    problems = Problems()
    problems.check(
        all(importlib.util.find_spec(package) for package in PACKAGES),
        "--gguf: needs two packages: pip install 'gguf>=0.17' 'accelerate>=1'",
    )
    problems.check(
        is_byte_level,
        "--gguf: llama.cpp splits text only as byte-level BPE does (--kind bpe), without a normalizer",
    )
    problems.check(
        tokenizers.find_eos(tokenizer) is not None,
        "--gguf: llama.cpp needs an end-of-text token, which this vocabulary lacks",
    )
    problems.check(
        all(token["special"] for token in raw["added_tokens"]),
        "--gguf: llama.cpp does not recognize special tokens in a text, as this tokenizer's parse_special does",
    )
    problems.check(activation == "gelu_new", f"--gguf: llama.cpp's GPT-2 uses gelu_new, not {activation}")
    return problems.messages


def write(path: Path, shape: Shape, state: dict[str, Tensor], tokenizer: Tokenizer, name: str) -> None:
    """Write the file, or raise if there are `gguf_problems`. Vectors and positions are float32.

    Args:
        path: the file to write.
        shape: the shape of the model.
        state: the tensors of the model under Hugging Face's names, without padded rows.
        tokenizer: the tokenizer of the model.
        name: the name of the model, for display.
    """
    refuse(gguf_problems(shape, tokenizer))
    import gguf

    kind = gguf.MODEL_ARCH.GPT2
    names = gguf.get_tensor_name_map(kind, shape["n_layer"])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    _add_metadata(writer, shape, tokenizer, name, state["transformer.wte.weight"].dtype)
    for key, tensor in state.items():
        if key == "lm_head.weight":  # tied: readers use the input embedding
            continue
        gguf_key = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert gguf_key is not None, key
        values = (tensor.T if key.endswith(TRANSPOSED) else tensor).contiguous()
        if tensor.ndim < 2 or key == "transformer.wpe.weight":
            values = values.float()
        if values.dtype == torch.bfloat16:  # numpy has no such type
            raw = values.view(torch.int16).numpy().view("uint8")
            writer.add_tensor(gguf_key, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(gguf_key, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: Any, shape: Shape, tokenizer: Tokenizer, name: str, dtype: torch.dtype) -> None:
    import gguf

    file_types = {
        torch.float32: gguf.LlamaFileType.ALL_F32,
        torch.float16: gguf.LlamaFileType.MOSTLY_F16,
        torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
    }
    writer.add_name(name)
    writer.add_block_count(shape["n_layer"])
    writer.add_context_length(shape["n_positions"])
    writer.add_embedding_length(shape["n_embd"])
    writer.add_feed_forward_length(shape["n_inner"] or 4 * shape["n_embd"])
    writer.add_head_count(shape["n_head"])
    writer.add_layer_norm_eps(shape["layer_norm_epsilon"])
    writer.add_file_type(file_types[dtype])
    vocabulary = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    special = set(tokenizer.get_added_tokens_decoder())
    size, end = int(shape["vocab_size"]), tokenizers.eos_id(tokenizer)
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([vocabulary.get(i, f"[unused {i}]") for i in range(size)])
    used = [kinds.NORMAL if i in vocabulary else kinds.UNUSED for i in range(size)]
    writer.add_token_types([kinds.CONTROL if i in special else kind for i, kind in enumerate(used)])
    merges = json.loads(tokenizers.to_json(tokenizer))["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(True)  # in training, this token precedes each text
