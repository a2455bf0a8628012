"""LoRA adapters in the format of peft: a folder with `adapter_config.json` and `adapter_model.safetensors`.

A folder may come from anyone: no code that it names is run, the sizes of its tensors are checked before they are read,
and of local paths it may name only a folder inside itself as its base.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2kit import files
from gpt2kit.checkpoint import validation
from gpt2kit.errors import CheckpointError, first_line
from gpt2kit.hub import is_repository
from gpt2kit.model.config import Shape, tensor_sizes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Before the names of GPT2LMHeadModel's tensors.
PREFIX = "base_model.model."
# Keys in the metadata of the tensors: the version of gpt2kit that wrote them, and the SHA-256 of the base's weights.
VERSION_KEY, BASE_KEY = "gpt2kit", "base_sha256"

# What changes nothing in the model that is computed, or is read below. Any other setting must be off.
_HARMLESS = {
    *(
        "peft_type",
        "task_type",
        "peft_version",
        "auto_mapping",
        "inference_mode",
        "base_model_name_or_path",
        "revision",
    ),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
    *("qalora_group_size", "runtime_config"),
}
# How the matrices began. Other methods (pissa, olora, loftq, corda) change the base, too.
_PLAIN_INIT = (None, True, False, "gaussian", "orthogonal", "eva")
_TENSOR = re.compile(rf"{re.escape(PREFIX)}(?:transformer\.)?(h\.\d{{1,9}}\.(?:attn|mlp)\.c_\w+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter."""

    rank: int
    scale: float  # the factor on the product of the two matrices
    base: str | None  # the model that it belongs to: a name on the hub, or a folder inside its own; None: not named


@dataclass(frozen=True)
class Adapter:
    """The matrices A [rank, in] and B [out, rank] of layers, by the layers' names in GPT2LMHeadModel."""

    config: AdapterConfig
    matrices: dict[str, tuple[Tensor, Tensor]]
    base_hash: str | None = None  # of the weights that it was trained on, see `hash_weights`


def is_adapter(folder: Path) -> bool:
    """Return whether a folder contains an adapter."""
    return (folder / CONFIG).is_file()


def is_exported(folder: Path) -> bool:
    """Return whether `export --adapter` has written the folder."""
    from safetensors import safe_open

    try:
        files.refuse_special(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, "pt") as stream:
            return VERSION_KEY in (stream.metadata() or {})
    except Exception:  # the library raises many kinds for missing and damaged files
        return False


def read_config(folder: Path) -> AdapterConfig:
    """Return the settings of an adapter; raise for what is not plain LoRA."""
    file = folder / CONFIG
    try:
        raw = files.parse_json(files.read_limited(file))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable ({first_line(error):.200}). Use another adapter") from None
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        kind = raw.get("peft_type") if isinstance(raw, dict) else raw
        raise CheckpointError(f"{file}: an adapter of type {kind!r:.60}, but gpt2kit reads LORA. Use another adapter")
    others = {name: value for name, value in raw.items() if name not in _HARMLESS and value}
    others |= {name: raw[name] for name in ("bias",) if raw.get(name, "none") != "none"}
    initial = raw.get("init_lora_weights")
    if not isinstance(initial, str | bool | None) or initial not in _PLAIN_INIT:
        others["init_lora_weights"] = initial
    for name, value in others.items():
        raise CheckpointError(
            f"{file}: {name!s:.60} is {value!r:.60}, but gpt2kit reads plain LoRA. Merge it with peft"
        )
    rank: Any = raw.get("r")
    alpha: Any = raw.get("lora_alpha")
    is_number = type(alpha) in (int, float) and 0 < alpha < math.inf
    if type(rank) is not int or not 1 <= rank < 1 << 20 or not is_number:
        raise CheckpointError(f"{file}: r {rank!r:.60} or lora_alpha {alpha!r:.60} is invalid. Use another adapter")
    scale = alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)
    return AdapterConfig(rank, scale, _find_base(folder, raw.get("base_model_name_or_path"), raw.get("revision")))


