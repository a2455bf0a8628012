"""Hugging Face GPT-2 folders: `config.json`, `model.safetensors` (or `pytorch_model.bin`) and `tokenizer.json`.

They may come from anyone. Numbers are read and compared; nothing that a folder names is imported, none of its code is
run, and no class of transformers but our own model's is made of it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from gpt2kit.checkpoint import validation
from gpt2kit.errors import CheckpointError, DataError, first_line
from gpt2kit.model.config import Shape, padded
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.trainers import EOS

CONFIG, WEIGHTS, OLD_WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
HUB = "hf://"
_LARGEST = 1 << 28
"""Bytes of a JSON file that are read at most; the largest tokenizers have some 2^25."""

_DEFAULTS: dict[str, Any] = {
    **{"n_layer": 12, "n_head": 12, "n_embd": 768, "n_inner": None, "activation_function": "gelu_new"},
    **{"initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "vocab_size": 50257, "n_positions": 1024},
    **{"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1},
}
"""What a config.json means by leaving a name out."""

_EXPECTED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "quantization_config": None,
}
"""Settings of transformers' GPT-2 that change what it computes; other values are refused."""


def folder_of(path: str) -> Path | None:
    """The Hugging Face folder that `path` means, fetched if it is `hf://OWNER/NAME` or names nothing that is here."""
    folder = Path(path)
    if not path.startswith(HUB) and (folder / CONFIG).is_file():
        return folder
    name = path.removeprefix(HUB)
    here = folder.exists() or folder.parent.exists()
    if path.startswith(HUB) or (re.fullmatch(r"[\w-]+/[\w.-]+", name) and not here):
        return _fetched(name)
    return None


def read(folder: Path) -> tuple[Shape, dict[str, Tensor], Tokenizer]:
    """Return the shape, the tensors and the tokenizer of a model."""
    config = _json(folder / CONFIG)
    shape = _shape(folder / CONFIG, config)
    state = _state(folder)
    rows = state.get(validation.EMBEDDING)
    state.setdefault(validation.HEAD, rows)
    if validation.solid(rows) and tuple(rows.shape) == (shape["vocab_size"], shape["n_embd"]):
        head = state[validation.HEAD]
        state[validation.EMBEDDING] = _padded(rows)
        state[validation.HEAD] = _padded(head) if validation.solid(head) and head.shape == rows.shape else head
    validation.check(folder, shape, state)
    tokenizer = _tokenizer(folder, config)
    if tokenizers.size(tokenizer) > shape["vocab_size"]:
        raise CheckpointError(
            f"{folder}: its tokenizer has {tokenizers.size(tokenizer)} tokens, its model {shape['vocab_size']}. "
            "They do not belong together"
        )
    return shape, validation.of_model(state), tokenizer


def _shape(file: Path, config: dict[str, Any]) -> Shape:
    kind, names = config.get("model_type"), config.get("architectures") or ["GPT2LMHeadModel"]
    if kind != "gpt2" or not isinstance(names, list) or not set(map(str, names)) <= {"GPT2LMHeadModel", "GPT2Model"}:
        raise CheckpointError(f"{file}: a model of type {kind!r} ({names}), not a GPT-2 that writes text")
    for name, expected in _EXPECTED.items():
        if (found := config.get(name, expected)) != expected:
            raise CheckpointError(f"{file}: {name} is {found!r}; gpt2kit's model has {expected!r}. Not supported")
    shape = {name: config.get(name, default) for name, default in _DEFAULTS.items()}
    if shape["activation_function"] == "gelu_pytorch_tanh":  # the same function by another name
        shape["activation_function"] = "gelu_new"
    return validation.shape_of(file, shape)


def _state(folder: Path) -> dict[str, Any]:
    """The tensors by our names."""
    found = _tensors(folder)
    state = {}
    for name, tensor in found.items():
        own = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if not re.fullmatch(r"transformer\.h\.\d+\.attn\.(masked_)?bias", own):  # older files hold the causal mask
            if f"model.{own}" in state:
                raise CheckpointError(f"{folder}: holds {own} twice, by two names. Save the model again")
            state[f"model.{own}"] = tensor
    return state


