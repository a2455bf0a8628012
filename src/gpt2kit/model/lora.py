"""LoRA: small matrices beside the hidden ones are trained instead of these (the `peft` package puts them there).

Only a run in progress knows of them. Whoever opens its checkpoint gets them added up: testing, writing, exporting and
`model.init_from` see a plain GPT-2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpt2kit.errors import UserError

SCALE = 2.0
"""What the product of the two small matrices is multiplied by."""
_BASE = ".base_layer."


def adapt(model: nn.Module, rank: int | None, embedding: bool) -> None:
    """Put two matrices of `rank` beside each hidden one, and freeze all else; but for the token embedding, if wanted.

    They begin as no change at all. With no rank, or done already, nothing happens.
    """
    if not rank or any("lora_" in name for name, _ in model.named_parameters()):
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.lora: needs the package peft: pip install 'peft>=0.18'") from None
    parts = ["c_attn", "c_proj", "c_fc"]
    config = LoraConfig(r=rank, lora_alpha=round(SCALE * rank), target_modules=parts, fan_in_fan_out=True)
    inject_adapter_in_model(config, model)
    if embedding:
        model.get_parameter("transformer.wte.weight").requires_grad_(True)


def merged(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a plain GPT-2: W + scale (B A)^T for each hidden matrix, which GPT-2 keeps as [in, out].

    What does not fit together is left under its odd name, for whoever compares names.
    """
    found = dict(state)
    for name, base in state.items():
        if not isinstance(name, str) or _BASE not in name:
            continue
        stem, part = name.split(_BASE, 1)
        if part != "weight":
            found[f"{stem}.{part}"] = found.pop(name)
            continue
        names = [f"{stem}.lora_{letter}.default.weight" for letter in "AB"]
        a, b = (state.get(small) for small in names)
        if _fit(base, a, b):
            found[f"{stem}.weight"] = found.pop(name) + SCALE * (found.pop(names[1]) @ found.pop(names[0])).T
    return found


def _fit(base: object, a: object, b: object) -> bool:
    """Whether they are the matrices [in, out], [rank, in] and [out, rank]."""
    if not all(isinstance(one, torch.Tensor) and one.ndim == 2 and one.is_floating_point() for one in (base, a, b)):
        return False
    wide, first, second = (tuple(one.shape) for one in (base, a, b) if isinstance(one, torch.Tensor))
    return (first[1], second[0]) == wide and first[0] == second[1] and a.dtype == b.dtype == base.dtype  # type: ignore[attr-defined]
