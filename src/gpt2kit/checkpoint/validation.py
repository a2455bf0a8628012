"""A model's shape and tensors out of a file that may come from anyone: looked at before anything is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard, get_args

import torch

from gpt2kit.errors import CheckpointError
from gpt2kit.model.config import SHAPE, Activation, shape_problems, tensor_sizes

EMBEDDING = "model.transformer.wte.weight"
HEAD = "model.lm_head.weight"
_LIMITS = {"n_layer": 1 << 10, "n_head": 1 << 10, "n_embd": 1 << 17, "vocab_size": 1 << 25, "n_positions": 1 << 22}


def shape_of(file: Path, raw: object) -> dict[str, Any]:
    """The shape out of a file, each value checked for type and range."""
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"{file}: says nothing of its model's shape. Give a checkpoint that trainer.py has written"
        )
    for name, value in raw.items():
        if not _plausible(name, value):
            raise CheckpointError(f"{file}: model.{name} {value!r} cannot be. The file is damaged or not from gpt2kit")
    floats = ("initializer_range", "layer_norm_epsilon")
    shape = {name: float(value) if name in floats else value for name, value in raw.items()}
    expected = set(SHAPE)
    if set(shape) != expected:
        raise CheckpointError(
            f"{file}: its model's shape names {sorted(set(shape) ^ expected)}. It is not from this gpt2kit"
        )
    if problems := shape_problems(shape):
        raise CheckpointError(f"{file}: {'; '.join(problems)}")
    return shape


def _plausible(name: object, value: object) -> bool:
    if name in _LIMITS:
        return type(value) is int and 1 <= value <= _LIMITS[str(name)]
    if name == "n_inner":
        return value is None or (type(value) is int and 1 <= value <= 8 * _LIMITS["n_embd"])
    if name == "activation_function":
        return value in get_args(Activation)
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


def check(file: Path, shape: dict[str, Any], state: dict[str, Any]) -> None:
    """The tensors are those of a model of this shape, no fewer, no more, and finite; nothing is allocated for it.

    Input and output embedding must be the same: the model has one for both, so of two that differ one would be lost,
    and the figures of such a model say nothing of the one that was trained.
    """
    wanted = {f"model.{name}": size for name, size in tensor_sizes(shape).items()}
    for name in sorted(set(wanted) ^ set(state), key=str):
        raise CheckpointError(f"{file}: tensor {name} is {'missing' if name in wanted else 'not of this model'}")
    for name, size in wanted.items():
        tensor = state[name]
        if not solid(tensor) or tuple(tensor.shape) != size:
            found = (
                f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            )
            raise CheckpointError(f"{file}: tensor {name} is {found}, the model's shape asks for floats {size}")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{file}: tensor {name} holds NaN or Inf. Use an earlier checkpoint")
    if not torch.equal(state[EMBEDDING], state[HEAD]):
        raise CheckpointError(
            f"{file}: its output embedding is not its input embedding, as GPT-2's is. Train it with the two tied"
        )


def of_model(state: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors by the model's own names, in float32; a checkpoint has those of the LightningModule."""
    return {name.removeprefix("model."): tensor.float() for name, tensor in state.items()}


def solid(tensor: object) -> TypeGuard[torch.Tensor]:
    """Whether it is a tensor with a float for each of its places; one may also repeat a few, or hold none."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )
