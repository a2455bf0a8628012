"""The options that make a model: plain numbers and strings, and what can be wrong with them."""

from __future__ import annotations

from typing import Any, Literal

Shape = dict[str, Any]
Activation = Literal["gelu_new", "gelu", "relu", "silu"]

SHAPE = (
    "n_layer",
    "n_head",
    "n_embd",
    "n_inner",
    "activation_function",
    "initializer_range",
    "layer_norm_epsilon",
    "embd_pdrop",
    "attn_pdrop",
    "resid_pdrop",
    "vocab_size",
    "n_positions",
)
"""The options that make the model, by Hugging Face's names; plain numbers and strings."""


def padded(vocab_size: int) -> int:
    """Rows of the token embedding: the next multiple of 64, which devices multiply faster.

    The rows beyond the vocabulary are no tokens: their logits are cut off before the loss and before drawing.
    """
    return -(-vocab_size // 64) * 64


def head_size(shape: Shape) -> int:
    """Width of one attention head."""
    return int(shape["n_embd"] // shape["n_head"])


def shape_problems(shape: Shape) -> list[str]:
    """Everything that is wrong with a model's options; those that are absent or None are not looked at."""
    problems = [
        f"model.{name} {shape[name]}: must be at least 1"
        for name in ("n_layer", "n_head", "n_embd", "n_inner", "vocab_size", "n_positions")
        if shape.get(name) is not None and shape[name] < 1
    ]
    if shape["n_head"] >= 1 and shape["n_embd"] % shape["n_head"]:
        problems.append(f"model.n_embd {shape['n_embd']}: not a multiple of model.n_head {shape['n_head']}")
    problems += [
        f"model.{name} {shape[name]}: must be from 0 to below 1"
        for name in ("dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop")
        if shape.get(name) is not None and not 0 <= shape[name] < 1
    ]
    return problems
