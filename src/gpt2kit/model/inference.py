"""GPT-2's forward pass for generation, with a key-value cache. Needs only torch.

Training, evaluation and export use `model.gpt2.GPT2`, a subclass of Hugging Face's model. Importing transformers takes
longer than everything else that generate.py does before its first token, and the overhead of its forward pass is
several times the arithmetic of a small model (bench/generate.py measures both). This module computes the same logits
from the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2kit.model.config import Shape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
BLOCK = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")  # the layers of a block

Parameters = tuple[Tensor, Tensor]  # weight and bias of a layer


class KVCache:
    """Keys and values of the tokens that each row has read, `[rows, room, 2, heads, head_size]` for each layer."""

    def __init__(self, n_layer: int) -> None:
        self.length = 0
        self._n_layer = n_layer
        self._layers: list[Tensor] = []

    def append(self, layer: int, keys_values: Tensor) -> tuple[Tensor, ...]:
        """Store the keys and values of T new tokens, `[rows, T, 2, heads, head_size]`; return those of all tokens."""
        new = keys_values.shape[1]
        end = self.length + new
        if layer == len(self._layers):
            self._layers.append(keys_values[:, :0])
        if self._layers[layer].shape[1] < end:
            self._layers[layer] = _with_room(self._layers[layer], end)
        stored = self._layers[layer]
        stored.narrow(1, self.length, new).copy_(keys_values)
        if layer == self._n_layer - 1:
            self.length = end
        return stored.narrow(1, 0, end).transpose(1, 3).unbind(2)  # each (rows, heads, end, head_size)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self._layers = [stored[rows] for stored in self._layers]


def _with_room(stored: Tensor, length: int) -> Tensor:
    """Return a copy of a tensor with room for `length` tokens and half as many more, so that copies are few."""
    rows, used, *sizes = stored.shape
    copy = stored.new_empty(rows, length + max(length // 2, 64), *sizes)
    copy[:, :used] = stored
    return copy


class InferenceGPT2:
    """GPT-2 for generation. It uses the tensors of `state` without a copy, unless `device` or `dtype` differ.

    Args:
        shape: the options of the model, see `model.config.SHAPE_FIELDS`.
        state: the model's tensors, by Hugging Face's names.
        device: where to compute.
        dtype: the type of weights and arithmetic.
    """

    def __init__(
        self, shape: Shape, state: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.shape = shape
        self.device = torch.device(device)
        self._activation = ACTIVATIONS[shape["activation_function"]]
        weights = {
            name.removeprefix("transformer."): tensor.detach().to(self.device, dtype)
            for name, tensor in state.items()
            if name != "lm_head.weight"  # tied to wte
        }

        def parameters(layer: str) -> Parameters:
            return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

        self._wte, self._wpe = weights["wte.weight"], weights["wpe.weight"]
        self._blocks = [{name: parameters(f"h.{i}.{name}") for name in BLOCK} for i in range(shape["n_layer"])]
        self._ln_f = parameters("ln_f")
        self._head = self._wte[: shape["vocab_size"]].T  # (n_embd, vocab_size)

    def new_cache(self) -> KVCache:
        """Return an empty cache."""
        return KVCache(self.shape["n_layer"])

    @torch.inference_mode()
    def next_logits(self, ids: Tensor, positions: Tensor, cache: KVCache, mask: Tensor | None = None) -> Tensor:
        """Read tokens; return the logits of the token after the last one, `[rows, vocab_size]` in float32.

        Args:
            ids: `[rows, T]` new tokens.
            positions: `[rows, T]` their positions.
            cache: what the rows have read so far; gains the new tokens.
            mask: `[rows, 1, T, cache + T]`, true where a token sees another. Default: causal attention.
        """
        rows, length = ids.shape
        x = F.embedding(ids, self._wte) + F.embedding(positions, self._wpe)  # (rows, T, n_embd)
        x = x.view(rows * length, -1)  # (rows * T, n_embd)
        for layer, block in enumerate(self._blocks):
            queries_keys_values = linear(self._norm(x, block["ln_1"]), block["attn.c_attn"])
            queries_keys_values = queries_keys_values.view(rows, length, 3, self.shape["n_head"], -1)
            keys, values = cache.append(layer, queries_keys_values.narrow(2, 1, 2))
            query = queries_keys_values.select(2, 0).transpose(1, 2)  # (rows, heads, T, head_size)
            causal = mask is None and length > 1  # without a mask, several new tokens come only with an empty cache
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal)
            x = x + linear(attended.transpose(1, 2).reshape(rows * length, -1), block["attn.c_proj"])
            hidden = linear(self._norm(x, block["ln_2"]), block["mlp.c_fc"])  # (rows * T, n_inner)
            x = x + linear(self._activation(hidden), block["mlp.c_proj"])
        last = self._norm(x.view(rows, length, -1).select(1, -1), self._ln_f)  # (rows, n_embd)
        return (last @ self._head).float()

    def _norm(self, x: Tensor, parameters: Parameters) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), *parameters, self.shape["layer_norm_epsilon"])


def linear(x: Tensor, parameters: Parameters) -> Tensor:
    """Apply a linear layer, whose weight GPT-2 stores as [in, out]."""
    weight, bias = parameters
    return torch.addmm(bias, x, weight)
