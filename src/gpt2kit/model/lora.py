"""LoRA freezes the hidden matrices of a model and trains small matrices next to them, which the package `peft` adds.

They exist only in training: opening a checkpoint merges them, so evaluation, generation, export and `init_from` see a
plain GPT-2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpt2kit.errors import UserError

# The factor on the product of the two LoRA matrices, unless model.lora_alpha is set.
LORA_SCALE = 2.0

_BASE = ".base_layer."


def lora_scale(rank: int, alpha: float | None) -> float:
    """Return the factor on the product of the two LoRA matrices."""
    return LORA_SCALE if alpha is None or not rank else alpha / rank


def add_lora(model: nn.Module, rank: int, alpha: float | None, train_embedding: bool) -> None:
    """Add two matrices of `rank` to each hidden matrix, which change nothing at first, and freeze the rest.

    With `train_embedding` the token embedding is not frozen. With rank 0, or if the model has LoRA already, do nothing.
    """
    if not rank or any("lora_" in name for name, _ in model.named_parameters()):
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.lora_r: needs the package peft. Install it: pip install 'peft>=0.18'") from None
    modules = ["c_attn", "c_proj", "c_fc"]
    if alpha is None:
        alpha = LORA_SCALE * rank
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, fan_in_fan_out=True)
    inject_adapter_in_model(config, model)
    if train_embedding:
        model.get_parameter("transformer.wte.weight").requires_grad_(True)


def merge_lora(state: dict[str, Any], scale: float = LORA_SCALE) -> dict[str, Any]:
    """Return the tensors of a plain GPT-2: W + scale (B A)^T for each hidden matrix.

    Matrices of the wrong shapes keep their names. `checkpoint.validation` refuses these names later.
    """
    plain = dict(state)
    for name, base in state.items():
        if not isinstance(name, str) or _BASE not in name:
            continue
        layer, kind = name.split(_BASE, 1)
        if kind != "weight":
            plain[f"{layer}.{kind}"] = plain.pop(name)
            continue
        name_a, name_b = (f"{layer}.lora_{letter}.default.weight" for letter in "AB")
        a: Any = state.get(name_a)
        b: Any = state.get(name_b)
        if _can_merge(base, a, b):
            del plain[name], plain[name_a], plain[name_b]
            plain[f"{layer}.weight"] = base + scale * (b @ a).T
    return plain


def split_lora(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """Return the tensors of the model that LoRA was added to, and the matrices A and B of each layer.

    The tensors are those of a valid checkpoint.
    """
    base = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    layers = [name.split(_BASE)[0] for name in state if name.endswith(f"{_BASE}weight")]
    matrices = {
        layer: (state[f"{layer}.lora_A.default.weight"], state[f"{layer}.lora_B.default.weight"]) for layer in layers
    }
    return base, matrices


def _can_merge(base: Any, a: Any, b: Any) -> bool:
    """Return whether these are float matrices [in, out], [rank, in] and [out, rank] of one dtype, and not sparse."""
    matrices = (base, a, b)
    if not all(isinstance(m, torch.Tensor) and m.ndim == 2 and m.layout == torch.strided for m in matrices):
        return False
    if base.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return False
    fits = base.shape == (a.shape[1], b.shape[0]) and a.shape[0] == b.shape[1]
    return bool(fits and a.dtype == b.dtype == base.dtype)
