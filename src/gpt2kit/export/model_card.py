"""The README.md of an exported model: what it is, as far as the checkpoint knows, and how to use it."""

from __future__ import annotations

from typing import Any

from gpt2kit.checkpoint.checkpoint import Opened
from gpt2kit.checkpoint.huggingface import HUB
from gpt2kit.model.config import parameter_count
from gpt2kit.tokenization.tokenizer import eos_id, fingerprint


def model_card(opened: Opened, name: str, dtype: str) -> str:
    """Markdown with the header that the hub reads; the licence and the text's origin are left to the user."""
    facts, shape = opened.facts, opened.model.shape
    start = facts.get("start") if isinstance(facts.get("start"), dict) else None
    base = str(start["from"]) if start and str(start.get("from")).startswith(HUB) else ""
    header = [
        "---",
        "# license: say here under which licence you give the model away; the text it learnt from may decide",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [gpt2, gpt2kit]",
        *([f"base_model: {' '.join(base.removeprefix(HUB).split())}"] if base else []),
        "---",
    ]
    return "\n".join(
        [
            *header,
            "",
            f"# {name}",
            "",
            "A GPT-2, trained with gpt2kit. *Say here what text it learnt from, and what it is for.*",
            "",
            "| | |",
            "|---|---|",
            *(f"| {what} | {value} |" for what, value in _rows(opened, start, dtype) if value is not None),
            "",
            "Bits per byte are comparable between models with any tokenizer, on the same text.",
            "",
            "## Use",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            f'write = pipeline("text-generation", model="{name}")',
            'print(write("Once")[0]["generated_text"])',
            "```",
            "",
            f"In training each text stood behind the end-of-document token (id {eos_id(opened.tokenizer)}); with it in "
            "front of a prompt",
            "the model knows that a text begins there:",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "import torch",
            "",
            f'tokenizer, model = (kind.from_pretrained("{name}") for kind in (AutoTokenizer, AutoModelForCausalLM))',
            'ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("Once")["input_ids"]]])',
            "text = model.generate(ids)[0]",
            "print(tokenizer.decode(text, skip_special_tokens=True))",
            "```",
            "",
            f"Prompt and continuation together have room for {shape['n_positions']:,} tokens; without `max_new_tokens`",
            "half of them are written.",
            "",
        ]
    )


def _rows(opened: Opened, start: dict[str, Any] | None, dtype: str) -> list[tuple[str, str | None]]:
    facts, shape = opened.facts, opened.model.shape
    seen, text = _number(facts, "tokens_seen"), _number(facts, "train_tokens")
    bits = _number(facts, "val_bpb")
    began = " ".join(str(start.get("from")).removeprefix(HUB).rstrip("/").split()).split("/")[-2:] if start else []
    return [
        ("parameters", f"{parameter_count(shape, opened.model):,}, as {dtype}"),
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