def _find_base(folder: Path, name: object, revision: object) -> str | None:
    """Return the base that a config names, as `checkpoint.open` takes it; None for a path outside the folder."""
    if not isinstance(name, str) or not is_repository(name):
        return None
    if (folder / name).is_dir() and (folder / name).resolve().is_relative_to(folder.resolve()):
        return str(folder / name)
    is_revision = isinstance(revision, str) and re.fullmatch(r"[\w.-]+", revision)
    return f"hf://{name}@{revision}" if is_revision else f"hf://{name}"


def read(folder: Path, config: AdapterConfig, shape: Shape) -> Adapter:
    """Return the matrices of an adapter for a model of this shape, in float32."""
    from safetensors import safe_open

    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{folder}: contains no {WEIGHTS}. Save the adapter with peft's save_pretrained")
    try:
        with safe_open(file, "pt") as stream:
            names = list(stream.keys())
            sizes = {name: tuple(stream.get_slice(name).get_shape()) for name in names}
            layers = _layers(file, sizes, config.rank, shape)
            tensors = {name: stream.get_tensor(name) for name in names}
            metadata = stream.metadata() or {}
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # the library raises many kinds for files of other formats
        reason = first_line(error).split(". ")[0]
        raise CheckpointError(f"{file}: not a readable file of tensors ({reason}). Use another adapter") from None
    for name, tensor in tensors.items():
        if not validation.is_float_tensor(tensor) or validation.first_nonfinite([(name, tensor)]):
            raise CheckpointError(f"{file}: tensor {name:.100} is not floats, or contains NaN or Inf")
    matrices = {layer: (tensors[name_a].float(), tensors[name_b].float()) for layer, (name_a, name_b) in layers.items()}
    return Adapter(config, matrices, metadata.get(BASE_KEY))


def _layers(file: Path, sizes: dict[str, tuple[int, ...]], rank: int, shape: Shape) -> dict[str, tuple[str, str]]:
    """Return the names of the tensors A and B of each layer, after checking that all fit a model of this shape."""
    model_sizes = tensor_sizes(shape)
    names: dict[str, dict[str, str]] = {}
    for name, size in sizes.items():
        match = _TENSOR.fullmatch(name)
        layer, letter = (f"transformer.{match[1]}", match[2]) if match else ("", "")
        if f"{layer}.weight" not in model_sizes:
            raise CheckpointError(f"{file}: tensor {name!s:.100} is not LoRA of a layer of its base. Use another base")
        n_in, n_out = model_sizes[f"{layer}.weight"]
        expected = (rank, n_in) if letter == "A" else (n_out, rank)
        if size != expected:
            raise CheckpointError(f"{file}: tensor {name:.100} is {size!s:.60}, but its base requires {expected}")
        names.setdefault(layer, {})[letter] = name
    if not names or any(len(pair) < 2 for pair in names.values()):
        raise CheckpointError(f"{file}: contains no LoRA matrices, or only one of two. Save the adapter again")
    return {layer: (pair["A"], pair["B"]) for layer, pair in names.items()}


def merge(state: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors of the base with W + scale (B A)^T for each layer of the adapter."""
    merged = dict(state)
    for layer, (a, b) in adapter.matrices.items():
        merged[f"{layer}.weight"] = state[f"{layer}.weight"] + adapter.config.scale * (b @ a).T
    return merged


def hash_weights(state: Mapping[str, Tensor], vocab_size: int) -> str:
    """Return the SHA-256 of a model's weights, which does not depend on the file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if name != "lm_head.weight":  # tied to wte
            rows = tensor[:vocab_size] if name == "transformer.wte.weight" else tensor
            digest.update(name.encode() + rows.float().contiguous().numpy().tobytes())
    return digest.hexdigest()
