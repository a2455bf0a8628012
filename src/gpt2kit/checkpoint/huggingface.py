"""Hugging Face GPT-2 folders: `config.json`, `model.safetensors` (or `pytorch_model.bin`) and `tokenizer.json`.

A folder may come from anyone: its values are checked, and no code that it contains or names is run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from gpt2kit import files
from gpt2kit.checkpoint import archive, validation
from gpt2kit.commands import command_name
from gpt2kit.errors import CheckpointError, DataError, first_line
from gpt2kit.model.config import Shape, padded_vocab_size
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.tokenizer import EOS

CONFIG, WEIGHTS, OLD_WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
HUB = "hf://"

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

    `hf://OWNER/NAME` is a hub name, OWNER/NAME only if neither the path nor its parent exists: a typo stays local.
    """
    folder = Path(path)
    if not path.startswith(HUB) and (folder / CONFIG).is_file():
        return folder
    name = path.removeprefix(HUB)
    is_local = folder.exists() or folder.parent.exists()
    if path.startswith(HUB) or (re.fullmatch(r"[\w-]+/[\w.-]+", name) and not is_local):
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
    file = folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder / OLD_WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{folder}: contains neither {WEIGHTS} nor {OLD_WEIGHTS}. Save the model as one file")
    if file.name == OLD_WEIGHTS:
        raw = archive.load(file, allow_legacy=True)
        # They are mapped from the file, which may be deleted while the web demo serves them.
        return {name: value.clone() if validation.is_float_tensor(value) else value for name, value in raw.items()}
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except MemoryError:
        raise
    except Exception as error:  # the library raises many kinds for files of other formats
        reason = first_line(error).split(". ")[0]
        raise CheckpointError(f"{file}: not a readable file of tensors ({reason}). Use another one") from None


def _read_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer with its end-of-text token renamed to gpt2kit's; ids stay."""
    file = folder / TOKENIZER
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: contains no {TOKENIZER}. Create one with {command_name('tokenize')} --kind existing --vocab "
            f"{folder} --output_dir NEW_FOLDER, and copy it here if it has as many tokens as the model"
        )
    raw = _read_json(file)
    settings = _read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    try:
        tokenizer = tokenizers.from_plain_json(json.dumps(raw), str(file))
        if tokenizer.token_to_id(EOS) is None:
            raw = _rename_token(raw, _end_token(tokenizer, settings, config), EOS)
        return tokenizers.from_json(json.dumps(raw), str(file), is_tried=True)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{file}: has no end-of-text token. Set eos_token in {TOKENIZER_CONFIG}") from None


def _end_token(tokenizer: Tokenizer, settings: dict[str, Any], config: dict[str, Any]) -> str:
    """Return the end-of-text token, named in the tokenizer's settings or by its id in the model's config."""
    token, number = settings.get("eos_token"), config.get("eos_token_id")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
        return token
    token = tokenizer.id_to_token(number) if type(number) is int and 0 <= number < 1 << 32 else None
    if token is None:
        raise ValueError("no end-of-text token")
    return str(token)


def _rename_token(raw: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return a tokenizer's JSON with a special token renamed, and without the tokens that it adds around a text."""
    vocabulary: Any = raw["model"]["vocab"]
    if isinstance(vocabulary, dict):
        renamed: Any = {new if token == old else token: number for token, number in vocabulary.items()}
    else:
        renamed = [[new if token == old else token, score] for token, score in vocabulary]
    added = [
        {**token, "content": new, "special": True} if token["content"] in (old, new) else token
        for token in raw["added_tokens"]
    ]
    if not any(token["content"] == new for token in added):
        token = {"id": vocabulary[old], "content": new, "special": True, "normalized": False}
        added.append({**token, "single_word": False, "lstrip": False, "rstrip": False})
    return {**raw, "model": {**raw["model"], "vocab": renamed}, "added_tokens": added, "post_processor": None}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = files.parse_json(files.read_limited(file, tokenizers.MAX_JSON_BYTES).decode())
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise CheckpointError(f"{file}: not a readable JSON file ({first_line(error)}). Use another one") from None
    return content


def _download(name: str) -> Path:
    """Download a model from the hub into the hub's cache, and return its folder."""
    from huggingface_hub import snapshot_download

    small_files = [CONFIG, TOKENIZER, TOKENIZER_CONFIG]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*small_files, WEIGHTS]))
        if not (folder / WEIGHTS).is_file():
            folder = Path(snapshot_download(name, allow_patterns=[*small_files, OLD_WEIGHTS]))
    except Exception as error:  # the network and the hub raise many kinds
        raise CheckpointError(
            f"{name}: no such folder, and not available from the hub ({type(error).__name__}: {first_line(error)}). "
            "Check the name, or download the model and give its folder"
        ) from None
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{name}: has no {CONFIG} on the hub, so it is not a transformers model. Use another one")
    return folder
