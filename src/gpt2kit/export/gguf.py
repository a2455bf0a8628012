"""Write a model as a GGUF file, for llama.cpp and programs built on it, and a Modelfile for ollama.

llama.cpp implements GPT-2. Tokenizers and activations that it does not implement are refused, because it would generate
different text with them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gpt2kit.errors import CheckpointError, Problems, problems_of, refuse
from gpt2kit.export import gguf_vocabulary
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.model.config import Dtype, GGUFType, Shape
from gpt2kit.tokenization import tokenizer as tokenizers

NAME, MODELFILE = "model.gguf", "Modelfile"
# gguf writes the file; transformers needs accelerate to read it.
PACKAGES = ("gguf", "accelerate")
# GPT-2's layers store these as [in, out]; GGUF, like nn.Linear, as [out, in].
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
_EMBEDDING, _POSITIONS, _HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"
_OF_DTYPE: dict[Dtype, GGUFType] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# A quantized row consists of blocks of this many values with one scale.
_BLOCK = 32


def gguf_problems(shape: Shape, tokenizer: Tokenizer) -> list[str]:
    """List why a GGUF file of this model would not generate the same text."""
    activation = shape["activation_function"]
    problems = Problems()
    problems.check(
        all(importlib.util.find_spec(package) for package in PACKAGES),
        "--gguf: needs two packages: pip install 'gguf>=0.17' 'accelerate>=1'",
    )
    problems.messages += problems_of(gguf_vocabulary.describe, tokenizer)
    problems.check(
        tokenizers.find_eos(tokenizer) is not None,
        "--gguf: llama.cpp needs an end-of-text token, which this vocabulary lacks",
    )
    problems.check(
        all(token["special"] for token in json.loads(tokenizers.to_json(tokenizer))["added_tokens"]),
        "--gguf: llama.cpp does not recognize special tokens in a text, as this tokenizer's parse_special does",
    )
    problems.check(activation == "gelu_new", f"--gguf: llama.cpp's GPT-2 uses gelu_new, not {activation}")
    return problems.messages


def type_of(dtype: Dtype, gguf_type: GGUFType | None) -> GGUFType:
    """Return the type of the matrices: by default that of the folder's weights."""
    return gguf_type or _OF_DTYPE[dtype]


def tensor_type(name: str, tensor: Tensor, gguf_type: GGUFType) -> GGUFType:
    """Return the type of one tensor in a file whose matrices have `gguf_type`.

    Vectors and positions are float32. Rows that do not consist of whole blocks are f16. The token embedding is at least
    q8_0: it is also the output layer, where four bits cost the most.
    """
    if tensor.ndim < 2 or name == _POSITIONS:
        return "f32"
    if gguf_type not in ("q8_0", "q4_0"):
        return gguf_type
    row = tensor.shape[0] if name.endswith(TRANSPOSED) else tensor.shape[1]
    if row % _BLOCK:
        return "f16"
    return "q8_0" if name == _EMBEDDING else gguf_type


def unquantized(state: dict[str, Tensor], gguf_type: GGUFType) -> list[str]:
    """Return the names of the matrices that a quantized file holds in f16, because their rows have a rest."""
    is_quantized = gguf_type in ("q8_0", "q4_0")
    types = {name: tensor_type(name, tensor, gguf_type) for name, tensor in state.items() if name != _HEAD}
    return [name for name, type_ in types.items() if type_ == "f16"] if is_quantized else []


def summarize(file: Path, state: dict[str, Tensor], gguf_type: GGUFType, rounding: float) -> str:
    """Describe a file in a line. `rounding` is the largest difference of logits that its type causes."""
    line = f"{file}: {gguf_type}, {file.stat().st_size / 1e6:,.1f} MB"
    if gguf_type != "f32":
        line += f"; rounding to {gguf_type} changes logits by up to {rounding:.2g}"
    if names := unquantized(state, gguf_type):
        width = f"rows of their layers are not a multiple of {_BLOCK} long"
        line += f"; {len(names)} matrices, such as {names[0]}, are f16, because {width}"
    return line


def round_weights(state: dict[str, Tensor], gguf_type: GGUFType) -> dict[str, Tensor]:
    """Return the weights that a file of this type holds, in float32."""
    import gguf

    rounded = {}
    for name, tensor in state.items():
        if name == _HEAD:
            continue
        values = _quantize(name, tensor, gguf_type)
        matrix = torch.from_numpy(gguf.quants.dequantize(*values).reshape(_layout(name, tensor).shape).copy())
        rounded[name] = matrix.T.contiguous() if name.endswith(TRANSPOSED) else matrix
    return {**rounded, _HEAD: rounded[_EMBEDDING]}


