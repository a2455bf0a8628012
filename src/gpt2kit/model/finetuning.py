"""Train a part of a model: frozen parameters, and LoRA.

LoRA freezes the hidden matrices and trains small matrices next to them; the `peft` package adds these. They exist only
in training: opening a checkpoint merges them, so evaluation, generation, export and `init_from` see a plain GPT-2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from gpt2kit.errors import UserError, refuse

# The factor on the product of the two LoRA matrices, unless model.lora_alpha is set.
LORA_SCALE = 2.0

# Names for several parts. The body is everything but the token embedding, which is also the output layer.
_GROUPS = {"embeddings": r"(wte|wpe)\.", "layers": r"h\.", "body": r"(?!wte\.)"}
_LAYER_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_BASE = ".base_layer."


class FrozenParameters:
    """Parameters that are not trained, for the whole run or for its first steps.

    If they are frozen for the whole run, they get no gradient and are not in the optimizer. If they are frozen for its
    first steps, they keep `requires_grad`, which compiled and distributed models rely on, and their gradients are
    dropped before each update. Without a gradient an optimizer neither changes a parameter nor creates state for it.

    Args:
        model: the model, before it is compiled or sharded.
        parts: the parts to freeze, see `find_parameters`.
        steps: the number of optimizer steps. Default: all.
    """

    def __init__(self, model: nn.Module, parts: Sequence[int | str] | int | str, steps: int | None = None) -> None:
        self.names = find_parameters([name for name, _ in model.named_parameters()], parts)
        self.steps = steps
        self._model = model
        if steps is None:
            for name in self.names:
                model.get_parameter(name).requires_grad_(False)

    def drop_gradients(self, step: int) -> None:
        """Drop the gradients of the parameters that are frozen at optimizer step `step`, counted from 0."""
        if self.steps is not None and step < self.steps:
            for name in self.names:
                self._model.get_parameter(name).grad = None  # looked up by name, because FSDP replaces parameters

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when a run is resumed, as plain types."""
        return {"parameters": self.names, "steps": self.steps}


def names_parts(parts: object) -> bool:
    """Return whether `model.freeze` names any part; 0 is the first layer."""
    return parts not in (None, "", (), [])


def find_parameters(names: Sequence[str], parts: Sequence[int | str] | int | str) -> list[str]:
    """Return the names of the parameters that belong to parts of the model; report all unknown parts at once.

    A part is a layer (`3`), a range of layers (`0-3`), a group (`embeddings`, `layers`, `body`), or a name of GPT-2's
    modules or its beginning (`wte`, `wpe`, `ln_f`, `h.0.attn`).
    """
    part_names = [str(parts)] if isinstance(parts, int | str) else [str(part) for part in parts]
    short_names = {name.removeprefix("transformer."): name for name in names}
    refuse([problem for part in part_names if (problem := _part_problem(part, short_names))])
    pattern = re.compile("|".join(map(_pattern, part_names)) or "(?!)")  # without parts it matches nothing
    frozen = [name for short_name, name in short_names.items() if pattern.match(short_name)]
    if len(frozen) == len(names):
        raise UserError("model.freeze: no parameter is left to train. Freeze fewer parts")
    return frozen


def _part_problem(part: str, names: Collection[str]) -> str | None:
    last = max((int(name.split(".")[1]) for name in names if name.startswith("h.")), default=-1)
    if layers := _LAYER_RANGE.fullmatch(part):
        begin, end = int(layers[1]), int(layers[2] or layers[1])
        if begin <= end <= last:
            return None
        nearest = sorted({min(begin, last), min(end, last)})
        return f"model.freeze {part}: the model has layers 0 to {last}. Nearest: {'-'.join(map(str, nearest))}"
    if any(re.match(_pattern(part), name) for name in names):
        return None
    modules = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    similar = difflib.get_close_matches(part, sorted({*_GROUPS, *modules}), n=1)
    suggestion = f" (did you mean {similar[0]}?)" if similar else ""
    return (
        f"model.freeze {part}: the model has no such part{suggestion}. Use a layer from 0 to {last}, "
        f"{', '.join(_GROUPS)}, or a name such as wte, wpe, ln_f, h.0.attn"
    )


def _pattern(part: str) -> str:
    """Return a regular expression for the names of a part's parameters."""
    if part in _GROUPS:
        return _GROUPS[part]
    if layers := _LAYER_RANGE.fullmatch(part):
        numbers = range(int(layers[1]), int(layers[2] or layers[1]) + 1)
        return rf"h\.({'|'.join(map(str, numbers))})\."
    return rf"{re.escape(part)}(\.|$)"


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
