"""Export the LoRA matrices of a run as a peft adapter: write it, load it with peft in a fresh process, and compare."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from gpt2kit import __version__, files
from gpt2kit.checkpoint import adapter as adapters
from gpt2kit.checkpoint import checkpoint
from gpt2kit.checkpoint.adapter import Adapter
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.checkpoint.huggingface import HUB
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.export import huggingface
from gpt2kit.export.huggingface import Agreement
from gpt2kit.hub import is_repository
from gpt2kit.model.config import Dtype
from gpt2kit.runs.pages import render

FILES = {adapters.CONFIG, adapters.WEIGHTS, huggingface.CARD}


def refuse_missing_peft() -> None:
    """Raise unless peft, which loads what was written, is installed."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("--adapter: needs the package peft. Install it: pip install 'peft>=0.18'")


def name_base(adapter: Adapter, name: str | None) -> Adapter:
    """Return the adapter with another base, a name on the hub; unchanged if there is no name."""
    if name is None:
        return adapter
    base = name if name.startswith(HUB) else f"{HUB}{name}"
    if not is_repository(base.removeprefix(HUB).partition("@")[0]):
        raise UserError(f"--adapter_base {name}: not a name on the hub, which others can load. Write OWNER/NAME")
    return dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, base=base))


def write(adapter: Adapter, folder: Path, name: str, dtype: Dtype) -> None:
    """Write the files of an adapter. Only plain settings are written, which every version of peft knows."""
    from safetensors.torch import save_file

    config = adapter.config
    base, _, revision = (config.base or "").removeprefix(HUB).partition("@")
    alpha = config.scale * config.rank
    settings: dict[str, Any] = {
        "base_model_name_or_path": base or None,
        "bias": "none",
        "fan_in_fan_out": True,  # GPT-2 stores its matrices as [in, out]
        "inference_mode": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": config.rank,
        "revision": revision or None,
        "target_modules": sorted({layer.rsplit(".", 1)[1] for layer in adapter.matrices}),
        "task_type": "CAUSAL_LM",
    }
    tensors = {
        f"{adapters.PREFIX}{layer}.lora_{letter}.weight": matrix.to(getattr(torch, dtype)).contiguous()
        for layer, matrices in adapter.matrices.items()
        for letter, matrix in zip("AB", matrices, strict=True)
    }
    metadata = {"format": "pt", adapters.VERSION_KEY: __version__, adapters.BASE_KEY: adapter.base_hash or ""}
    files.write_text(folder / adapters.CONFIG, json.dumps(settings, indent=2) + "\n")
    save_file(tensors, folder / adapters.WEIGHTS, metadata)
    card = render("adapter_card.md", Path(__file__).parent / "templates", name=name, base=base, rank=config.rank)
    files.write_text(folder / huggingface.CARD, card)


def check(opened: LoadedCheckpoint, base: LoadedCheckpoint, folder: Path, dtype: Dtype) -> Agreement:
    """Load base and adapter with peft in a fresh process, and with gpt2kit; compare their logits and the weights."""
    length = min(64, opened.shape["n_positions"])
    ids = torch.linspace(0, opened.shape["vocab_size"] - 1, length).long().tolist()
    with tempfile.TemporaryDirectory(prefix="gpt2kit-export-") as scratch:
        base_folder = Path(scratch) / "base"
        base_folder.mkdir()
        huggingface.write(base, base_folder, "base", "float32")
        reopened = checkpoint.open(folder, options=ForeignOptions(adapter_base=str(base_folder)))
        reloaded = huggingface.reload_folder(base_folder, ids, length - 1, "", str(folder.absolute()))
    logits, exact = (huggingface.compute_logits(gpt2, ids) for gpt2 in (reopened.model, opened.model))
    largest = float((logits - reloaded["logits"]).abs().max())
    allowed = 1e-4 * max(1.0, float(logits.abs().max()))
    is_equal = all(torch.equal(reopened.state[name], tensor) for name, tensor in opened.state.items())
    if not largest <= allowed or (dtype == "float32" and not is_equal):
        raise CheckpointError(
            f"the exported adapter differs from the checkpoint: logits differ by {largest:g} (rounding explains "
            f"{allowed:g}). Nothing was written; please report it"
        )
    return Agreement(largest, allowed, float((logits - exact).abs().max()))