def _layout(name: str, tensor: Tensor) -> Tensor:
    return (tensor.T if name.endswith(TRANSPOSED) else tensor).contiguous()


def _quantize(name: str, tensor: Tensor, gguf_type: GGUFType) -> tuple[Any, Any]:
    """Return a tensor's values as in a file, and their type there."""
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[tensor_type(name, tensor, gguf_type).upper()]
    with np.errstate(over="ignore", invalid="ignore"):
        values = gguf.quants.quantize(_layout(name, tensor).float().numpy(), kind)
        is_finite = np.isfinite(gguf.quants.dequantize(values, kind)).all()
    if not is_finite:
        raise CheckpointError(f"{name}: too large for {gguf_type}. Use --gguf_type bf16 or f32")
    return values, kind


def write(
    path: Path, shape: Shape, state: dict[str, Tensor], tokenizer: Tokenizer, name: str, gguf_type: GGUFType = "f32"
) -> None:
    """Write the file, or raise if there are `gguf_problems`.

    Args:
        path: the file to write.
        shape: the shape of the model.
        state: the tensors of the model under Hugging Face's names, without padded rows.
        tokenizer: the tokenizer of the model.
        name: the name of the model, for display.
        gguf_type: the type of the matrices, see `tensor_type`.
    """
    refuse(gguf_problems(shape, tokenizer))
    import gguf

    kind = gguf.MODEL_ARCH.GPT2
    names = gguf.get_tensor_name_map(kind, shape["n_layer"])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    _add_metadata(writer, shape, name, gguf_type)
    _add_vocabulary(writer, tokenizer, int(shape["vocab_size"]))
    for key, tensor in state.items():
        if key == _HEAD:  # tied: readers use the input embedding
            continue
        gguf_key = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert gguf_key is not None, key
        values, values_type = _quantize(key, tensor, gguf_type)
        writer.add_tensor(gguf_key, values, raw_dtype=values_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: Any, shape: Shape, name: str, gguf_type: GGUFType) -> None:
    import gguf

    file_types = {"f32": gguf.LlamaFileType.ALL_F32} | {
        name: gguf.LlamaFileType[f"MOSTLY_{name.upper()}"] for name in ("f16", "bf16", "q8_0", "q4_0")
    }
    writer.add_name(name)
    writer.add_block_count(shape["n_layer"])
    writer.add_context_length(shape["n_positions"])
    writer.add_embedding_length(shape["n_embd"])
    writer.add_feed_forward_length(shape["n_inner"] or 4 * shape["n_embd"])
    writer.add_head_count(shape["n_head"])
    writer.add_layer_norm_eps(shape["layer_norm_epsilon"])
    writer.add_file_type(file_types[gguf_type])


def _add_vocabulary(writer: Any, tokenizer: Tokenizer, size: int) -> None:
    import gguf

    kinds = gguf.TokenType
    vocabulary, end = gguf_vocabulary.describe(tokenizer), tokenizers.eos_id(tokenizer)
    special = tokenizers.added_ids(tokenizer)
    types = dict.fromkeys(vocabulary.tokens, kinds.NORMAL)
    types |= dict.fromkeys(vocabulary.byte_ids, kinds.BYTE) | dict.fromkeys(special, kinds.CONTROL)
    tokens = [vocabulary.tokens.get(i, f"[unused {i}]") for i in range(size)]
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(tokens)
    writer.add_token_types([types.get(i, kinds.UNUSED) for i in range(size)])
    if vocabulary.model == "gpt2":
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([vocabulary.scores.get(token, 0.0) for token in tokens])
        writer.add_add_space_prefix(False)
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(True)  # in training, this token precedes each text


def modelfile(shape: Shape) -> str:
    """Return a Modelfile: with it, ollama continues a prompt as it is, with the defaults of generate.py."""
    options = GenerationOptions()
    parameters = {
        "stop": f'"{tokenizers.EOS}"',
        "num_ctx": shape["n_positions"],  # ollama's own default is longer than many models
        "num_predict": min(options.token_limit or 0, shape["n_positions"] // 2),
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repeat_penalty": options.repetition_penalty,
    }
    lines = [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    return "\n".join([f"FROM ./{NAME}", 'TEMPLATE """{{ .Prompt }}"""', *lines, ""])
