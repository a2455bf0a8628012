"""Hugging Face GPT-2 folders: `config.json`, `model.safetensors` (or `pytorch_model.bin`) and `tokenizer.json`.

A folder may come from anyone: its values are checked, and no code that it contains or names is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from gpt2kit import hub
from gpt2kit.checkpoint import adapter, archive, validation
from gpt2kit.errors import CheckpointError, DataError, first_line
from gpt2kit.model.config import Shape, padded_vocab_size
from gpt2kit.tokenization import conversion, pretrained
from gpt2kit.tokenization import tokenizer as tokenizers

CONFIG, WEIGHTS, OLD_WEIGHTS = pretrained.CONFIG, "model.safetensors", "pytorch_model.bin"
# Weights in several files.
SHARDS_INDEX, SHARDS = "model.safetensors.index.json", "model-*.safetensors"
OLD_SHARDS_INDEX, OLD_SHARDS = "pytorch_model.bin.index.json", "pytorch_model-*.bin"
HUB = "hf://"
# The key in config.json that holds the version of gpt2kit that wrote the folder.
VERSION_KEY = "gpt2kit"

# Values of options that are missing in a config.json.
_DEFAULTS: dict[str, Any] = {
    **{"n_layer": 12, "n_head": 12, "n_embd": 768, "n_inner": None, "activation_function": "gelu_new"},
    **{"initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "vocab_size": 50257, "n_positions": 1024},
    **{"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1},
}

# Settings that change what transformers' GPT-2 computes; gpt2kit's model supports only these values.
_REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "quantization_config": None,
}


def find_folder(path: str) -> Path | None:
    """Return the Hugging Face folder at a path, or download the model if `path` is a hub name; None for other paths.

    The folder contains a model or an adapter.

    `hf://OWNER/NAME` is a hub name, also with `@REVISION`. Without `hf://` it is one only if neither the path nor its
    parent exists: a typo stays local.
    """
    folder = Path(path)
    if not path.startswith(HUB) and any((folder / name).is_file() for name in (CONFIG, adapter.CONFIG)):
        return folder
    name = path.removeprefix(HUB)
    is_local = folder.exists() or folder.parent.exists()
    if path.startswith(HUB) or (re.fullmatch(r"[\w-]+/[\w.-]+(@[\w.-]+)?", name) and not is_local):
        return _download(name)
    return None


def read(folder: Path) -> tuple[Shape, dict[str, Tensor], Tokenizer]:
    """Return the shape, the tensors and the tokenizer of a model."""
    config = _read_json(folder / CONFIG)
    shape = _read_shape(folder / CONFIG, config)
    state = _read_state(folder)
    state.setdefault(validation.HEAD, state.get(validation.EMBEDDING))
    vocab_size = shape["vocab_size"]
    for name in (validation.EMBEDDING, validation.HEAD):
        rows = state.get(name)
        if validation.is_float_tensor(rows) and rows.shape == (vocab_size, shape["n_embd"]):
            state[name] = F.pad(rows, (0, 0, 0, padded_vocab_size(vocab_size) - vocab_size))  # (padded rows, n_embd)
    validation.check_tensors(folder, shape, state)
    tokenizer = _read_tokenizer(folder, config)
    validation.check_tokenizer(folder, shape, tokenizer)
    return shape, validation.model_state(state), tokenizer


def _read_shape(file: Path, config: dict[str, Any]) -> Shape:
    kind, names = config.get("model_type"), config.get("architectures") or ["GPT2LMHeadModel"]
    if kind != "gpt2" or not isinstance(names, list) or not set(map(str, names)) <= {"GPT2LMHeadModel", "GPT2Model"}:
        raise CheckpointError(
            f"{file}: a model of type {kind!r:.60} ({names!s:.60}), not a GPT-2 language model. Use another model"
        )
    for name, required in _REQUIRED.items():
        value = config.get(name, required)
        if value != required:
            raise CheckpointError(f"{file}: {name} is {value!r:.60}, but gpt2kit supports only {required!r}")
    shape = {name: config.get(name, default) for name, default in _DEFAULTS.items()}
    if shape["activation_function"] == "gelu_pytorch_tanh":  # another name of the same function
        shape["activation_function"] = "gelu_new"
    return validation.check_shape(file, shape)


def _read_state(folder: Path) -> dict[str, Any]:
    """Return the tensors by the names that gpt2kit's checkpoints use."""
    state = {}
    for key, tensor in _read_tensors(folder).items():
        name = str(key)  # a pickled dictionary may have others
        full_name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if re.fullmatch(r"transformer\.h\.\d+\.attn\.(masked_)?bias", full_name):  # the causal mask, in older files
            continue
        if f"model.{full_name}" in state:
            raise CheckpointError(f"{folder}: contains {full_name} under two names. Save the model again")
        state[f"model.{full_name}"] = tensor
    return state