def _tensors(folder: Path) -> dict[str, Any]:
    file = folder / WEIGHTS
    try:
        if file.is_file():
            from safetensors.torch import load_file

            return dict(load_file(file))
        file = folder / OLD_WEIGHTS
        if file.is_file():
            raw = torch.load(file, map_location="cpu", weights_only=True)
            if isinstance(raw, dict) and all(isinstance(name, str) for name in raw):
                return raw
            raise ValueError("not tensors by their names")
    except Exception as error:  # the libraries raise many kinds for a file that is none of theirs
        reason = first_line(error).split(". ")[0]
        raise CheckpointError(f"{file}: not a readable file of tensors ({reason}). Use another one") from None
    raise CheckpointError(f"{folder}: has neither {WEIGHTS} nor {OLD_WEIGHTS}. Save the model in one file")


def _padded(rows: Tensor) -> Tensor:
    """The embedding with our multiple of rows; those that are added are no tokens."""
    return F.pad(rows, (0, 0, 0, padded(len(rows)) - len(rows)))


def _tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """The folder's tokenizer, its end-of-text token under our name, its id kept."""
    file = folder / TOKENIZER
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: has no {TOKENIZER}. Make one in a folder of its own, train_tokenizer.py --kind existing "
            f"--vocab {folder} --output_dir NEW, and copy it here if it has as many tokens as the model"
        )
    raw = _json(file)
    settings = _json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    try:
        plain = tokenizers.from_plain_json(json.dumps(raw), str(file))
        if plain.token_to_id(EOS) is None:
            raw = _renamed(raw, _end_token(plain, settings, config), EOS)
        return tokenizers.from_json(json.dumps(raw), str(file))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{file}: its end-of-text token cannot be found. Name it in {TOKENIZER_CONFIG}") from None


def _end_token(tokenizer: Tokenizer, settings: dict[str, Any], config: dict[str, Any]) -> str:
    """What the folder calls the token that ends a text: by its name, or by its number in the model's config."""
    named = settings.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    number = config.get("eos_token_id")
    if isinstance(named, str) and tokenizer.token_to_id(named) is not None:
        return named
    if type(number) is int and 0 <= number < 1 << 32 and (found := tokenizer.id_to_token(number)) is not None:
        return str(found)
    raise DataError(f"its files name no token that ends a text. Set eos_token in {TOKENIZER_CONFIG}")


def _renamed(raw: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """A tokenizer's JSON with one token under another name; what it would put around a text is dropped."""
    vocabulary = raw["model"]["vocab"]
    if isinstance(vocabulary, dict):
        renamed: Any = {new if token == old else token: number for token, number in vocabulary.items()}
    else:
        renamed = [[new if token == old else token, score] for token, score in vocabulary]
    added = [{**token, "content": new} if token["content"] == old else token for token in raw["added_tokens"]]
    if not any(token["content"] == new for token in added):
        token = {"id": vocabulary[old], "content": new, "special": True, "normalized": False}
        added.append({**token, "single_word": False, "lstrip": False, "rstrip": False})
    special = [{**token, "special": True} if token["content"] == new else token for token in added]
    return {**raw, "model": {**raw["model"], "vocab": renamed}, "added_tokens": special, "post_processor": None}


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError("too large")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a readable JSON file ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return found


def _fetched(name: str) -> Path:
    """The hub's files of a model, in the hub's own cache."""
    from huggingface_hub import snapshot_download

    small = [CONFIG, TOKENIZER, TOKENIZER_CONFIG]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*small, WEIGHTS]))
        if not (folder / WEIGHTS).is_file():
            folder = Path(snapshot_download(name, allow_patterns=[*small, OLD_WEIGHTS]))
    except Exception as error:  # whatever the network and the hub say
        raise CheckpointError(
            f"{name}: no such folder here, and the hub does not give it ({type(error).__name__}: {first_line(error)}). "
            "Check the name, or fetch it elsewhere and give the folder"
        ) from None
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{name}: has no {CONFIG} on the hub, so it is no model of transformers")
    return folder
