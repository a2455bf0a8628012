"""Checkpoints of nanoGPT, its forks, and GPT2 by affjljoo3581: a GPT-2 under other names, without a tokenizer.

A file may come from anyone. Its tensors are renamed here, and checked like those of any other file afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from gpt2kit.checkpoint import validation
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.errors import CheckpointError, DataError
from gpt2kit.model.config import Shape, padded_vocab_size
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.existing import open_closed

# Patterns of names in these files, and what GPT2LMHeadModel calls the same tensors.
_NAMES = (
    (r"^(_orig_mod\.|module\.)+", ""),  # of torch.compile and DistributedDataParallel
    (r"^token_embedding\.", "transformer.wte."),
    (r"^positional_embedding\.", "transformer.wpe."),
    (r"^ln_head\.", "transformer.ln_f."),
    (r"^(transformers|transformer\.attn)\.(\d+)\.", r"transformer.h.\2."),
    (r"\.attn\.linear\.", ".attn.c_proj."),
    (r"\.ff\.0\.", ".mlp.c_fc."),
    (r"\.ff\.3\.", ".mlp.c_proj."),
    (r"\.ln_attn\.", ".ln_1."),
    (r"\.ln_ff\.", ".ln_2."),
)
_CAUSAL_MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")
_QUERY = ".attn.proj_q."
# These programs store the weights of linear layers as [out, in]; GPT-2's layers are [in, out].
_LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
_EMBEDDINGS = (validation.EMBEDDING, validation.HEAD, "model.transformer.wpe.weight")
# These programs round the size of a vocabulary up to a multiple of one of these.
_MULTIPLES = (1, 8, 64, 128)


class NoTokenizer(CheckpointError):
    """The checkpoint needs a tokenizer, and none is given."""


def read(file: Path, raw: Mapping[Any, Any], options: ForeignOptions) -> tuple[Shape, dict[str, Any], Tokenizer] | None:
    """Return the shape, the tensors and the tokenizer of a checkpoint; None if it is of another kind.

    Args:
        file: the path of the checkpoint.
        raw: its content.
        options: what the file does not contain.
    """
    tensors = raw.get("model", raw)
    state = _rename(file, tensors) if isinstance(tensors, dict) else {}
    embedding, positions = state.get(validation.EMBEDDING), state.get(_EMBEDDINGS[2])
    if not (_is_matrix(embedding) and _is_matrix(positions)):
        return None
    if options.tokenizer is None:
        raise NoTokenizer(
            f"{file}: a checkpoint of another program, without a tokenizer. Give the vocabulary that it was trained "
            "with as --tokenizer PATH, such as nanoGPT's meta.pkl"
        )
    state.setdefault(validation.HEAD, embedding)
    rows, width = embedding.shape
    inner = state.get("model.transformer.h.0.mlp.c_fc.bias")
    shape: Shape = {
        "n_layer": len({name.split(".")[3] for name in state if name.startswith("model.transformer.h.")}),
        "n_head": _heads(file, raw, options.n_head),
        "n_embd": width,
        "n_inner": len(inner) if validation.is_float_tensor(inner) and inner.shape not in ((), (4 * width,)) else None,
        "activation_function": "silu" if any("token_embedding" in str(name) for name in tensors) else "gelu",
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
        "vocab_size": rows,
        "n_positions": len(positions),
    }
    shape = validation.check_shape(file, shape)
    tokenizer = _open_tokenizer(options.tokenizer, rows)
    shape["vocab_size"] = size = tokenizers.size(tokenizer)
    if rows not in [-(-size // multiple) * multiple for multiple in _MULTIPLES]:
        raise CheckpointError(
            f"{file}: its model has {rows:,} tokens, but --tokenizer {options.tokenizer} {size:,}: they do not belong "
            "together. Name the vocabulary that it was trained with"
        )
    for name in _EMBEDDINGS[:2]:
        if _is_matrix(state[name]):
            state[name] = F.pad(state[name][:size], (0, 0, 0, padded_vocab_size(size) - size))  # (padded rows, n_embd)
    return shape, state, tokenizer


def _rename(file: Path, raw: Mapping[Any, Any]) -> dict[str, Any]:
    """Return tensors by the names that gpt2kit's checkpoints use, in GPT-2's layout; missing biases are zeros."""
    named: dict[str, Any] = {}
    for key, tensor in raw.items():
        name = str(key)
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if _CAUSAL_MASK.fullmatch(name):
            continue
        if name in named:
            raise CheckpointError(f"{file}: contains {name:.100} under two names. Save the model again")
        named[name] = tensor
    for name in [name for name in named if _QUERY in name]:
        parts = [name.replace(_QUERY, f".attn.proj_{part}.") for part in "qkv"]
        tensors: list[Any] = [named.get(part) for part in parts]
        if all(validation.is_float_tensor(t) and t.ndim and t.shape == tensors[0].shape for t in tensors):
            named[name.replace(_QUERY, ".attn.c_attn.")] = torch.cat(tensors)
            for part in parts:
                del named[part]
    state = {
        f"model.{name}": tensor.T if name.endswith(_LINEAR) and _is_matrix(tensor) else tensor
        for name, tensor in named.items()
    }
    if not any(name.endswith(".bias") for name in state):
        weights = [name for name in state if name.endswith(".weight") and name not in _EMBEDDINGS]
        for name in weights:
            tensor = state[name]
            is_valid = validation.is_float_tensor(tensor) and tensor.numel()  # without elements, it may claim any width
            state[name.replace(".weight", ".bias")] = tensor.new_zeros(tensor.shape[-1:]) if is_valid else None
    return state


def _heads(file: Path, raw: Mapping[Any, Any], given: int | None) -> Any:
    """Return the number of attention heads, which the tensors do not tell; one in a file may have any type."""
    settings = raw.get("model_args")
    recorded = settings.get("n_head") if isinstance(settings, dict) else None
    if recorded is None and given is None:
        raise CheckpointError(
            f"{file}: does not record its number of attention heads. Give the number that it was trained with as "
            "--n_head N"
        )
    if given is not None and recorded is not None and (type(recorded), recorded) != (int, given):
        raise CheckpointError(f"{file}: records {recorded!r:.60} attention heads, not --n_head {given}. Omit it")
    return given if recorded is None else recorded


def _open_tokenizer(path: str, rows: int) -> Tokenizer:
    try:
        return open_closed(path, rows)
    except DataError as error:
        raise CheckpointError(str(error).replace(f"--vocab {path}", f"--tokenizer {path}")) from None


def _is_matrix(tensor: object) -> TypeGuard[torch.Tensor]:
    return validation.is_float_tensor(tensor) and tensor.ndim == 2