def _read_tensors(folder: Path) -> dict[str, Any]:
    names = [name for name in (WEIGHTS, SHARDS_INDEX, OLD_WEIGHTS, OLD_SHARDS_INDEX) if (folder / name).is_file()]
    if not names:
        raise CheckpointError(f"{folder}: contains neither {WEIGHTS} nor {OLD_WEIGHTS}. Copy the model's weights there")
    file = folder / names[0]
    if file.name in (WEIGHTS, OLD_WEIGHTS):
        return _read_file(file)
    shards = [_read_file(folder / name) for name in _shard_names(file)]
    tensors = {name: tensor for shard in shards for name, tensor in shard.items()}
    if len(tensors) < sum(map(len, shards)):
        raise CheckpointError(f"{folder}: its files of weights contain a tensor twice. Save the model again")
    return tensors


def _read_file(file: Path) -> dict[str, Any]:
    if file.suffix != ".bin":
        return _read_safetensors(file)
    raw = archive.load(file, allow_legacy=True)
    # They are mapped from the file, which may be deleted while the web demo serves them.
    return {name: value.clone() if validation.is_float_tensor(value) else value for name, value in raw.items()}


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except MemoryError:
        raise
    except Exception as error:  # the library raises many kinds for files of other formats
        reason = first_line(error).split(". ")[0]
        raise CheckpointError(f"{file}: not a readable file of tensors ({reason}). Use another one") from None


def _shard_names(index: Path) -> list[str]:
    """Return the names of the files that the index of a model in several files names."""
    weight_map = _read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) and name == Path(name).name and (index.parent / name).is_file() for name in names):
        raise CheckpointError(f"{index}: names a file that is not in its folder. Copy all of the model's files there")
    return sorted({str(name) for name in names})


def _read_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer with its end-of-text token renamed to gpt2kit's; ids stay."""
    try:
        tokenizer = conversion.open_folder(folder)
        is_known = VERSION_KEY in config and config.get("eos_token_id", 0) is None  # an export of one without the token
        if tokenizers.find_eos(tokenizer) is None and not is_known:
            raise DataError(f"{folder}: has no end-of-text token. Set eos_token in {tokenizers.SETTINGS}")
        return tokenizers.from_json(tokenizers.to_json(tokenizer), str(folder), is_tried=True, needs_end=False)
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return pretrained.read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _download(name: str) -> Path:
    """Download a model from the hub into the hub's cache, and return its folder."""
    small_files = pretrained.PATTERNS
    try:
        folder = hub.download(name, [*small_files, WEIGHTS, SHARDS_INDEX, SHARDS, adapter.CONFIG, adapter.WEIGHTS])
        if adapter.is_adapter(folder):
            return folder
        if not (folder / WEIGHTS).is_file() and not (folder / SHARDS_INDEX).is_file():
            folder = hub.download(name, [*small_files, OLD_WEIGHTS, OLD_SHARDS_INDEX, OLD_SHARDS])
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{name}: has no {CONFIG} on the hub, so it is not a transformers model. Use another one")
    return folder
