"""The README.md of an exported model: what it is, as far as the checkpoint knows, and how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.checkpoint.huggingface import HUB
from gpt2kit.model.config import parameter_count
from gpt2kit.runs.pages import render
from gpt2kit.tokenization.tokenizer import eos_id, fingerprint


def model_card(opened: LoadedCheckpoint, name: str, dtype: str) -> str:
    """Return Markdown with the header that the hub reads; licence and origin of the text are left to the user."""
    facts = opened.metadata
    start = facts.get("start") if isinstance(facts.get("start"), dict) else None
    base = str(start["from"]) if start and str(start.get("from")).startswith(HUB) else ""
    return render(
        "model_card.md",
        Path(__file__).parent / "templates",
        base=" ".join(base.removeprefix(HUB).split()),
        name=name,
        rows=[(what, value) for what, value in _rows(opened, start, dtype) if value is not None],
        end=eos_id(opened.tokenizer),
        context=f"{opened.shape['n_positions']:,}",
    )


def _rows(opened: LoadedCheckpoint, start: dict[str, Any] | None, dtype: str) -> list[tuple[str, str | None]]:
    facts, shape = opened.metadata, opened.shape
    seen, text = _number(facts, "tokens_seen"), _number(facts, "train_tokens")
    bits = _number(facts, "val_bpb")
    began = " ".join(str(start.get("from")).removeprefix(HUB).rstrip("/").split()).split("/")[-2:] if start else []
    return [
        ("parameters", f"{parameter_count(shape):,}, as {dtype}"),
        ("shape", f"{shape['n_layer']} layers, {shape['n_head']} heads, width {shape['n_embd']}"),
        ("context", f"{shape['n_positions']:,} tokens"),
        ("vocabulary", f"{shape['vocab_size']:,} pieces, tokenizer {fingerprint(opened.tokenizer)[:12]}"),
        ("training text", f"{text:,.0f} tokens" if text is not None else None),
        ("tokens seen in training", f"{seen:,.0f}" if seen is not None else None),
        ("bits per byte of the validation text", f"{bits:.4f}" if bits is not None else None),
        ("began with the weights of", "/".join(began) or None),
        ("each token saw its own document alone", "yes" if facts.get("document_start") is not None else None),
    ]


def _number(facts: dict[str, Any], name: str) -> float | None:
    found = facts.get(name)
    return found if type(found) in (int, float) else None
