"""Checks of a model's shape, tensors and tokenizer from an untrusted file, before anything is built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard, get_args

import torch
from tokenizers import Tokenizer

from gpt2kit.errors import CheckpointError
from gpt2kit.model.config import SHAPE_FIELDS, Activation, Shape, shape_problems, tensor_sizes
from gpt2kit.tokenization import tokenizer as tokenizers

EMBEDDING = "model.transformer.wte.weight"
HEAD = "model.lm_head.weight"
_LIMITS = {"n_layer": 1 << 10, "n_head": 1 << 10, "n_embd": 1 << 17, "vocab_size": 1 << 25, "n_positions": 1 << 22}


def check_shape(file: Path, raw: object) -> Shape:
    """Return the shape of a file after checking the type and range of each value."""
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: contains no model shape. Use a checkpoint that gpt2kit has trained")
    for name, value in raw.items():
        if not _is_valid(name, value):
            raise CheckpointError(f"{file}: model.{name} {value!r} is invalid: the file is damaged. Use another one")
    if names := sorted(set(raw) ^ set(SHAPE_FIELDS), key=str):
        raise CheckpointError(f"{file}: missing or unknown options in the model shape: {names}. Use another checkpoint")
    floats = ("initializer_range", "layer_norm_epsilon")  # transformers refuses integers for these
    shape = {name: float(value) if name in floats else value for name, value in raw.items()}
    if problems := shape_problems(shape):
        raise CheckpointError(f"{file}: {'; '.join(problems)}")
    return shape


def _is_valid(name: object, value: object) -> bool:
    if name in _LIMITS:
        return type(value) is int and 1 <= value <= _LIMITS[str(name)]
    if name == "n_inner":
        return value is None or (type(value) is int and 1 <= value <= 8 * _LIMITS["n_embd"])
    if name == "activation_function":
        return value in get_args(Activation)
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


def check_tensors(file: Path, shape: Shape, state: dict[str, Any]) -> None:
    """Raise unless the tensors are exactly those of a model of this shape, and finite. The model is not built.

    The output embedding must equal the input embedding: the model has one tensor for both and would lose one of them.
    """
    sizes = {f"model.{name}": size for name, size in tensor_sizes(shape).items()}
    for name in sorted(set(sizes) ^ set(state), key=str):
        difference = "is missing" if name in sizes else "is not part of the model"
        raise CheckpointError(f"{file}: tensor {name} {difference}. Use another checkpoint")
    for name, size in sizes.items():
        tensor = state[name]
        if not is_float_tensor(tensor) or tuple(tensor.shape) != size:
            is_tensor = isinstance(tensor, torch.Tensor)
            actual = f"{tensor.dtype} {tuple(tensor.shape)}" if is_tensor else type(tensor).__name__
            raise CheckpointError(f"{file}: tensor {name} is {actual}, but the model's shape requires floats {size}")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{file}: tensor {name} contains NaN or Inf. Use an earlier checkpoint")
    if not torch.equal(state[EMBEDDING], state[HEAD]):
        raise CheckpointError(
            f"{file}: the output embedding differs from the input embedding. Train the model with tied embeddings"
        )


def is_float_tensor(tensor: object) -> TypeGuard[torch.Tensor]:
    """Return whether this is a float tensor on the CPU with memory for each element: not sparse, not expanded."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def check_tokenizer(file: Path, shape: Shape, tokenizer: Tokenizer) -> None:
    """Raise if the tokenizer has more ids than the model."""
    size = tokenizers.size(tokenizer)
    if size > shape["vocab_size"]:
        raise CheckpointError(
            f"{file}: the tokenizer has {size} tokens, the model {shape['vocab_size']}: they do not belong together. "
            "Use another checkpoint"
        )


def model_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of a checkpoint in float32, under the model's names instead of the LightningModule's."""
    return {name.removeprefix("model."): tensor.float() for name, tensor in state.items()}
