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


class KVCache:
    """Keys and values of the tokens that each row has read, `[rows, heads, T, head_size]` for each layer."""

    def __init__(self, n_layer: int) -> None:
        self.length = 0
        self._n_layer = n_layer
        self._layers: list[tuple[Tensor, Tensor]] = []

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens; return those of all tokens."""
        end = self.length + key.shape[2]
        if layer == len(self._layers):
            self._layers.append((_with_room(key, end), _with_room(value, end)))
        keys, values = self._layers[layer]
        if keys.shape[2] < end:
            keys, values = self._layers[layer] = _with_room(keys, end), _with_room(values, end)
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        if layer == self._n_layer - 1:
            self.length = end
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self._layers = [(keys[rows], values[rows]) for keys, values in self._layers]


def _with_room(tensor: Tensor, length: int) -> Tensor:
    """Return a copy of a tensor with room for `length` tokens and half as many more, so that copies are few."""
    rows, heads, used, size = tensor.shape
    copy = tensor.new_empty(rows, heads, length + max(length // 2, 64), size)
    copy[:, :, :used] = tensor
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
        self._weights = {
            name.removeprefix("transformer."): tensor.detach().to(self.device, dtype)
            for name, tensor in state.items()
            if name != "lm_head.weight"  # tied to wte
        }

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
        weights = self._weights
        x = weights["wte.weight"][ids] + weights["wpe.weight"][positions]  # (rows, T, n_embd)
        for layer in range(self.shape["n_layer"]):
            x = x + self._attention(layer, self._norm(f"h.{layer}.ln_1", x), cache, mask)
            hidden = self._project(f"h.{layer}.mlp.c_fc", self._norm(f"h.{layer}.ln_2", x))  # (rows, T, n_inner)
            x = x + self._project(f"h.{layer}.mlp.c_proj", self._activation(hidden))
        last = self._norm("ln_f", x[:, -1])  # (rows, n_embd)
        return (last @ weights["wte.weight"][: self.shape["vocab_size"]].T).float()

    def _attention(self, layer: int, x: Tensor, cache: KVCache, mask: Tensor | None) -> Tensor:
        rows, length, width = x.shape
        queries_keys_values = self._project(f"h.{layer}.attn.c_attn", x).view(rows, length, 3, self.shape["n_head"], -1)
        query, key, value = queries_keys_values.permute(2, 0, 3, 1, 4)  # each (rows, heads, T, head_size)
        keys, values = cache.append(layer, key, value)  # each (rows, heads, cache + T, head_size)
        causal = mask is None and length > 1  # without a mask, several new tokens come only with an empty cache
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal)
        return self._project(f"h.{layer}.attn.c_proj", attended.transpose(1, 2).reshape(rows, length, width))

    def _project(self, name: str, x: Tensor) -> Tensor:
        """Apply a linear layer, whose weight GPT-2 stores as [in, out]."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self.shape["layer_norm_epsilon"])
