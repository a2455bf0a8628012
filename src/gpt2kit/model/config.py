"""The options that make a model, their checks, and the model's arithmetic: parameters and FLOPs. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

Shape = dict[str, Any]
Activation = Literal["gelu_new", "gelu", "relu", "silu"]
Dtype = Literal["float32", "float16", "bfloat16"]
"""What the weights of an export are rounded to."""

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


def tensor_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the size of each tensor of a GPT2LMHeadModel, by its name, with the padded rows of the embedding."""
    width, rows = shape["n_embd"], padded(shape["vocab_size"])
    inner = shape.get("n_inner") or 4 * width
    matrices = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    matrices |= {"mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width)}  # [in, out], unlike torch.nn.Linear
    sizes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (rows, width),
        "transformer.wpe.weight": (shape["n_positions"], width),
    }
    for layer in range(shape["n_layer"]):
        for name, size in matrices.items():
            sizes[f"transformer.h.{layer}.{name}.weight"] = size
            sizes[f"transformer.h.{layer}.{name}.bias"] = size[1:]
        for name in ("ln_1", "ln_2"):
            sizes |= {f"transformer.h.{layer}.{name}.{part}": (width,) for part in ("weight", "bias")}
    sizes |= {"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,)}
    return sizes | {"lm_head.weight": (rows, width)}  # tied to wte


def parameter_count(shape: Shape) -> int:
    """Return the number of parameters; padded rows of the embedding, and the tied output layer, do not count."""
    sizes = tensor_sizes(shape)
    del sizes["lm_head.weight"]
    padding = (padded(shape["vocab_size"]) - shape["vocab_size"]) * shape["n_embd"]
    return sum(map(math.prod, sizes.values())) - int(padding)


def flops_per_token(shape: Mapping[str, Any], model: Any = None) -> int:
    """FLOPs of training on one token, forward and backward: 6 N + 12 L d T, as the papers on utilization count them.

    N: the weights that each token is multiplied with, which are the layers' matrices and the output embedding. The
    input embedding is looked up, and counts nothing; the two are one tensor here, so it counts once. The second term
    is attention over a whole block of T = n_positions, with no discount for what is masked. Recomputed activations,
    padding rows, norms and the optimizer do not count: it is the work that the model needs.

    With `model`, a GPT2LMHeadModel of that shape, what is frozen in it is left out: of 6 FLOPs a weight, 2 are for its
    own gradient, and 2 hand the gradient on to what comes before, which only something trained there needs.
    """
    layers, width, context = shape["n_layer"], shape["n_embd"], shape["n_positions"]
    inner = shape.get("n_inner") or 4 * width
    if model is not None:
        return _flops_of_what_is_trained(model, shape["vocab_size"] * width, width * context)
    weights = layers * (4 * width * width + 2 * width * inner) + shape["vocab_size"] * width
    return int(6 * weights + 12 * layers * width * context)


def _flops_of_what_is_trained(model: Any, head: int, products: int) -> int:
    """`head`: weights of the output embedding; `products`: those of a token's attention to a block, in a layer."""
    found, body = 0, model.transformer
    wanted = body.wte.weight.requires_grad or body.wpe.weight.requires_grad

    def through(part: Any) -> None:
        nonlocal found, wanted
        for parameter in part.parameters():
            if parameter.ndim == 2:
                found += parameter.numel() * (2 + 2 * wanted + 2 * parameter.requires_grad)
            wanted |= parameter.requires_grad

    for block in body.h:
        through(block.ln_1)
        through(block.attn.c_attn)
        found += 4 * products * (3 if wanted else 1)
        for part in (block.attn.c_proj, block.ln_2, block.mlp):
            through(part)
    through(body.ln_f)
    return int(found + head * (2 + 2 * wanted + 2 * body.wte.weight.requires_grad))
