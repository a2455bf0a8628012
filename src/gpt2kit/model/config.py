"""The options that define a model, their checks, and the numbers of parameters and FLOPs. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from gpt2kit.errors import Problems
from gpt2kit.ranges import range_problems

Shape = dict[str, Any]
Activation = Literal["gelu_new", "gelu", "relu", "silu"]

# The type that an export rounds the weights to.
Dtype = Literal["float32", "float16", "bfloat16"]

# The type of the matrices in a GGUF file, by llama.cpp's names.
GGUFType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]

# The value of an option that is chosen when the text is known (training/auto.py).
Auto = Literal["auto"]

# The options that a model's weights determine.
ARCHITECTURE_FIELDS = (
    *("n_layer", "n_head", "n_embd", "n_inner"),
    *("activation_function", "initializer_range", "layer_norm_epsilon"),
)

# All options that define a model, by Hugging Face's names; plain numbers and strings.
SHAPE_FIELDS = (*ARCHITECTURE_FIELDS, "embd_pdrop", "attn_pdrop", "resid_pdrop", "vocab_size", "n_positions")


def padded_vocab_size(vocab_size: int) -> int:
    """Return the rows of the token embedding: the vocabulary size, rounded up to a multiple of 64 for speed.

    The logits of the rows beyond the vocabulary are cut off before the loss and before sampling.
    """
    return -(-vocab_size // 64) * 64


def shape_problems(shape: Shape) -> list[str]:
    """List what is invalid in a model's options; options that are absent, None or `auto` are skipped."""
    shape = {name: None if value == "auto" else value for name, value in shape.items()}
    problems = Problems(range_problems({f"model.{name}": value for name, value in shape.items()}))
    width, heads = shape["n_embd"], shape["n_head"]
    fits = None in (width, heads) or heads < 1 or width % heads == 0
    problems.check(fits, f"model.n_embd {width}: not a multiple of model.n_head {heads}")
    return problems.messages


def tensor_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the size of each tensor of a GPT2LMHeadModel, by its name, with the padded rows of the embedding."""
    width, rows = shape["n_embd"], padded_vocab_size(shape["vocab_size"])
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
    padding = (padded_vocab_size(shape["vocab_size"]) - shape["vocab_size"]) * shape["n_embd"]
    return sum(map(math.prod, sizes.values())) - int(padding)


def flops_per_token(shape: Mapping[str, Any], model: Any = None) -> int:
    """Return the FLOPs of training on one token, forward and backward: 6 N + 12 L d T, as in papers on utilization.

    N is the number of weights that each token is multiplied with: the layers' matrices and the output embedding, but
    not the input embedding, which is a lookup. The second term is attention over a block of T = n_positions tokens,
    masked ones included. Norms, the optimizer, padded rows and recomputed activations do not count.

    With `model`, a GPT2LMHeadModel of that shape, the gradients that its frozen parameters do not need do not count.
    """
    layers, width, context = shape["n_layer"], shape["n_embd"], shape["n_positions"]
    inner = shape.get("n_inner") or 4 * width
    head = shape["vocab_size"] * width
    if model is not None:
        return _flops_with_frozen_parameters(model, head, 4 * width * context)
    weights = layers * (4 * width * width + 2 * width * inner) + head
    return int(6 * weights + 12 * layers * width * context)


def _flops_with_frozen_parameters(model: Any, head: int, attention: int) -> int:
    """Add up the FLOPs of a token in forward order; `attention` is the forward FLOPs of attention in each layer."""
    # Of 6 FLOPs per weight, 2 are the forward pass, 2 the weight's gradient, and 2 the gradient of the input, which is
    # needed only if something before it is trained.
    body = model.transformer
    needs_gradient = body.wte.weight.requires_grad or body.wpe.weight.requires_grad
    flops = 0
    for block in body.h:
        for part in (block.ln_1, block.attn.c_attn, block.attn.c_proj, block.ln_2, block.mlp):
            if part is block.attn.c_proj:  # queries, keys and values are ready
                flops += attention * (3 if needs_gradient else 1)
            for parameter in part.parameters():
                if parameter.ndim == 2:
                    flops += 2 * parameter.numel() * (1 + int(needs_gradient) + int(parameter.requires_grad))
                needs_gradient |= parameter.requires_grad
    needs_gradient |= any(parameter.requires_grad for parameter in body.ln_f.parameters())
    return int(flops + 2 * head * (1 + int(needs_gradient) + int(body.wte.weight.requires_grad)))
