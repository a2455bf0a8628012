"""Checks of a model's shape, tensors and tokenizer from an untrusted file, before anything is built from them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard, get_args

import torch
from tokenizers import Tokenizer

from gpt2kit import dtensor
from gpt2kit.errors import CheckpointError
from gpt2kit.model.config import SHAPE_FIELDS, Activation, Shape, shape_problems, tensor_sizes
from gpt2kit.tokenization import tokenizer as tokenizers

EMBEDDING = "model.transformer.wte.weight"
HEAD = "model.lm_head.weight"
# What a checkpoint must contain to be resumed, besides the state of Lightning's loops.
_RESUMABLE: dict[str, Any] = {
    "pytorch-lightning_version": str,
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "gpt2kit": {"shape": dict, "data": dict, "tokenizer": str, "step": int, "skipped": int},
    "loops": {"fit_loop": dict},
    "callbacks": dict,
    "optimizer_states": [{"state": dict, "param_groups": [{"params": list}]}],
    "lr_schedulers": [
        {"base_lrs": [float], "last_epoch": int, "_step_count": int, "_last_lr": [float], "lr_lambdas": list}
    ],
}
_ALSO_ALLOWED: dict[type, tuple[type, ...]] = {
    list: (list, tuple),
    float: (int, float),
    type(None): (int, float, type(None)),
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTS = ("n_layer", "n_head", "n_embd", "n_inner", "vocab_size", "n_positions")


def check_shape(file: Path, raw: object) -> Shape:
    """Return the shape of a file after checking the type and range of each value."""
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: contains no model shape. Use a checkpoint that gpt2kit has trained")
    for name, value in raw.items():
        if not _has_type(name, value):
            raise CheckpointError(
                f"{file}: model.{name!s:.60} {value!r:.60} is invalid: the file is damaged. Use another one"
            )
    if names := sorted(set(raw) ^ set(SHAPE_FIELDS), key=str):
        raise CheckpointError(
            f"{file}: missing or unknown options in the model shape: {names!s:.200}. Use another checkpoint"
        )
    if problems := shape_problems(raw):
        raise CheckpointError(f"{file}: {'; '.join(problems)}. Use another checkpoint")
    floats = ("initializer_range", "layer_norm_epsilon")  # transformers refuses integers for these
    return {name: float(value) if name in floats else value for name, value in raw.items()}


def _has_type(name: object, value: object) -> bool:
    if name in _COUNTS:
        return type(value) is int or (name == "n_inner" and value is None)
    return value in get_args(Activation) if name == "activation_function" else type(value) in (int, float)


def check_tensors(file: Path, shape: Shape, state: dict[str, Any]) -> None:
    """Raise unless the tensors are exactly those of a model of this shape, and finite. The model is not built.

    The output embedding must equal the input embedding: the model has one tensor for both and would lose one of them.
    """
    sizes = {f"model.{name}": size for name, size in tensor_sizes(shape).items()}
    for name in sorted(set(sizes) ^ set(state), key=str):
        difference = "is missing" if name in sizes else "is not part of the model"
        raise CheckpointError(f"{file}: tensor {name!s:.100} {difference}. Use another checkpoint")
    for name, size in sizes.items():
        tensor = state[name]
        if not is_float_tensor(tensor) or tuple(tensor.shape) != size:
            is_tensor = isinstance(tensor, torch.Tensor)
            actual = f"{tensor.dtype} {tuple(tensor.shape)}" if is_tensor else type(tensor).__name__
            raise CheckpointError(
                f"{file}: tensor {name} is {actual:.100}, but the model's shape requires floats {size}"
            )
    if name := first_nonfinite((name, state[name]) for name in sizes):
        raise CheckpointError(f"{file}: tensor {name} contains NaN or Inf. Use an earlier checkpoint")
    if not torch.equal(state[EMBEDDING], state[HEAD]):
        raise CheckpointError(
            f"{file}: the output embedding differs from the input embedding. Train the model with tied embeddings"
        )


def is_plain(value: object) -> bool:
    """Return whether a value contains only text, numbers, None, lists and dictionaries."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            todo += item
        elif not isinstance(item, str | int | float | None):
            return False
    return True


def first_nonfinite(values: Iterable[tuple[str, object]]) -> str:
    """Return the name of the first tensor that contains NaN or Inf in float32; empty if none does."""
    for name, value in values:
        if isinstance(value, torch.Tensor) and value.dtype in _FLOATS and value.layout == torch.strided:
            local = dtensor.local_tensor(value.detach())
            # One pass without a copy; NaN is passed on.
            if local.numel() and not torch.isfinite(torch.stack(torch.aminmax(local)).float()).all():
                return name
    return ""


def optimizer_tensors(states: Mapping[Any, Any]) -> Iterator[tuple[str, object]]:
    """Yield the values in an optimizer's state, which maps each parameter to a dictionary."""
    for number, state in enumerate(states.values()):
        for name, value in state.items() if isinstance(state, Mapping) else ():
            yield f"{name} of parameter {number} in the optimizer's state", value


def resume_problem(raw: dict[Any, Any]) -> str:
    """Return what a checkpoint lacks to be resumed, or which of its values has a wrong type; empty if nothing."""
    if problem := structure_problem(raw, _RESUMABLE, ""):
        return problem
    if not re.fullmatch(r"\d+\.\d+[\w.+-]*", raw["pytorch-lightning_version"][:40]):
        return "pytorch-lightning_version is invalid"
    tensors = [(f"tensor {name}", value) for name, value in raw["state_dict"].items()]
    name = first_nonfinite([*tensors, *optimizer_tensors(raw["optimizer_states"][0]["state"])])
    return f"{name} contains NaN or Inf" if name else ""


def structure_problem(value: object, expected: object, name: str) -> str:
    """Return where nested containers differ from the expected ones: a key is missing, or a type is another.

    Args:
        value: what a file contains. Other keys in its dictionaries are ignored.
        expected: a dictionary or a list of what is expected, or a type or a value of it; None allows a number, too,
            and a list of one item is for lists of at least one.
        name: what the value is called in the problem.
    """
    kind = expected if isinstance(expected, type) else type(expected)
    kinds = _ALSO_ALLOWED.get(kind, (kind,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        return f"{name} has type {type(value).__name__}, not {kind.__name__}"
    if type(value) in (int, float) and not 0 <= value < math.inf:  # type: ignore[operator]
        return f"{name} is negative or not finite"
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(expected, dict):
        parts = expected.items()
    elif isinstance(expected, list):
        if not value:
            return f"{name} is empty"
        parts = ((number, expected[0]) for number in range(len(value)))  # type: ignore[arg-type]
    for key, part in parts:
        path = f"{name}.{key}" if name else str(key)
        try:
            item = value[key]  # type: ignore[index]
        except KeyError:
            return f"{path} is missing"
        if problem := structure_problem(item, part, path):
            return problem
    return ""


def lookup(content: object, *keys: str) -> Any:
    """Return a value in nested dictionaries; None if it is missing. The metadata of a file may have any form."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def is_float_tensor(tensor: object) -> TypeGuard[torch.Tensor]:
    """Return whether this is a float tensor on the CPU with memory for each element: not sparse, not expanded."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype in _FLOATS
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
    # Contiguous, because transformers cannot write others.
    return {name.removeprefix("model."): tensor.detach().float().contiguous() for name, tensor in state.items()}
